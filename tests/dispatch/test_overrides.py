"""What stands in the place of a module's methods comes off as it went in, and an end that was interrupted is called again."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import planner
from planner.dispatching.hooks.align import AlignDevicesHook
from planner.dispatching.interrupts import end_again
from planner.dispatching.methods import forward, mixed_forward, overrides
from planner.dispatching.methods.forward import Border, Hooked, forwards_of
from planner.dispatching.methods.membership import Membership
from planner.dispatching.methods.overrides import Conversion, Override, Pickling, Recomputing, Refusal
from planner.dispatching.offload.refcount import OffloadedModule
from planner.dispatching.offload.store import OffloadStore
from planner.dispatching.tensors.journal import Journal


def nothing_offloaded() -> OffloadedModule:
    return OffloadedModule(OffloadStore((), (), (), {}))


KINDS: dict[str, Callable[[nn.Module], Override]] = {
    "forward": lambda module: Border(module, AlignDevicesHook("cpu")),
    "conversion": lambda module: Conversion(module, Membership()),
    "refusal": lambda module: Refusal(module, Membership()),
    "pickling": lambda module: Pickling(module, nothing_offloaded()),
    "recomputing": lambda module: Recomputing(module, (), torch.device("cpu")),
}


def theirs(*args: Any, **kwargs: Any) -> Any:
    return "theirs"


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("had_one", [True, False])
def test_a_module_has_again_what_it_had(name: str, had_one: bool) -> None:
    layer = nn.Linear(2, 2)
    place = KINDS[name](layer).place
    if had_one:
        layer.__dict__[place] = theirs
    before, journal = dict(vars(layer)), Journal()
    override = KINDS[name](layer)
    override.install(journal)
    assert vars(layer)[place] is override and type(override).of(layer) is override
    now = dict(vars(layer))
    override.take_off(journal)
    assert vars(layer) == before
    journal.roll_back()
    assert vars(layer) == before
    override.install(Journal())
    journal = Journal()
    override.take_off(journal)
    journal.roll_back()
    assert vars(layer) == now


@pytest.mark.parametrize("name", KINDS)
def test_what_others_have_put_over_it_stays(name: str) -> None:
    layer = nn.Linear(2, 2)
    override = KINDS[name](layer)
    override.install(Journal())
    layer.__dict__[override.place] = theirs
    override.take_off(Journal())
    assert vars(layer)[override.place] is theirs


def test_a_forward_comes_off_from_below_another_one() -> None:
    layer, x = nn.Linear(2, 2), torch.ones(1, 2)
    border = Border(layer, AlignDevicesHook("cpu"))
    border.install(Journal())
    layer.__dict__["_old_forward"] = border
    above = Hooked(layer, None)
    above.install(Journal())
    journal = Journal()
    border.take_off(journal)
    assert list(forwards_of(layer)) == [above] and vars(layer)["_old_forward"] == nn.Linear.forward.__get__(
        layer
    )
    assert above.original(x).equal(nn.Linear.forward(layer, x))
    journal.roll_back()
    assert list(forwards_of(layer)) == [above, border] and vars(layer)["_old_forward"] is border


def test_all_that_is_installed_has_the_one_base() -> None:
    for module in (forward, mixed_forward, overrides):
        for cls in vars(module).values():
            if inspect.isclass(cls) and cls.__module__ == module.__name__ and "install" in dir(cls):
                assert issubclass(cls, Override), cls


@pytest.mark.parametrize("interrupt_at", [None, "block", "end"])
def test_an_end_that_was_interrupted_is_called_again(interrupt_at: str | None) -> None:
    calls: list[str] = []

    def end() -> None:
        calls.append("end")
        if interrupt_at == "end" and len(calls) == 1:
            raise KeyboardInterrupt

    def run() -> str:
        with end_again(end):
            try:
                if interrupt_at == "block":
                    raise KeyboardInterrupt
                return "done"
            finally:
                end()

    if interrupt_at is None:
        assert run() == "done" and calls == ["end"]
    else:
        with pytest.raises(KeyboardInterrupt):
            run()
        assert calls == ["end", "end"]


class Unwilling(planner.ModelHook):
    """Cannot be attached."""

    def init_hook(self, module: nn.Module) -> nn.Module:
        raise ValueError("not here")


@pytest.mark.parametrize("is_sequence", [False, True])
def test_a_hook_that_cannot_be_appended_leaves_the_one_before(is_sequence: bool) -> None:
    layer = nn.Linear(2, 2)
    x = torch.ones(1, 2)
    want, values = layer(x), layer.weight.detach().clone()
    hook: Any = planner.AlignDevicesHook("cpu", offload=True)
    if is_sequence:
        hook = planner.SequentialHook(planner.ModelHook(), hook)
    planner.add_hook_to_module(layer, hook)
    with pytest.raises(ValueError, match="not here"):
        planner.add_hook_to_module(layer, Unwilling(), append=True)
    assert layer._hf_hook is hook and layer.weight.is_meta and layer(x).equal(want)
    planner.remove_hook_from_module(layer)
    assert layer.weight.equal(values) and not vars(layer).keys() & {
        "forward",
        "_old_forward",
        "__reduce_ex__",
    }

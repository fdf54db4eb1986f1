"""What the caller owns stays the caller's: parameters, ties, empty slots, attributes, memory."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.utils.parametrizations import weight_norm

import planner
from planner import OffloadError
from planner.dispatching.tensors.placeholder import is_offloaded
from rig import Accelerators

X = torch.linspace(-1, 1, 8).reshape(2, 4)
MIXED: dict[str, Any] = {"0": 0, "1": "cpu"}
COPIED_AHEAD: dict[str, Any] = {"execution_map": {"": 0}, "staging_bytes": {0: 10**6}}


def pair() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))


def expected(model: nn.Module) -> torch.Tensor:
    """What the undispatched model gives."""
    answer: torch.Tensor = copy.deepcopy(model).to(0)(X.to(0)).cpu()
    return answer


def again(model: nn.Module) -> nn.Module:
    return planner.dispatch(model, {"": 0})


ENDS: dict[str, Callable[[nn.Module], nn.Module]] = {"undispatch": planner.undispatch, "dispatch": again}


@pytest.mark.parametrize("is_dispatched_again", [False, True])
def test_a_tie_that_was_broken_by_hand_stays_broken(is_dispatched_again: bool) -> None:
    """`nn.Parameter(weight.clone())` is how people untie, so the values are equal."""
    model = pair()
    model[1].weight = model[0].weight
    planner.dispatch(model, {"": 0})
    mine = model[1].weight = nn.Parameter(model[1].weight.detach().clone())
    if is_dispatched_again:
        planner.dispatch(model, {"0": 0, "1": 1})
    planner.undispatch(model)
    assert model[1].weight is mine and model[0].weight is not mine


def test_a_tie_that_was_broken_over_two_devices_stays_broken() -> None:
    model = pair()
    model[1].weight = model[0].weight
    planner.dispatch(model, {"0": 0, "1": 1})
    mine = model[1].weight = nn.Parameter(model[1].weight.detach().clone())
    planner.undispatch(model)
    assert model[1].weight is mine and model[0].weight is not mine


@torch.no_grad()
def test_a_slot_that_was_emptied_stays_empty() -> None:
    plain, model = pair(), planner.dispatch(pair(), MIXED)
    plain[1].bias = None
    model[1].bias = None
    for _ in range(2):
        assert model(X).equal(expected(plain))
        assert model[1].bias is None
    assert planner.undispatch(model)[1].bias is None
    assert expected(model).equal(expected(plain))


class Once(nn.Module):
    """Uses a buffer in the first forward only."""

    def __init__(self, is_deleted: bool) -> None:
        super().__init__()
        self.is_deleted = is_deleted
        self.weight = nn.Parameter(torch.full((4,), 2.0))
        self.register_buffer("first", torch.ones(4))
        self.register_buffer("last", torch.full((4,), 3.0))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if getattr(self, "first", None) is not None:
            x = x + self.first
            if self.is_deleted:
                del self.first
            else:
                self.first = None
        return x * self.weight + self.last


@pytest.mark.parametrize("is_deleted", [False, True])
@torch.no_grad()
def test_what_a_forward_gives_up_does_not_come_back(
    is_deleted: bool, virtual_accelerators: Accelerators
) -> None:
    model = nn.Sequential(Once(is_deleted), nn.Linear(4, 4))
    plain = copy.deepcopy(model).to(0)
    wanted = [plain(X.to(0)).cpu() for _ in range(3)]
    planner.dispatch(model, {"0": "cpu", "1": 0}, offload_buffers=True)
    used_bytes = virtual_accelerators.used_bytes(0)
    for want in wanted:
        assert model(X).equal(want)
        assert all(is_offloaded(t) for t in (model[0].weight, model[0].last))
    assert virtual_accelerators.used_bytes(0) == used_bytes
    planner.undispatch(model)
    assert ("first" in model[0]._buffers) is not is_deleted
    assert getattr(model[0], "first", None) is None


@torch.no_grad()
def test_a_weight_can_be_reparametrised_while_it_is_aligned() -> None:
    plain, model = pair(), planner.dispatch(pair(), MIXED)
    weight_norm(plain[1])
    with planner.align_module_device(model[1]):
        weight_norm(model[1])
    assert {name for name, _ in model.named_parameters()} == {name for name, _ in plain.named_parameters()}
    planner.undispatch(model)
    assert expected(model).equal(expected(plain))


@pytest.mark.parametrize("device", ["cpu", "virtual:0"])
@pytest.mark.parametrize("end", ENDS)
def test_an_assigned_parameter_is_the_callers_own_in_the_end(end: str, device: str) -> None:
    model = planner.dispatch(pair(), MIXED)
    mine = model[1].weight = nn.Parameter(torch.randn(4, 4, device=device))
    ENDS[end](model)
    assert model[1].weight is mine and mine.is_leaf and mine.requires_grad
    assert mine.device.type == ("cpu" if end == "undispatch" else "virtual")
    copy.deepcopy(model)(X.to(mine.device)).sum().backward()


@pytest.mark.parametrize("device", ["cpu", "virtual:0"])
@torch.no_grad()
def test_an_assigned_parameter_stays_where_it_was_put(device: str) -> None:
    plain, model = pair(), planner.dispatch(pair(), MIXED)
    values = torch.randn(4, 4)
    plain[1].weight = nn.Parameter(values.clone())
    mine = model[1].weight = nn.Parameter(values.to(device))
    for _ in range(2):
        assert model(X).equal(expected(plain))
        assert model[1].weight is mine and mine.device == torch.device(device)
        assert is_offloaded(model[1].bias)


@pytest.fixture
def swapped_tensors() -> Any:
    torch.__future__.set_swap_module_params_on_conversion(True)
    yield
    torch.__future__.set_swap_module_params_on_conversion(False)


@pytest.mark.usefixtures("swapped_tensors")
@torch.no_grad()
def test_weights_that_are_swapped_in_are_computed_with() -> None:
    """torch leaves the object in the slot and exchanges what it is."""
    model, plain = planner.dispatch(pair(), MIXED), pair()
    loaded = {"weight": torch.full((4, 4), 0.5), "bias": torch.zeros(4)}
    plain[1].load_state_dict(loaded)
    model[1].load_state_dict(loaded, assign=True)
    for _ in range(2):
        assert model(X).equal(expected(plain))
    assert planner.state_dict(model)["1.weight"].equal(loaded["weight"])


@pytest.mark.parametrize("end", ENDS)
def test_the_modules_own_attributes_come_back(end: str) -> None:
    model, calls = pair(), []
    model.to = lambda *args, **kwargs: calls.append(args)  # type: ignore[method-assign,assignment]
    model[1]._apply = lambda *args, **kwargs: model[1]  # type: ignore[method-assign]
    model.hf_device_map = {"": "cpu"}  # type: ignore[assignment]
    before = [dict(vars(module)) for module in model.modules()]
    planner.dispatch(model, MIXED)
    model.to(torch.float32)
    assert calls == [(torch.float32,)]
    if end == "dispatch":
        planner.dispatch(model, {"0": 1, "1": "cpu"})
    planner.undispatch(model)
    for was, module in zip(before, model.modules(), strict=True):
        assert vars(module).keys() == was.keys()
        assert all(vars(module)[key] is was[key] for key in was.keys() - {"_parameters"})


def three() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(*[nn.Linear(4, 4) for _ in range(3)]).requires_grad_(False)


def test_pinned_memory_is_given_back_and_views_stay_views(virtual_accelerators: Accelerators) -> None:
    model = three()
    views = [parameter.view(-1) for parameter in model.parameters()]
    alone, values = three(), [view.clone() for view in views]
    for each in (model, alone):
        for _ in range(2):
            planner.dispatch(each, {"": "cpu"}, **COPIED_AHEAD)
            for _ in range(3):
                each(X)
            assert (virtual_accelerators.pinned_bytes() > 0) is (each is alone)
            planner.undispatch(each)
            assert virtual_accelerators.pinned_bytes() == 0
            assert not any(parameter.is_pinned() for parameter in each.parameters())
    for view, parameter, value in zip(views, model.parameters(), values, strict=True):
        assert view.data_ptr() == parameter.data_ptr() and view.equal(value)


def test_where_no_memory_can_be_pinned_nothing_is_copied_ahead(monkeypatch: pytest.MonkeyPatch) -> None:
    model = three()
    want = expected(model)
    planner.dispatch(model, {"": "cpu"}, **COPIED_AHEAD)

    def no_room(*_: Any, **__: Any) -> None:
        raise RuntimeError("cudaHostAlloc: out of memory")

    monkeypatch.setattr(torch.Tensor, "pin_memory", no_room)
    assert all(model(X).equal(want) for _ in range(3))


@pytest.mark.parametrize("end", ENDS)
def test_a_layer_that_was_copied_in_goes_with_the_dispatch(end: str) -> None:
    model, plain = pair().requires_grad_(False), pair().requires_grad_(False)
    for each in (model, plain):
        if each is model:
            planner.dispatch(model, MIXED)
        each.append(copy.deepcopy(each[1]))
    want = expected(plain)
    assert model(X).equal(want)
    if end == "dispatch":
        planner.dispatch(model, {"0": 1, "1": 1, "2": "cpu"})
        assert model(X).equal(want)
    planner.undispatch(model)
    assert not any(is_offloaded(parameter) for parameter in model.parameters())
    assert not any(
        vars(module).keys() & {"forward", "_hf_hook", "_apply", "__reduce_ex__"} for module in model.modules()
    )
    assert model.to(0)(X.to(0)).cpu().equal(want)


@pytest.mark.parametrize("end", ENDS)
def test_a_later_hook_is_all_that_stays(end: str) -> None:
    """Appending attaches the dispatch's own hook anew, with an override of its own for copies."""
    model = pair()
    before = [set(vars(module)) for module in model.modules()]
    planner.cpu_offload(model, 0)
    planner.add_hook_to_module(model[1], planner.ModelHook(), append=True)
    model(X)
    planner.undispatch(model)
    planner.remove_hook_from_submodules(model)
    if end == "dispatch":
        planner.dispatch(model, MIXED)
        planner.undispatch(model)
    assert [set(vars(module)) for module in model.modules()] == before


@pytest.mark.parametrize("device", [1, "cpu"])
@pytest.mark.parametrize("is_removed", [False, True])
def test_a_hook_of_the_dispatch_that_was_attached_anew_goes_with_it(is_removed: bool, device: Any) -> None:
    model = pair().requires_grad_(False)
    before, want = [set(vars(module)) for module in model.modules()], expected(model)
    planner.dispatch(model, {"0": 0, "1": device})
    hook = model[1]._hf_hook
    if is_removed:
        planner.remove_hook_from_module(model[1])
    planner.add_hook_to_module(model[1], hook)
    planner.undispatch(model)
    assert [set(vars(module)) for module in model.modules()] == before
    assert model(X).equal(want)


class Lazy(nn.Module):
    """Makes a buffer where its first argument lies."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(4), requires_grad=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if "seen" not in self._buffers:
            self.register_buffer("seen", torch.zeros(4, device=x.device))
        self.seen += 1
        return x * self.weight + self.seen


@pytest.mark.parametrize("lies_on", [0, "cpu"])
@pytest.mark.parametrize("end", ENDS)
def test_tensors_that_were_made_meanwhile_go_home_with_their_neighbours(end: str, lies_on: Any) -> None:
    model = nn.Sequential(Lazy(), nn.Linear(4, 4))
    planner.dispatch(model, {"0": lies_on, "1": 1})
    model(X)
    model.add_module("2", nn.Linear(4, 4, device=1))
    if end == "dispatch":
        planner.dispatch(model, {"0": 1, "1": "cpu", "2": "cpu"}, offload_buffers=True)
    planner.undispatch(model)
    assert {tensor.device.type for tensor in (*model.parameters(), *model.buffers())} == {"cpu"}
    assert model[0].seen.tolist() == [1.0] * 4
    assert model(X).shape == (2, 4)


def test_an_undispatch_that_fails_thaws_nothing(virtual_accelerators: Accelerators) -> None:
    model = three().requires_grad_(True).to(0)
    own = list(model.parameters())
    planner.dispatch(model, {"0": "cpu", "1": "cpu", "2": 0}, execution_map={"": 0})
    model.requires_grad_(False)
    before = [parameter.requires_grad for parameter in own]
    with virtual_accelerators.out_of_memory_after(0, 1), pytest.raises(torch.OutOfMemoryError):
        planner.undispatch(model)
    assert [parameter.requires_grad for parameter in own] == before
    planner.undispatch(model)
    assert not any(parameter.requires_grad for parameter in own)
    assert all(now is first for now, first in zip(model.parameters(), own, strict=True))


@pytest.mark.parametrize("end", ENDS)
def test_a_stand_in_that_somebody_has_kept_raises_by_name(end: str) -> None:
    model = planner.dispatch(pair(), MIXED, outside="fetch")
    kept = model[1].weight
    ENDS[end](model)
    with pytest.raises(OffloadError, match=r"'1\.weight'"):
        kept.sum()


def taken_apart(outer: nn.Module, how: str) -> None:
    if how == "undispatch":
        planner.undispatch(outer[0])
    else:
        planner.dispatch(outer[0], {"": "cpu"})


@pytest.mark.parametrize("how", ["undispatch", "dispatch"])
@pytest.mark.parametrize("make", [lambda model: model, copy.deepcopy], ids=["itself", "copied"])
@pytest.mark.parametrize(
    "outer_map", [{"0": 0, "1": 1}, {"0": "cpu", "1": 1}, {"0.0": 0, "0.1": "cpu", "1": 1}]
)
def test_a_part_of_a_dispatched_model_is_not_taken_apart(outer_map: Any, make: Any, how: str) -> None:
    torch.manual_seed(0)
    plain = nn.Sequential(pair(), nn.Linear(4, 4)).requires_grad_(False)
    x = torch.ones(2, 4)
    want = copy.deepcopy(plain).to(0)(x.to(0)).cpu()
    outer = make(planner.dispatch(plain, outer_map))
    with pytest.raises(planner.PlanMismatchError, match="part of a larger model"):
        taken_apart(outer, how)
    assert outer(x).cpu().equal(want)
    planner.undispatch(outer)
    assert {p.device.type for p in outer.parameters()} == {"cpu"}
    assert not any("forward" in vars(m) or "_apply" in vars(m) for m in outer.modules())

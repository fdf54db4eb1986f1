"""A dispatched model keeps its parameters' identity, and an undispatched one keeps nothing of the dispatch."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import planner
from planner.dispatching.tensors.placeholder import is_offloaded
from rig import Accelerators

TWO = {"0": 0, "1": 1}
MIXED = {"0": 0, "1": "cpu"}


def pair() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))


@pytest.mark.parametrize("device_map", [{"": 0}, TWO])
def test_an_optimizer_made_before_dispatching_trains(device_map: dict[str, Any]) -> None:
    model = pair()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    planner.dispatch(model, device_map)
    before = [p.detach().cpu().clone() for p in model.parameters()]
    model(torch.ones(2, 3).to("virtual:0")).sum().backward()
    optimizer.step()
    assert all(not p.cpu().equal(old) for p, old in zip(model.parameters(), before, strict=True))


@pytest.mark.parametrize("device_map", [{"": 0}, TWO, MIXED])
def test_undispatching_gives_back_the_parameters(device_map: dict[str, Any]) -> None:
    model = pair()
    own = list(model.parameters())
    values = [p.detach().clone() for p in own]
    planner.undispatch(planner.dispatch(model, device_map))
    assert all(now is first for now, first in zip(model.parameters(), own, strict=True))
    assert all(now.equal(first) for now, first in zip(model.parameters(), values, strict=True))
    assert {p.device.type for p in own} == {"cpu"}


@pytest.mark.parametrize("device_map", [{"": 0}, TWO])
def test_a_gradient_goes_with_its_parameter_and_comes_back_with_it(device_map: dict[str, Any]) -> None:
    model = pair()
    own = list(model.parameters())
    for number, parameter in enumerate(own):
        parameter.grad = torch.full_like(parameter, number)
    for change in (lambda: planner.dispatch(model, device_map), lambda: planner.undispatch(model)):
        change()
        for number, parameter in enumerate(own):
            assert parameter.grad is not None
            assert parameter.grad.device == parameter.device
            assert parameter.grad.eq(number).all()


def test_a_failure_moves_parameters_back(monkeypatch: pytest.MonkeyPatch) -> None:
    from planner.dispatching.install.prepare import Prepared

    model = pair()
    model[0].weight.grad = torch.ones(3, 3)
    own = list(model.parameters())

    def fail(*_: Any) -> None:
        raise MemoryError

    monkeypatch.setattr(Prepared, "_install", fail)
    with pytest.raises(MemoryError):
        planner.dispatch(model, TWO)
    assert all(now is first for now, first in zip(model.parameters(), own, strict=True))
    assert {p.device.type for p in own} == {"cpu"}
    assert own[0].grad is not None
    assert own[0].grad.device.type == "cpu"


def test_a_wrapped_forward_does_nothing_after_undispatching() -> None:
    model = pair()
    x = torch.ones(2, 3)
    want = model(x)
    planner.dispatch(model, MIXED)
    inner = model[1].forward
    model[1].forward = lambda value: inner(value)
    planner.undispatch(model)
    assert model(x).equal(want)
    assert not any(is_offloaded(p) for p in model.parameters())


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.start = nn.Linear(3, 3)
        self.rnn = nn.RNN(3, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        output: torch.Tensor = self.rnn(self.start(x))[0]
        return output


@pytest.mark.parametrize("rnn_on", [0, 1, "cpu"])
def test_recurrent_modules_see_their_weights_where_they_are(rnn_on: Any) -> None:
    torch.manual_seed(0)
    model = Recurrent().eval().requires_grad_(False)
    x = torch.randn(2, 1, 3)
    want = model(x)
    planner.dispatch(model, {"start": 0, "rnn": rnn_on})
    for _ in range(2):
        assert torch.allclose(model(x.to("virtual:0")).cpu(), want, atol=1e-6)
        held = zip(model.rnn._flat_weights, model.rnn._parameters.values(), strict=True)
        assert all(one is other for one, other in held)
    planner.undispatch(model)
    assert torch.allclose(model(x), want, atol=1e-6)


class Layers(nn.Module):
    """Offloaded layers, called in any order, and perhaps an offloaded weight of the model's own."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1), requires_grad=False)
        self.layers = nn.ModuleList(nn.Linear(64, 64, bias=False) for _ in range(6))

    def forward(self, x: torch.Tensor, order: list[int], fail_at: int = -1) -> torch.Tensor:
        for index in order:
            if index == fail_at:
                raise RuntimeError("stop")
            x = self.layers[index](x) * self.scale.to(x.device)
        return x


BLOCK_BYTES = 64 * 64 * 4


def layers(scale_on: Any, blocks: float = 2.5) -> nn.Module:
    model = Layers().requires_grad_(False)
    device_map = {"scale": scale_on, **{f"layers.{index}": "cpu" for index in range(6)}}
    planner.dispatch(model, device_map, execution_map={"": 0}, staging_bytes={0: int(blocks * BLOCK_BYTES)})
    model(torch.ones(1, 64), list(range(6)))
    return model


def staged(model: nn.Module) -> list[str]:
    hooks = [layer._hf_hook for layer in model.layers]
    return [r.names[0] for hook in hooks for r in hook.offloaded_modules if r.staged is not None]


@pytest.mark.parametrize("scale_on", [0, "cpu"])
def test_nothing_copied_ahead_stays_when_a_model_raises(scale_on: Any) -> None:
    model = layers(scale_on)
    with pytest.raises(RuntimeError, match="stop"):
        model(torch.ones(1, 64), list(range(6)), fail_at=3)
    assert not staged(model)


def test_a_layer_called_alone_copies_nothing_ahead() -> None:
    model = layers(0)
    model.layers[0](torch.ones(1, 64))
    assert not staged(model)


def test_another_order_stays_within_the_room(virtual_accelerators: Accelerators) -> None:
    model = layers(0)
    held: list[int] = []
    for layer in model.layers:
        layer.register_forward_hook(lambda *_: held.append(virtual_accelerators.used_bytes(0)))
    model(torch.ones(1, 64), [0, 2, 4])
    assert len(held) == 3
    assert max(held) < 3 * BLOCK_BYTES


def test_arguments_cross_once_where_the_model_owns_an_offloaded_weight(
    virtual_accelerators: Accelerators,
) -> None:
    from planner.dispatching.transfer import once

    model = layers("cpu")
    seen: list[bool] = []
    model.layers[0].register_forward_pre_hook(lambda *_: seen.append(once._forwards.crossings is not None))
    model(torch.ones(1, 64), [0])
    assert seen == [True]


def write_item(w: Any) -> None:
    w[0] = 1


@pytest.mark.parametrize(
    "write",
    [
        write_item,
        lambda w: w[0].zero_(),
        lambda w: w.T.zero_(),
        lambda w: w.view(-1).zero_(),
        lambda w: write_item(w.detach()),
        lambda w: w.split(1)[1].zero_(),
    ],
)
def test_writing_through_a_view_of_a_fetched_weight_is_an_error(write: Any) -> None:
    model = pair().requires_grad_(False)
    want = model[1].weight.clone()
    planner.dispatch(model, MIXED, outside="fetch")
    weight = model[1].weight
    with torch.no_grad(), pytest.raises(planner.OffloadError):
        write(weight)
    assert (weight[0] + 0).cpu().equal(want[0])
    assert (weight.T @ torch.eye(3).to("virtual:0")).cpu().equal(want.T)
    assert [part.sum().item() for part in weight.split(1)] == [row.sum().item() for row in want]


def assign_data(w: Any) -> None:
    w.data = torch.ones(3, 3)


@pytest.mark.parametrize(
    "use", [assign_data, torch.from_dlpack, lambda w: w.__dlpack__(), lambda w: w.share_memory_()]
)
def test_other_ways_to_the_values_are_refused_by_name(use: Any) -> None:
    model = planner.dispatch(pair().requires_grad_(False), MIXED)
    with pytest.raises(planner.OffloadError, match=r"1\.weight"):
        use(model[1].weight)


def test_one_module_on_two_accelerators_is_refused() -> None:
    with pytest.raises(planner.PlanMismatchError, match="splits one Linear") as caught:
        planner.dispatch(pair(), {"0.weight": 0, "0.bias": 1, "1": 0})
    assert caught.value.findings == ("0.weight", "0.bias")


def test_hooks_that_others_put_on_later_go_with_the_dispatch() -> None:
    model = pair().requires_grad_(False)
    x = torch.ones(2, 3)
    want = model(x)
    planner.dispatch(model, MIXED)
    model.add_module("2", nn.Identity())
    for module in (model[1], model[2]):
        planner.add_hook_to_module(module, planner.AlignDevicesHook(0, io_same_device=True))
    planner.dispatch(model, {"0": 0, "1": 1, "2": 0})
    assert model(x).equal(want)
    planner.undispatch(model)
    assert not any("_hf_hook" in vars(m) or "forward" in vars(m) for m in model.modules())
    assert model(x).equal(want)

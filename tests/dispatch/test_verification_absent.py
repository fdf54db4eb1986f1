"""`verify` for cards that this machine does not have, which torch's own code asks about: kernels of cuDNN, the driver."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch._subclasses import fake_tensor

import planner
from planner.verification import verifying
from planner.verification.known_values import KnownValues

X = torch.linspace(-1, 1, 64).reshape(2, 4, 8)


class Net(nn.Module):
    def __init__(self, part: nn.Module, call: Callable[[Any, torch.Tensor], Any]) -> None:
        super().__init__()
        self.first, self.part, self.call = nn.Linear(8, 8), part, call

    def forward(self, x: torch.Tensor) -> Any:
        return self.call(self.part, self.first(x))


def packed(part: nn.Module, x: torch.Tensor) -> torch.Tensor:
    rows = nn.utils.rnn.pack_padded_sequence(x, [4, 2], batch_first=True)
    out, lengths = nn.utils.rnn.pad_packed_sequence(part(rows)[0], batch_first=True)
    assert lengths.tolist() == [4, 2] and out.shape[:2] == (2, 4)
    return out


def masked(part: nn.Module, x: torch.Tensor) -> Any:
    return part(
        x, src_key_padding_mask=torch.tensor([[False] * 4, [False, False, True, True]], device=x.device)
    )


def encoder() -> nn.Module:
    return nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 8, batch_first=True), 2)


@pytest.mark.parametrize("is_training", [True, False])
@pytest.mark.parametrize(
    "more", [{}, {"num_layers": 2, "dropout": 0.5}, {"bidirectional": True, "bias": False}]
)
@pytest.mark.parametrize("cls", [nn.LSTM, nn.GRU, nn.RNN])
def test_recurrent_layers(cls: Any, more: dict[str, Any], is_training: bool) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for call in (lambda part, x: part(x)[0], packed):
            net = Net(cls(8, 8, batch_first=True, **more), call).train(is_training)
            found = planner.verify(net, {"first": 5, "part": 7}, X)
            assert found.runs and not found.crossings, str(found)


def test_states_that_lie_apart_cross() -> None:
    class Stateful(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rnn, self.state = nn.GRU(8, 8), nn.Linear(8, 8)

        def forward(self, x: torch.Tensor) -> Any:
            return torch.gru(
                x, self.state(x[:1]), list(self.rnn.parameters()), True, 1, 0.0, False, False, False
            )[0]

    found = planner.verify(Stateful(), {"rnn": 5, "state": 6}, X)
    assert found.runs and {row.operator for row in found.crossings} == {"gru"}


NEEDS_NONE = pytest.mark.skipif(
    torch.cuda.is_available(),
    reason="with a real card, torch makes the card that a fake tensor names the current one; there are no cards 5 and 7",
)


@NEEDS_NONE
def test_what_fake_tensors_lack_is_not_blamed_on_inputs() -> None:
    assert planner.verify(Net(encoder().eval(), masked).eval(), {"first": 5, "part": 7}, X).runs
    number = Net(nn.Linear(8, 8), lambda part, x: part(x) * float(torch.ones(3).numpy().sum()))
    assert planner.verify(number, {"first": 5, "part": 7}, X).runs
    weight = Net(nn.Linear(8, 8), lambda part, x: part(x) * float(part.bias.cpu().numpy().sum()))
    assert planner.verify(weight, {"first": 5, "part": 7}, X).runs is None


def indexed(part: nn.Module, x: torch.Tensor) -> torch.Tensor:
    y = part(x)
    y[0, 1:] = 2.0
    y[..., 0] = y[..., 1] * y[0, 0, 0]
    y[[0, 1], :2] += y[torch.tensor([0, 1], device=y.device), None, 0, :]
    assert y.device.index == y[None, 0].device.index == 7
    return y


@NEEDS_NONE
def test_indexing() -> None:
    assert planner.verify(Net(nn.Linear(8, 8), indexed), {"first": 5, "part": 7}, X).runs


def test_no_real_device_is_asked_for_what_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a machine with one card: torch prepares it for fake tensors, and makes it the current one to index them."""
    prepared, seen = [], []

    def prepare(device: torch.device) -> None:
        prepared.append(device)

    def ask(known: KnownValues, func: Any, *rest: Any) -> Any:
        found = answer(known, func, *rest)
        if func is torch.ops.prim.device.default:
            seen.append(found)
        return found

    answer = KnownValues.__torch_dispatch__
    monkeypatch.setattr(fake_tensor, "init_gpu_context", prepare)
    monkeypatch.setattr(KnownValues, "__torch_dispatch__", ask)
    assert planner.verify(Net(nn.Linear(8, 8), lambda part, x: part(x)[0]), {"first": 5, "part": 7}, X).runs
    assert not [device for device in prepared if device.index in (5, 7)] and torch.device("meta") in seen
    assert fake_tensor.init_gpu_context is prepare


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a driver to ask")
def test_what_asks_the_driver_cannot_be_told() -> None:
    net = Net(
        nn.Linear(8, 8), lambda part, x: part(x) * (torch.cuda.get_device_properties(x.device).major > 7)
    )
    found = planner.verify(net, {"first": 5, "part": 7}, X)
    assert found.runs is None and "asks for what is not there" in str(found.error)


ORDINAL = "CUDA error: invalid device ordinal\nCUDA kernel errors might be asynchronously reported at some other API call"


class AcceleratorError(RuntimeError):
    """torch's has this name since 2.8; before, it was a bare RuntimeError."""


def guarded(cls: type[RuntimeError], number: int) -> Callable[[Any, torch.Tensor], Any]:
    """As torch's guard around indexing does on a machine with fewer cards."""

    def call(part: nn.Module, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = part(x)
        if y.device.type != "cpu" and y.device.index >= number:
            raise cls(ORDINAL)
        return y

    return call


@pytest.mark.parametrize("cls", [AcceleratorError, RuntimeError])
def test_a_card_that_torch_cannot_turn_to_is_named(
    cls: type[RuntimeError], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(verifying, "accelerator_count", lambda: 1)
    net = Net(nn.Linear(8, 8), guarded(cls, 1))
    found = planner.verify(net, {"first": 5, "part": 7}, X)
    assert found.runs is None and found.error is not None
    for words in (
        "the plan names [5, 7]; this machine has 1 (numbers below 1 would do)",
        "where there are 8",
        "CUDA_VISIBLE_DEVICES=''",
        f"{cls.__name__}: CUDA error: invalid device ordinal (in Net, at {__file__}:",
    ):
        assert words in found.error, found.error
    assert planner.verify(net, {"first": 0, "part": "cpu"}, X).runs


def test_a_card_that_only_the_models_code_names_is_no_fault_of_the_plan(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(verifying, "accelerator_count", lambda: 8)
    found = planner.verify(Net(nn.Linear(8, 8), guarded(AcceleratorError, 0)), {"first": 5, "part": 7}, X)
    assert found.runs is None and "its code asks for what is not there: AcceleratorError" in str(found.error)

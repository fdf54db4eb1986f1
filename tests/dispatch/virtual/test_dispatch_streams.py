"""The next offloaded block is copied while one computes: in order, within its room, and with the same answers."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

import planner
from planner.dispatching.offload.prefetch import Prefetcher
from planner.dispatching.tensors.placeholder import is_offloaded
from rig import Accelerators
from tiny_models import built, mapped

IDS = torch.arange(3, 13)[None]
OFFLOADED = mapped("llama", ("cpu", "cpu", "cpu", "cpu"))


def layer_bytes(model: nn.Module) -> int:
    return sum(p.numel() * p.element_size() for p in model.model.layers[0].parameters())


def dispatched(layers: float) -> nn.Module:
    """With room for so many layers at once."""
    model = built("llama")
    room = int(layers * layer_bytes(model))
    return planner.dispatch(model, OFFLOADED, staging_bytes={0: room})


@pytest.fixture(scope="module")
def expected() -> torch.Tensor:
    with torch.no_grad():
        logits: torch.Tensor = built("llama").to(0)(IDS.to(0)).logits.cpu()
    return logits


@torch.no_grad()
def answer(model: nn.Module) -> torch.Tensor:
    logits: torch.Tensor = model(IDS).logits
    return logits


class Staging:
    """Counts how many offloaded_modules were copied ahead."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.count = 0
        stage = Prefetcher._stage

        def counted(prefetcher: Prefetcher, *arguments: Any) -> None:
            self.count += 1
            stage(prefetcher, *arguments)

        monkeypatch.setattr(Prefetcher, "_stage", counted)


def test_one_block_is_copied_ahead_in_order(
    monkeypatch: pytest.MonkeyPatch, expected: torch.Tensor, virtual_accelerators: Accelerators
) -> None:
    staging, model = Staging(monkeypatch), dispatched(2)
    with virtual_accelerators.watch_streams():
        assert answer(model).equal(expected)
        assert staging.count == 0  # nobody knows the order yet
        for _ in range(3):
            assert answer(model).equal(expected)
    assert staging.count == 3 * 4  # the first one while the embeddings are looked up
    assert all(is_offloaded(p) for p in model.model.layers.parameters())


def test_what_is_in_use_stays_within_the_room(virtual_accelerators: Accelerators) -> None:
    """Peaks differ by one layer; between forwards nothing of either is there, and traffic is the same."""
    peaks, traffic = [], []
    for layers in (1, 2):
        model = dispatched(layers)
        answer(model)
        used_bytes = virtual_accelerators.used_bytes(0)
        virtual_accelerators.reset()
        answer(model)
        peaks.append(virtual_accelerators.peak_bytes(0) - used_bytes)
        traffic.append(virtual_accelerators.traffic().to_device_bytes)
        assert virtual_accelerators.used_bytes(0) == used_bytes
        size = layer_bytes(model)
        del model
    assert traffic[0] == traffic[1]
    assert size <= peaks[0] < 2 * size <= peaks[1] < 3 * size


@pytest.mark.usefixtures("watched_streams")
def test_gradients_with_blocks_copied_ahead() -> None:
    """Nothing is reused before backward."""
    gradients = []
    for is_spread in (False, True):
        model = built("llama").requires_grad_(False)
        model.model.embed_tokens.weight.requires_grad_(True)
        if is_spread:
            planner.dispatch(model, OFFLOADED, staging_bytes={0: 1 << 20})
            answer(model)
        else:
            model.to(0)
        model(IDS.to(0)).logits.square().mean().backward()
        gradients.append(model.model.embed_tokens.weight.grad.cpu())
    assert gradients[0].equal(gradients[1])


def test_a_forward_that_ends_early_keeps_nothing(
    expected: torch.Tensor, virtual_accelerators: Accelerators
) -> None:
    model = dispatched(2)
    answer(model)
    used_bytes = virtual_accelerators.used_bytes(0)

    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    handle = model.model.layers[1].mlp.register_forward_hook(stop)
    with pytest.raises(KeyboardInterrupt):
        answer(model)
    handle.remove()
    assert virtual_accelerators.used_bytes(0) == used_bytes
    assert answer(model).equal(expected)


def test_another_order_the_next_time(expected: torch.Tensor) -> None:
    """What was copied ahead for nothing is let go."""
    model = dispatched(2)
    answer(model)
    order = list(model.model.layers)
    with torch.no_grad():
        shuffled = built("llama").to(0)
        for layers in (model.model.layers, shuffled.model.layers):
            layers[1], layers[2] = layers[2], layers[1]
        assert answer(model).equal(shuffled(IDS.to(0), use_cache=False).logits.cpu())
    model.model.layers[1], model.model.layers[2] = order[1], order[2]
    assert answer(model).equal(expected)


class Halves(nn.Module):
    """An encoder and a decoder; with what the first has given, only the second runs."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.ModuleList(nn.Linear(64, 64) for _ in range(3))
        self.decoder = nn.ModuleList(nn.Linear(64, 64) for _ in range(3))

    def forward(self, given: torch.Tensor, is_encoded: bool = False) -> torch.Tensor:
        for layer in self.decoder if is_encoded else (*self.encoder, *self.decoder):
            given = layer(given)
        return given


@torch.no_grad()
def test_a_wrong_guess_is_gone_before_the_right_block_comes(virtual_accelerators: Accelerators) -> None:
    """As in the first decode step of an encoder-decoder model, whose encoder does not run again."""
    model = Halves()
    size_bytes = sum(p.numel() * p.element_size() for p in model.decoder[0].parameters())
    ids, alone = torch.ones(1, 64), copy.deepcopy(model)
    model.out = nn.Linear(64, 64)  # rests where it runs, so that there is an accelerator in the map
    planner.dispatch(
        model,
        {"encoder": "cpu", "decoder": "cpu", "out": 0},
        execution_map={"encoder": 0, "decoder": 0},
        staging_bytes={0: size_bytes},
    )
    assert torch.allclose(model(ids).cpu(), alone(ids))
    assert torch.allclose(model(ids).cpu(), alone(ids))
    used_bytes = virtual_accelerators.used_bytes(0)
    virtual_accelerators.reset()
    # The guess when a forward begins is the encoder's first layer.
    for _ in range(2):
        assert torch.allclose(model(ids, is_encoded=True).cpu(), alone(ids, is_encoded=True))
    assert virtual_accelerators.peak_bytes(0) - used_bytes < 1.2 * size_bytes


def test_no_room_after_all(expected: torch.Tensor, virtual_accelerators: Accelerators) -> None:
    """Where the room that was said is not there, blocks are no longer copied ahead, and nothing fails."""
    model = dispatched(2)
    answer(model)
    room = model._hf_hook.prefetcher.room_bytes
    limit = virtual_accelerators.used_bytes(0) + int(1.6 * layer_bytes(model))
    with torch.no_grad(), virtual_accelerators.memory_limit_bytes(0, limit):
        model(IDS[:, :2])
    assert room == {torch.device(0): 0}
    assert answer(model).equal(expected)


def test_resting_weights_are_pinned_and_copies_are_independent(expected: torch.Tensor) -> None:
    model = dispatched(2)
    for _ in range(2):
        answer(model)
    resting = model.model.layers[2].mlp.up_proj._hf_hook.weights_map["weight"]
    assert resting.is_pinned() and isinstance(resting, nn.Parameter)
    twin = copy.deepcopy(model)
    assert answer(twin).equal(expected) and answer(twin).equal(expected)
    planner.undispatch(model)
    assert model.model.layers[2].mlp.up_proj.weight.device == torch.device("cpu")
    assert answer(twin).equal(expected)


@torch.no_grad()
def test_views_of_one_storage_are_not_pinned_apart() -> None:
    """Optimizers with flat parameters write to all of them through one tensor."""
    model = nn.Sequential(*(nn.Linear(4, 4, bias=False) for _ in range(3)))
    flat = torch.arange(32.0)
    model[0].weight.data, model[1].weight.data = flat[:16].view(4, 4), flat[16:].view(4, 4)
    planner.dispatch(model, dict.fromkeys("012", "cpu"), execution_map={"": 0}, staging_bytes={0: 10**6})
    x = torch.ones(1, 4)
    for _ in range(2):  # the first one tells the order
        model(x)
    resting = [layer._hf_hook.weights_map["weight"] for layer in model]
    assert [tensor.is_pinned() for tensor in resting] == [False, False, True]
    flat.zero_()
    assert model(x).count_nonzero() == 0
    planner.undispatch(model)
    assert [layer.weight.count_nonzero().item() for layer in model[:2]] == [0, 0]


def test_a_plan_says_how_much_room_there_is() -> None:
    model = built("llama")
    total = sum(p.nbytes for p in model.parameters())
    size = layer_bytes(model)
    for blocks, wants_prefetching in ((1, False), (2, True)):
        spread = built("llama")
        plan = planner.plan(
            spread, max_memory={0: total - (3 - blocks) * size, "cpu": total}, staging_blocks=blocks
        )
        assert "cpu" in plan.device_map.values()
        planner.dispatch(spread, plan)
        rows = {row.id: row for row in plan.devices}
        room = rows[0].reserved_bytes + rows[0].free_bytes
        assert (room >= 2 * size) == wants_prefetching or len(plan.execution_map) < 2
        if len(plan.execution_map) >= 2:
            prefetcher = spread._hf_hook.prefetcher
            assert prefetcher.room_bytes[torch.device(0)] == room


def test_device_maps_copy_nothing_ahead_unless_told() -> None:
    assert planner.dispatch(built("llama"), OFFLOADED)._hf_hook.prefetcher is None

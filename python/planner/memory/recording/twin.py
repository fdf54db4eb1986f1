"""A model's structure on the meta device: its modules in copies, none of its bytes."""

from __future__ import annotations

from collections.abc import Callable, Container, Sequence
from typing import Any

import torch
from torch import nn

from planner.errors import RecordingError
from planner.memory.recording.copies import copied
from planner.memory.recording.recorder import Recorder

__all__ = ["bordered", "places_of", "twin_of", "weights_of"]


def twin_of(model: nn.Module) -> nn.Module:
    """A copy of a model without its bytes.

    Args:
        model: only looked at.

    Raises:
        RecordingError: something in it refuses to be copied, or it is dispatched.

    Guarantee: tied tensors are one tensor in the copy, too.
    """
    memo: dict[int, Any] = {}
    for tensor in _tensors(model):
        memo[id(tensor)] = _on_meta(tensor)
    if "_hf_hook" in vars(model) or "hf_device_map" in vars(model):
        raise RecordingError(
            f"this {type(model).__name__} is dispatched; record it before that, or after planner.undispatch(model)",
            block="",
            operator="",
        )
    try:
        twin: nn.Module = copied(model, memo)
    except Exception as error:
        raise RecordingError(
            f"a {type(model).__name__} cannot be recorded, because something in it refuses to be copied: {error}",
            block="",
            operator="",
        ) from error
    return twin.eval().requires_grad_(False)


def _tensors(model: nn.Module) -> list[torch.Tensor]:
    return [*model.parameters(), *model.buffers()]


def _on_meta(tensor: torch.Tensor) -> torch.Tensor:
    made = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="meta")
    return nn.Parameter(made, requires_grad=False) if isinstance(tensor, nn.Parameter) else made


def places_of(blocks: Sequence[str]) -> dict[str, int]:
    """By name of a block, its place; that of the inputs is 0."""
    return {name: place for place, name in enumerate(blocks, start=1)}


def weights_of(twin: nn.Module, blocks: Sequence[str]) -> dict[int, int]:
    """By storage of a weight, the place of the first block that has it; 0 where no block does."""
    places, found = places_of(blocks), dict[int, int]()
    named = [*twin.named_parameters(remove_duplicate=False), *twin.named_buffers(remove_duplicate=False)]
    for name, tensor in named:
        key = tensor.untyped_storage()._cdata
        found[key] = found.get(key) or _nearest(name, places)
    return found


def _nearest(name: str, places: dict[str, int]) -> int:
    while name:
        if name in places:
            return places[name]
        name = name.rpartition(".")[0]
    return 0


def bordered(twin: nn.Module, blocks: Sequence[str], recorder: Recorder, skip: Container[str]) -> None:
    """Tells the recorder of each call of a block."""
    modules = dict(twin.named_modules(remove_duplicate=False))
    seen: set[int] = set()
    for name, place in places_of(blocks).items():
        module = modules.get(name)  # some blocks are single tensors
        if module is not None and id(module) not in seen:
            seen.add(id(module))
            module.__dict__["forward"] = _told(module.forward, place, recorder, skip)


def _told(
    forward: Callable[..., Any], place: int, recorder: Recorder, skip: Container[str]
) -> Callable[..., Any]:
    def told(*args: Any, **kwargs: Any) -> Any:
        before = recorder.place
        recorder.enter(place, (args, kwargs), skip)
        try:
            return forward(*args, **kwargs)
        finally:
            recorder.leave(place, before)

    return told

"""A model's structure on the meta device: its modules in copies, none of its bytes."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from collections.abc import Container as Keys
from typing import Any

import torch
from torch import nn

from planner.errors import RecordingError
from planner.memory.recording.copies import copied
from planner.memory.recording.recorder import Recorder
from planner.memory.tape import Enclosing

__all__ = ["bordered", "enclosing_of", "places_of", "twin_of", "weights_of"]


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
    except MemoryError:
        raise
    except Exception as error:
        raise RecordingError(
            f"a {type(model).__name__} cannot be recorded, because something in it refuses to be copied: {error}",
            block="",
            operator="",
        ) from error
    return twin.eval()


def _tensors(model: nn.Module) -> list[torch.Tensor]:
    return [*model.parameters(), *model.buffers()]


def _on_meta(tensor: torch.Tensor) -> torch.Tensor:
    made = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="meta")
    # Whether a weight asks for gradients decides how it is multiplied, also where none are kept.
    return nn.Parameter(made, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else made


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


def _nearest(name: str, places: Mapping[str, int]) -> int:
    while name:
        if name in places:
            return places[name]
        name = name.rpartition(".")[0]
    return 0


def enclosing_of(twin: nn.Module, blocks: Sequence[str]) -> list[tuple[nn.Module, Enclosing]]:
    """Modules outside of blocks that can be called and hold tensors: they have borders.

    That of the whole model brings its arguments somewhere else than its caller only where it has tensors of its own.
    """
    places, found = places_of(blocks), []
    for name, module in twin.named_modules():
        if name in places or _nearest(name, places) or type(module).forward is nn.Module.forward:
            continue
        inside = sorted({_nearest(each, places) for each in _tensor_names(module, name)})
        own = next((_nearest(each, places) for each in _own_names(module, name)), None)
        if inside and (name or own is not None):
            found.append((module, Enclosing(tuple(inside), own)))
    return found


def _tensor_names(module: nn.Module, name: str, *, is_deep: bool = True) -> Iterator[str]:
    for named in (module.named_parameters, module.named_buffers):
        yield from (each for each, _ in named(name, recurse=is_deep, remove_duplicate=False))


def _own_names(module: nn.Module, name: str) -> Iterator[str]:
    """Names of the tensors that a module uses itself: its own, and those in lists of parameters."""
    yield from _tensor_names(module, name, is_deep=False)
    for key, child in module.named_children():
        if type(child).forward is nn.Module.forward and not child._modules:
            yield from _tensor_names(child, f"{name}.{key}" if name else key, is_deep=False)


def bordered(
    twin: nn.Module,
    blocks: Sequence[str],
    enclosing: Sequence[tuple[nn.Module, Enclosing]],
    recorder: Recorder,
    skip: Keys[str],
) -> None:
    """Tells the recorder of each call of a block, and of a module around blocks."""
    for number, (around, _) in enumerate(enclosing):
        around.__dict__["forward"] = _around(around.forward, number, recorder, skip)
    modules = dict(twin.named_modules(remove_duplicate=False))
    seen: set[int] = set()
    for name, place in places_of(blocks).items():
        for module in _called(modules.get(name)):
            if id(module) not in seen:
                seen.add(id(module))
                module.__dict__["forward"] = _told(module.forward, place, recorder, skip)


def _called(module: nn.Module | None) -> Iterator[nn.Module]:
    """The modules whose calls run a block: itself; of a list of modules, which nobody calls, those in it; of a single tensor, none."""
    if module is None:
        return
    if type(module).forward is not nn.Module.forward or "forward" in vars(module):
        yield module
        return
    for child in module.children():
        yield from _called(child)


def _around(
    forward: Callable[..., Any], number: int, recorder: Recorder, skip: Keys[str]
) -> Callable[..., Any]:
    @functools.wraps(forward)
    def around(*args: Any, **kwargs: Any) -> Any:
        if recorder.place is not None:
            return forward(*args, **kwargs)
        before = recorder.call(number, (args, kwargs), skip)
        try:
            return forward(*args, **kwargs)
        finally:
            recorder.returned(before)

    return around


def _told(forward: Callable[..., Any], place: int, recorder: Recorder, skip: Keys[str]) -> Callable[..., Any]:
    @functools.wraps(forward)
    def told(*args: Any, **kwargs: Any) -> Any:
        before = recorder.place
        recorder.enter(place, (args, kwargs), skip)
        try:
            return forward(*args, **kwargs)
        except Exception as error:
            recorder.fail(error, place)
            raise
        finally:
            recorder.leave(place, before)

    return told

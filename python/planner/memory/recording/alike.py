"""Layers that are alike are recorded three times: what others of them do is written down as those did it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from functools import wraps
from typing import Any, Final

import torch
from torch import nn
from torch.utils._python_dispatch import _disable_current_modes

from planner.memory.recording.described import (
    Described,
    NotPlainError,
    Spec,
    described,
    layout_of,
    number_in,
    rebuilt,
    structure_of,
)
from planner.memory.recording.recorder import Recorder
from planner.memory.recording.values import is_cache
from planner.memory.tape import FREE, MADE

__all__ = ["AlikeLayers", "UnlikeError"]

# How often one is run before it is taken for what all do.
_RUNS: Final = 2


class UnlikeError(Exception):
    """Layers that were taken for alike are not."""


@dataclass(frozen=True, slots=True)
class _Call:
    """What one call of a block has done, without the numbers of what was there before.

    Args:
        steps: ("made", storage, bytes, operator), ("free", storage), or ("drop", storage that was handed in).
        outlives: storages that it has made and that are there afterwards.
        result: what it returned.
        kept: attributes of the caches' layers afterwards.
    """

    steps: tuple[tuple[Any, ...], ...]
    outlives: frozenset[int]
    result: Spec
    kept: Spec


class AlikeLayers:
    """Calls blocks of one recording; of those that are alike and are called alike, only some are run.

    Two calls are alike where the blocks have equal structures, the arguments equal descriptions, and the layer of the cache that is
    theirs, too. The first two and the last are run, and what these do has to be equal.

    Guarantee: the events are those of running all; or :class:`UnlikeError`, after which all have to be run. What is not seen: a class
        that computes otherwise in some layer in the middle by its number alone.
    """

    def __init__(self, recorder: Recorder) -> None:
        self._recorder = recorder
        self._structures: dict[int, Hashable] = {}
        self._last: dict[Hashable, int] = {}
        self._known: dict[Hashable, tuple[_Call | None, int]] = {}

    def stand_in(self, twin: nn.Module, blocks: Sequence[str]) -> None:
        """Puts itself in the place of the forwards of blocks that have enough others like them."""
        modules = dict(twin.named_modules(remove_duplicate=False))
        shared = Counter(id(modules[name]) for name in blocks if name in modules)
        for place, name in enumerate(blocks, start=1):
            if name in modules and shared[id(modules[name])] == 1:
                structure = self._structure(modules[name], place)
                if structure is not None:
                    self._structures[place] = structure
                    self._last[structure] = place
        count = Counter(self._structures.values())
        for place, structure in self._structures.items():
            if count[structure] > _RUNS + 1:
                module = modules[blocks[place - 1]]
                module.__dict__["forward"] = self._instead(module, place, module.forward)

    def _instead(self, module: nn.Module, place: int, forward: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(forward)
        def instead(*args: Any, **kwargs: Any) -> Any:
            return self._called(module, place, forward, args, kwargs)

        return instead

    def _structure(self, module: nn.Module, place: int) -> Hashable | None:
        return structure_of(module, lambda tensor: self._recorder.is_weight_of(tensor, place))

    def _called(
        self, module: nn.Module, place: int, forward: Callable[..., Any], args: Any, kwargs: Any
    ) -> Any:
        """What the forward of a block returns."""
        structure = self._structures[place]
        try:
            found = _Found(self._recorder, module, place, args, kwargs)
        except NotPlainError:
            return forward(*args, **kwargs)
        key = (structure, found.key)
        known, runs = self._known.get(key, (None, 0))
        is_last = place == self._last[structure]
        if known is not None and runs >= _RUNS and not is_last:
            return _repeated(self._recorder, found, known)
        found.watch()
        begun = len(self._recorder.events), self._recorder.storages, len(self._recorder.assumed)
        result = forward(*args, **kwargs)
        is_same = self._structure(module, place) == structure and len(self._recorder.assumed) == begun[2]
        call = (
            _call_of(self._recorder, found, result, *begun[:2]) if is_same and found.is_as_it_was() else None
        )
        if runs and call != known:
            if runs >= _RUNS and known is not None:
                raise UnlikeError
            call = None
        self._known[key] = (call, runs + 1)
        return result


class _Found:
    """What a call finds: its arguments, and its layer of the caches among them. Holds no tensor but by these.

    Raises:
        NotPlainError: there is something else.
    """

    def __init__(self, recorder: Recorder, module: nn.Module, place: int, args: Any, kwargs: Any) -> None:
        self.place = place
        self.here = recorder.numbers.device(place)
        self._arguments = (args, kwargs)
        self.caches: dict[int, Any] = {}
        self.given = Described()
        said = described(self._arguments, self.here, lambda value: self._argument(value, self.given))
        self.argument_count = len(self.given.tensors)
        self.layers = [self._layer_of(cache, number_in(module)) for cache in self.caches.values()]
        kept = described(self.kept(), self.here, self.given.tensor)
        self.key: Spec = (said, kept, *map(type, self.layers))
        self.numbers = [recorder.number_of(storage) for storage in self.given.storages]
        self._said = said
        self._others: list[Any] = []

    def kept(self) -> list[dict[str, Any]]:
        """What the layers of the caches have."""
        return [vars(layer) for layer in self.layers]

    def watch(self) -> None:
        """Remembers what a call should leave as it is, but for its arguments."""
        self._others = self._other_layers()

    def is_as_it_was(self) -> bool:
        """Whether the arguments are, and the caches' other layers."""
        again = Described()
        try:
            said = described(self._arguments, self.here, lambda value: self._argument(value, again))
        except NotPlainError:
            return False
        before = [each() for each in self.given.tensors[: self.argument_count]]
        after = [each() for each in again.tensors]
        is_same = len(before) == len(after) and all(a is b for a, b in zip(before, after, strict=True))
        return is_same and said == self._said and self._others == self._other_layers()

    def _argument(self, value: Any, given: Described) -> Spec:
        if not is_cache(value):
            return given.tensor(value)
        self.caches.setdefault(id(value), value)
        return ("cache", list(self.caches).index(id(value)))

    def _layer_of(self, cache: Any, number: int | None) -> Any:
        layers = getattr(cache, "layers", None)
        if number is None or type(layers) is not list or number >= len(layers):
            raise NotPlainError
        return layers[number]

    def _other_layers(self) -> list[Any]:
        mine = set(map(id, self.layers))
        return [
            [
                (id(layer), [(key, id(value)) for key, value in vars(layer).items()])
                for layer in cache.layers
                if id(layer) not in mine
            ]
            + [(key, id(value)) for key, value in vars(cache).items()]
            for cache in self.caches.values()
        ]


def _call_of(recorder: Recorder, found: _Found, result: Any, start: int, first: int) -> _Call | None:
    """What a call has done; None where it has done something that is not known how to repeat.

    Args:
        start: events before it.
        first: storages before it.
    """
    outlives: set[int] = set()
    objects: dict[int, int] = {}

    def other(value: Any) -> Spec:
        if not isinstance(value, torch.Tensor):
            raise NotPlainError
        known = found.given.number_of(value)
        if known is not None:
            return ("given", known)
        number = recorder.number_of(value.untyped_storage()._cdata)
        if number is None or number < first:
            raise NotPlainError
        outlives.add(number - first)
        return ("new", number - first, objects.setdefault(id(value), len(objects)), *layout_of(value))

    try:
        made = described(result, found.here, other)
        kept = described(found.kept(), found.here, other)
    except NotPlainError:
        return None
    steps: list[tuple[Any, ...]] = []
    alive: set[int] = set()
    for event in recorder.events[start:]:
        number = event[1] - first
        if event[0] == MADE and event[3] == found.place:
            alive.add(number)
            steps.append(("made", number, event[2], event[4]))
        elif event[0] == FREE and number >= 0:
            alive.discard(number)
            steps.append(("free", number))
        elif event[0] == FREE and event[1] in found.numbers:
            steps.append(("drop", found.numbers.index(event[1])))
        else:
            return None
    return _Call(tuple(steps), frozenset(outlives), made, kept) if alive == outlives else None


def _repeated(recorder: Recorder, found: _Found, call: _Call) -> Any:
    """Does what a call has done."""
    stays = _given_in(call.kept) | _given_in(call.result)
    given = {number: found.given.tensors[number]() for number in stays}
    bases = _stepped(recorder, found, call)
    made: dict[Spec, torch.Tensor] = {}

    def tensor_of(spec: Spec) -> torch.Tensor:
        kind, number, *layout = spec
        if kind == "given":
            known = given[number]
            assert known is not None
            return known
        if spec not in made:
            _, dtype, shape, stride, offset, _ = layout
            new = torch.empty(0, dtype=dtype, device="meta")
            made[spec] = new.set_(bases[number].untyped_storage(), offset, shape, stride)
        return made[spec]

    with _disable_current_modes():
        for attributes, kept in zip(found.kept(), rebuilt(call.kept, found.here, tensor_of), strict=True):
            attributes.update(kept)
        return rebuilt(call.result, found.here, tensor_of)


def _stepped(recorder: Recorder, found: _Found, call: _Call) -> dict[int, torch.Tensor]:
    """Writes down what a call has done; returns a tensor in each storage that outlives it, and empties the layers of caches."""
    held = _by_storage(found)  # what is dropped in between is held by these alone, once its layer is empty
    for attributes in found.kept():
        attributes.clear()
    numbers: dict[int, int] = {}
    bases: dict[int, torch.Tensor] = {}
    for kind, storage, *more in call.steps:
        if kind == "drop":
            del held[storage]
            if recorder.events[-1] != (FREE, found.numbers[storage]):
                raise UnlikeError
        elif kind == "free":
            recorder.events.append((FREE, numbers[storage]))
        elif storage in call.outlives:
            with _disable_current_modes():
                bases[storage] = torch.empty(more[0], dtype=torch.uint8, device="meta")
            recorder.made(bases[storage], found.place, more[1])
        else:
            numbers[storage] = recorder.next_storage()
            recorder.events.append((MADE, numbers[storage], more[0], found.place, more[1]))
    return bases


def _by_storage(found: _Found) -> dict[int, list[torch.Tensor | None]]:
    """The tensors that layers of caches have, by number of their storage."""
    held: dict[int, list[torch.Tensor | None]] = {}
    for each in found.given.tensors[found.argument_count :]:
        tensor = each()
        if tensor is not None:
            held.setdefault(found.given.storages[tensor.untyped_storage()._cdata], []).append(tensor)
    return held


def _given_in(spec: Any) -> set[int]:
    """Numbers of given tensors in a description."""
    if not isinstance(spec, tuple) or not spec:
        return set()
    if spec[0] == "given":
        return {spec[1]}
    return {number for part in spec for number in _given_in(part)}

"""The weights of a recording: beside which block each lies, and when a forward puts something else in its place."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch

from planner.memory.tape import DROPPED, Event

__all__ = ["RecordedWeights"]


class RecordedWeights:
    """Storages that are there before anything runs, by their addresses; holds none of them.

    Args:
        places: by storage, beside which block it lies.
        storages: the same, of which each is told of when nobody holds it any more.
        tell: is told.
    """

    def __init__(
        self,
        places: Mapping[int, int],
        storages: Iterable[torch.UntypedStorage],
        tell: Callable[[Event], None],
    ) -> None:
        self._places = dict(places)
        self._tell = tell
        self._watched = {each._cdata: weakref.ref(each, self._dropping(each)) for each in storages}
        self._copies: dict[int, int] = {}

    def __contains__(self, storage: int) -> bool:
        return storage in self._places

    def place(self, storage: int) -> int | None:
        """Beside which block a weight lies; None for what is none."""
        return self._places.get(storage)

    def copied(self, storage: int, copy: int) -> None:
        """If this is a weight, it has been copied into a storage of this number."""
        if storage in self._places:
            self._copies[storage] = copy

    def forget(self) -> None:
        """Tells of nothing any more."""
        self._watched.clear()

    def _dropping(self, storage: torch.UntypedStorage) -> Callable[[Any], None]:
        """What happens when nobody holds a weight any more."""
        key, size = storage._cdata, storage.nbytes()

        def dropped(_: Any) -> None:
            del self._watched[key]
            # Its address may be another's from now on.
            place = self._places.pop(key, 0)
            self._tell((DROPPED, place, size, self._copies.pop(key, -1)))

        return dropped

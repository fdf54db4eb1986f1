"""What some classes keep in their modules from one forward to the next, kept with the cache that it belongs to instead."""

from __future__ import annotations

from typing import Any, Final

from torch import Tensor, nn

__all__ = ["KeptInModules"]

# Of a stage's first forwards: a prompt's, and a token's after it.
_LOOKED_AT: Final = 2
_Place = tuple[nn.Module, str]


class KeptInModules:
    """Tensors that are neither parameters nor buffers, and that a forward leaves in modules: the state of a batch.

    Args:
        model: of a stage, before its first forward.
    """

    def __init__(self, model: nn.Module) -> None:
        self._empty = {
            (module, name): value
            for module in model.modules()
            for name, value in vars(module).items()
            if value is None or isinstance(value, Tensor)
        }
        self._places: dict[_Place, None] = {}
        self._looked_at = 0

    def put(self, cache: Any) -> None:
        """Before a forward: what the last one with this cache has left."""
        for module, name in self._places:
            setattr(module, name, cache.kept.get((module, name), self._empty[module, name]))

    def take(self, cache: Any) -> None:
        """After a forward: what it has left goes to its cache, and out of the modules."""
        if self._looked_at < _LOOKED_AT:
            self._looked_at += 1
            found = (place for place, value in self._empty.items() if _at(place) is not value)
            self._places.update(dict.fromkeys(found))
        cache.kept = {place: _at(place) for place in self._places}
        for module, name in self._places:
            setattr(module, name, self._empty[module, name])


def _at(place: _Place) -> Any:
    module, name = place
    return vars(module).get(name)

"""What a layout says of its modules by name: read once, kept with it, and added up to the top."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Final

from planner.model.tree import ModuleTree
from planner.names import nearest_key

__all__ = ["Modules"]

_STATEFUL: Final = re.compile(
    r"(?i:attention|attn|mixer|mamba|recurrent|delta|retention|retnet|rwkv|hyena|timemix|rotary|embedding)"
    r"|SSM|Conv[1-3]d|RNN|LSTM|GRU|Cache|Memory"
)
"""In the names of classes that have a cache, or something like one; whatever has such a module inside stays with its block. The
``Conv1D`` of GPT-2 is a linear layer."""

_EMBEDDING: Final = "Embedding"
_EXPERTS: Final = "experts"
_LISTS: Final = frozenset(("ModuleList", "ModuleDict"))


@dataclass(frozen=True)
class Modules:
    """The modules of a layout.

    Args:
        tree: the model.
        sizes: stored bytes of every module and tensor by name, each tensor where it is met first.

    Guarantee: immutable; what is asked for is worked out once.
    """

    tree: ModuleTree
    sizes: Mapping[str, int | float]

    @cached_property
    def classes(self) -> Mapping[str, str]:
        """By name of a module, its class; in the order of the tree, an outer module before those inside of it."""
        return dict(self.tree.columns.module_classes())

    @cached_property
    def with_state(self) -> frozenset[str]:
        """Modules that keep something from one forward to the next, or have one inside that does."""
        stateful = {name for name, bases in self._bases.items() if any(map(_STATEFUL.search, bases))}
        found: set[str] = set()
        for name, cls in self.classes.items():
            if cls in stateful:
                while name and name not in found:
                    found.add(name)
                    name = name.rpartition(".")[0]
        return frozenset(found)

    @cached_property
    def embeddings(self) -> frozenset[str]:
        """Modules that are embeddings."""
        classes = {name for name, bases in self._bases.items() if _EMBEDDING in bases}
        return frozenset(name for name, cls in self.classes.items() if cls in classes)

    @cached_property
    def experts(self) -> frozenset[str]:
        """Modules that have all experts of a router, inside of no other such module."""
        groups = (name for name in self.classes if name.rpartition(".")[2] == _EXPERTS)
        kept: dict[str, None] = {}
        for name in sorted(groups, key=lambda name: name.count(".")):
            if nearest_key(name, kept) is None:
                kept[name] = None
        return frozenset(kept)

    @cached_property
    def embedding_bytes(self) -> Mapping[str, int]:
        """By module, what embeddings have of it, itself one or not; those that have none are left out."""
        return self._bytes_of(self.embeddings)

    @cached_property
    def expert_bytes(self) -> Mapping[str, int]:
        """By module, what experts have of it; those that have none are left out."""
        return self._bytes_of(self.experts)

    @cached_property
    def holders(self) -> Mapping[str, int]:
        """By module, how many have tensors of their own, itself and those inside."""
        places, classes = self._places, self.classes
        found = {name: count for name, (_, count) in zip(classes, places, strict=True)}
        tops = (name for name in self.sizes if name and "." not in name)
        own = any(name not in classes for name in tops)
        found[""] = int(own) + sum(count for outer, count in places if outer is None)
        return found

    @cached_property
    def children(self) -> Mapping[str, Sequence[str]]:
        """By module, those inside that its forward calls: what lists hold counts as children of what has the list."""
        names, lists = tuple(self.classes), [cls in _LISTS for cls in self.classes.values()]
        found: dict[str, list[str]] = {}
        caller: list[str] = []  # by module, what calls those inside of it
        for name, is_list, (outer, _) in zip(names, lists, self._places, strict=True):
            calls = "" if outer is None else caller[outer]
            caller.append(calls if is_list else name)
            if not is_list:
                found.setdefault(calls, []).append(name)
        return found

    @cached_property
    def _places(self) -> Sequence[tuple[int | None, int]]:
        return self.tree.columns.module_places()

    @cached_property
    def _bases(self) -> Mapping[str, frozenset[str]]:
        """By class, itself and all that it derives from."""
        return {name: frozenset((name, *more)) for name, more in self.tree.columns.class_bases()}

    def _bytes_of(self, names: Iterable[str]) -> Mapping[str, int]:
        found: Counter[str] = Counter()
        for name in names:
            size, outer = int(self.sizes.get(name, 0)), name
            found[outer] += size
            while outer:
                outer = outer.rpartition(".")[0]
                found[outer] += size
        return found

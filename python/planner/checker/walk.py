"""Every name of every tensor of a model, with the device that the map gives it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from planner.checker.described import DescribedModule
from planner.checker.devices import Device
from planner.checker.keys import Key, Keys, descend
from planner.errors import InvalidTreeError

_MOST_MODULES: Final = 5_000_000  # names; modules shared inside shared modules double them at every level


@dataclass(slots=True)
class _Module:
    parent: int
    part: str
    is_block: bool  # of a no-split class, and not the root
    is_loose: bool  # nothing but keys of its own tensors speaks for it, and it has no modules inside


@dataclass(slots=True)
class NamedTensor:
    """One name of one tensor; whether it is a buffer, and whether checkpoints have it."""

    module: int
    part: str
    device: Device | None
    tensor: Any
    is_buffer: bool = False
    is_saved: bool = True


class Walk:
    """Modules, parameters and buffers in registration order, shared ones under each of their names."""

    def __init__(self, model: Any, keys: Keys, no_split: frozenset[str]) -> None:
        self.modules: list[_Module] = []
        self.parameters: list[NamedTensor] = []
        self.buffers: list[NamedTensor] = []
        keys.root.is_matched = True
        # A stack instead of recursion, so that a nest of any depth ends. The key None means: leave this module.
        stack: list[tuple[int, str, Any, Key | None, Device | None]]
        stack = [(-1, "", model, keys.root, keys.root.device)]
        path: set[int] = set()
        while stack:
            parent, part, module, key, device = stack.pop()
            if key is None:
                path.remove(id(module))
                continue
            self._enter(parent, part, module, path)
            here = len(self.modules)
            is_loose = device is None and not module._modules and (here > 0 or _can_run(module))
            is_block = here > 0 and _class_name(module) in no_split
            self.modules.append(_Module(parent, part, is_block, is_loose))
            self.parameters += self._tensors(here, module._parameters, key, device)
            unsaved = getattr(module, "_non_persistent_buffers_set", ())
            for named in self._tensors(here, module._buffers, key, device):
                named.is_buffer, named.is_saved = True, named.part not in unsaved
                self.buffers.append(named)
            stack.append((parent, part, module, None, None))
            for name, child in reversed(module._modules.items()):
                if child is not None:
                    stack.append((here, name, child, *descend(key, device, name)))

    def _enter(self, parent: int, part: str, module: Any, path: set[int]) -> None:
        fault = None
        if id(module) in path:
            fault = "contains itself"
        elif len(self.modules) >= _MOST_MODULES:
            fault = f"is one module name too many: planner stops at {_MOST_MODULES}"
        if fault is not None:
            name = self._join(parent, part)
            raise InvalidTreeError(f"{name} {fault}", name=name)
        path.add(id(module))

    def _tensors(
        self, module: int, tensors: Mapping[str, Any], key: Key, device: Device | None
    ) -> Iterator[NamedTensor]:
        for part, tensor in tensors.items():
            if tensor is not None:
                yield NamedTensor(module, part, descend(key, device, part)[1], tensor)

    def tensors(self) -> Iterator[NamedTensor]:
        yield from self.parameters
        yield from self.buffers

    def by_identity(self) -> Iterable[list[NamedTensor]]:
        """The names of each tensor, first name first. The same object is the same tensor."""
        groups: dict[int, list[NamedTensor]] = {}
        for named in self.tensors():
            groups.setdefault(id(named.tensor), []).append(named)
        return groups.values()

    def name(self, named: NamedTensor) -> str:
        return self._join(named.module, named.part)

    def module_name(self, module: int) -> str:
        return self._join(self.modules[module].parent, self.modules[module].part)

    def _join(self, module: int, part: str) -> str:
        parts = [part]
        while module > 0:
            parts.append(self.modules[module].part)
            module = self.modules[module].parent
        return ".".join(reversed(parts))


def _can_run(module: Any) -> bool:
    forward = getattr(type(module), "forward", None)
    return isinstance(module, DescribedModule) or getattr(forward, "__name__", "") != "_forward_unimplemented"


def _class_name(module: Any) -> str:
    return module.class_name if isinstance(module, DescribedModule) else type(module).__name__

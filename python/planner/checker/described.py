"""A model in words: names with bytes, for the checker where there is no live model."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field

from planner.errors import InvalidTreeError

__all__ = ["DescribedModule", "DescribedTensor", "model_from_sizes"]


@dataclass(frozen=True, slots=True, eq=False)
class DescribedTensor:
    """One tensor; the same object under several names is one tensor. ``size_bytes``: as it will be stored."""

    size_bytes: int


@dataclass(slots=True, eq=False)
class DescribedModule:
    """One module, with the members that the checker reads of a live one."""

    class_name: str = ""
    _modules: dict[str, DescribedModule] = field(default_factory=dict)
    _parameters: dict[str, DescribedTensor] = field(default_factory=dict)
    _buffers: dict[str, DescribedTensor] = field(default_factory=dict)
    _non_persistent_buffers_set: set[str] = field(default_factory=set)


def model_from_sizes(
    sizes_bytes: Mapping[str, int],
    *,
    tied: Iterable[Iterable[str]] = (),
    classes: Mapping[str, str] | None = None,
    buffers: Collection[str] = (),
    unsaved: Collection[str] = (),
) -> DescribedModule:
    """A model from the names of its tensors.

    Args:
        sizes_bytes: by dotted name of a tensor, under each of its names, its bytes as they will be stored.
        tied: groups of names that are one tensor; it is as large as the largest size said of it.
        classes: by dotted name of a module, its class, as far as it matters; "" is the model itself.
        buffers: names of tensors that are buffers; all others are parameters.
        unsaved: those of them that no checkpoint has.

    Returns:
        What ``planner.check`` takes in place of a live model.

    Raises:
        InvalidTreeError: a name with an empty part, or a name of both a tensor and a module. Fields: ``name``.

    Example:
        >>> from planner.checker.check import check
        >>> model = model_from_sizes({"embed.weight": 20, "head.weight": 20}, tied=[["embed.weight", "head.weight"]])
        >>> for finding in check(model, {"embed": 0, "head": 1}, {0: 10, 1: 20}):
        ...     print(finding)
        one tensor is on several devices: embed.weight on 0, head.weight on 1
        device 0 would hold 20 B of 10 B: 10 B too much
    """
    root, buffers, unsaved = DescribedModule(), frozenset(buffers), frozenset(unsaved)
    for name, tensor in _tensors(sizes_bytes, tied).items():
        path, dot, local = name.rpartition(".")
        owner = _module(root, path)
        if not local or (dot and not path) or local in owner._modules:
            raise InvalidTreeError(f"{name!r} is no name of a tensor: it is empty or a module's", name=name)
        (owner._buffers if name in buffers else owner._parameters)[local] = tensor
        if name in unsaved:
            owner._non_persistent_buffers_set.add(local)
    for name, class_name in (classes or {}).items():
        _module(root, name).class_name = class_name
    return root


def _tensors(sizes_bytes: Mapping[str, int], tied: Iterable[Iterable[str]]) -> dict[str, DescribedTensor]:
    tensors = {name: DescribedTensor(size) for name, size in sizes_bytes.items()}
    for names in tied:
        group = [name for name in names if name in tensors]
        if group:
            shared = DescribedTensor(max(tensors[name].size_bytes for name in group))
            tensors.update(dict.fromkeys(group, shared))
    return tensors


def _module(root: DescribedModule, name: str) -> DescribedModule:
    """The module of a name, made with all modules around it if it is not there yet."""
    module = root
    for part in name.split(".") if name else ():
        if not part or part in module._parameters or part in module._buffers:
            raise InvalidTreeError(
                f"{name!r} is no name of a module: a part is empty or a tensor's", name=name
            )
        module = module._modules.setdefault(part, DescribedModule())
    return module

"""accelerate's functions over lists of (name, module) and dicts of sizes, in linear time."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any

from planner.arguments import name_groups, name_list, named_parts, require_sizes, size_named
from planner.devices.keys import size_to_bytes
from planner.errors import InvalidConstraintError, InvalidInputError
from planner.names import is_within, text_set

__all__ = ["class_names", "fallback_allocate", "get_max_layer_size", "get_module_size_with_ties"]

Entries = Sequence[tuple[str, Any]]


def class_names(names: Iterable[str] | str | None) -> list[str]:
    """No-split classes as a list: one name, several, or none.

    Raises:
        InvalidInputError: anything but strings.
    """
    return sorted(text_set(names, "no_split_module_classes"))


def get_max_layer_size(
    modules: Entries, module_sizes: Mapping[str, float], no_split_module_classes: Collection[str]
) -> tuple[float, list[str]]:
    """Size of the largest layer among named modules, and the names of all layers of that size.

    A layer is a module without children, a module of a no-split class, or a tensor.

    Args:
        modules: (name, module or tensor) pairs.
        module_sizes: bytes by name, as :func:`compute_module_sizes` gives them; names it lacks count 0.
        no_split_module_classes: exact class names.

    Raises:
        InvalidInputError: anything else.

    Source: accelerate 1.15, utils/modeling.py.

    Cost: O(modules inside); accelerate's list splicing is quadratic.

    Example:
        >>> import torch
        >>> get_max_layer_size([("a", torch.nn.Linear(2, 2)), ("b", torch.nn.Linear(3, 3))], {"a": 24, "b": 48}, [])
        (48, ['b'])
    """
    require_sizes(module_sizes)
    no_split = text_set(no_split_module_classes, "no_split_module_classes")
    largest: float = 0
    names: list[str] = []
    pending = named_parts(modules, "modules")[::-1]
    while pending:
        name, module = pending.pop()
        children = _children(module)
        if children and type(module).__name__ not in no_split:
            pending.extend((f"{name}.{child}", inner) for child, inner in reversed(children))
            continue
        size = size_named(module_sizes, name)
        if size > largest:
            largest, names = size, [name]
        elif size == largest:
            names.append(name)
    return largest, names


def get_module_size_with_ties(
    tied_params: Sequence[str],
    module_size: float,
    module_sizes: Mapping[str, float],
    modules_to_treat: Entries,
) -> tuple[float, list[str], list[Any]]:
    """Size of a module with the modules that its tied parameters lie in, and those modules.

    Args:
        tied_params: names of parameters outside the module that are tied to one inside.
        module_size: bytes of the module.
        module_sizes: bytes by name.
        modules_to_treat: (name, module or tensor) pairs in which the tied parameters are looked for.

    Returns:
        The size; names and modules, one for each tied parameter (a module with two of them comes twice).

    Raises:
        InvalidConstraintError: a tied parameter lies in none of the modules; accelerate raises IndexError. Fields:
            ``names``.
        InvalidInputError: anything but names, sizes and pairs.

    Source: accelerate 1.15, utils/modeling.py; a parameter that is itself on the list is found here.
    """
    require_sizes(module_sizes)
    entries = dict(named_parts(modules_to_treat, "modules_to_treat"))
    names: list[str] = []
    size = size_named({"": module_size}, "")
    for parameter in name_list(tied_params, "tied_params"):
        name = next((prefix for prefix in _prefixes(parameter) if prefix in entries), None)
        if name is None:
            raise InvalidConstraintError(
                f"tied parameter '{parameter}' lies in none of the {len(entries)} modules to treat",
                names=(parameter,),
                suggestions=(),
            )
        names.append(name)
        size += size_named(module_sizes, name) - size_named(module_sizes, parameter)
    return size, names, [entries[name] for name in names]


def fallback_allocate(
    modules: Entries,
    module_sizes: Mapping[str, float],
    size_limit: int | float | str,
    no_split_module_classes: Collection[str] | None = None,
    tied_parameters: Sequence[Sequence[str]] | None = None,
) -> tuple[str | None, Any, list[tuple[str, Any]]]:
    """First module or parameter, depth-first, that fits a limit together with what is tied to it.

    Args:
        modules: (name, module or tensor) pairs.
        module_sizes: bytes by name.
        size_limit: bytes, or a size in words.
        no_split_module_classes: exact class names of modules whose children are not looked at.
        tied_parameters: groups of names that are one parameter.

    Returns:
        Its name, itself, and the other pairs, its ancestors among them replaced by their children and direct tensors;
        ``(None, None, modules)`` if nothing fits.

    Raises:
        InvalidInputError: anything but pairs, sizes and groups of names.

    Guarantee: `modules` is left as it is.

    Source: accelerate 1.15, utils/modeling.py, with the repairs (a), (b), (c) and (f) of ARCHITECTURE.md: containment by
        dotted prefix, ties to modules already skipped, direct buffers kept, float limits.
    """
    require_sizes(module_sizes)
    rest = named_parts(modules, "modules")
    no_split = text_set(no_split_module_classes, "no_split_module_classes")
    groups = [] if tied_parameters is None else name_groups(tied_parameters, "tied_parameters")
    try:
        limit = size_limit if isinstance(size_limit, float) and size_limit >= 0 else size_to_bytes(size_limit)
    except InvalidInputError:
        return None, None, rest
    for name, module in _depth_first(rest, no_split):
        if size_named(module_sizes, name) > limit:
            continue  # what is tied to it only adds
        tied = [p for group in _crossing(groups, name) for p in group if not is_within(p, name)]
        others = [(n, m) for n, m in _open_ancestors(rest, name) if n != name]
        size, _, _ = get_module_size_with_ties(tied, size_named(module_sizes, name), module_sizes, others)
        if size <= limit:
            return name, module, others
    return None, None, rest


def _depth_first(modules: Entries, no_split: Collection[str]) -> Iterator[tuple[str, Any]]:
    pending = list(reversed(modules))
    while pending:
        name, module = pending.pop()
        yield name, module
        if _children(module) and type(module).__name__ not in no_split:
            # accelerate's search meets parameters and children; a buffer inside a module is never what falls back.
            members = [*module.named_parameters(recurse=False), *_children(module)]
            pending.extend((f"{name}.{member}", value) for member, value in reversed(members))


def _open_ancestors(modules: Entries, name: str) -> list[tuple[str, Any]]:
    opened = list(modules)
    for ancestor in reversed(list(_prefixes(name))[1:]):
        at = next((index for index, (known, _) in enumerate(opened) if known == ancestor), None)
        if at is not None:
            opened[at : at + 1] = _members(*opened[at])
    return opened


def _children(module: Any) -> list[tuple[str, Any]]:
    return list(module.named_children()) if hasattr(module, "named_children") else []


def _members(name: str, module: Any) -> list[tuple[str, Any]]:
    members = [
        *module.named_parameters(recurse=False),
        *_children(module),
        *module.named_buffers(recurse=False),
    ]
    return [(f"{name}.{member}", value) for member, value in members]


def _crossing(groups: list[list[str]], name: str) -> list[list[str]]:
    return [group for group in groups if len({is_within(parameter, name) for parameter in group}) == 2]


def _prefixes(name: str) -> Iterator[str]:
    """A dotted name and its ancestors, longest first."""
    while name:
        yield name
        name = name.rpartition(".")[0]

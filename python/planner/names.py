"""Dotted names of modules and tensors: which key of a map speaks for a name."""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping
from typing import Any, TypeVar

from planner.errors import InvalidConstraintError, InvalidDevicesError, InvalidInputError
from planner.spelling import shown

T = TypeVar("T")


def require_module(module: Any) -> None:
    """Raises InvalidInputError unless something has modules by name, as an ``nn.Module`` or what describes one."""
    if not hasattr(module, "_modules"):
        raise InvalidInputError(f"expected a torch.nn.Module, got {shown(module)}")


def require_map(device_map: Any, what: str = "device_map") -> None:
    """Raises unless something is a device map: a mapping to what can be a device; names are not judged here.

    Raises:
        InvalidInputError: no mapping.
        InvalidDevicesError: a value that cannot be compared, such as a list. Fields: ``device``.
    """
    if not isinstance(device_map, Mapping):
        raise InvalidInputError(
            f"{what} must map names of modules to devices, as in {{'': 0}} or {{'embed': 0, 'layers': 'cpu'}}; got "
            f"{shown(device_map)}; planner.plan(model) makes one"
        )
    for name, device in device_map.items():
        try:
            hash(device)
        except TypeError as error:
            raise InvalidDevicesError(
                f"{what} sends {shown(name)} to {shown(device)}, which is no device", device=device
            ) from error


def require_texts(device_map: Mapping[Any, Any], what: str = "device_map") -> None:
    """Raises InvalidConstraintError for keys that are no strings, or no text. Fields: ``names``."""
    odd = [name for name in device_map if not is_text(name)]
    if odd:
        raise InvalidConstraintError(
            f"{what} has keys that are no names: {', '.join(map(shown, odd[:5]))}",
            names=tuple(odd),
            suggestions=(),
        )


def text_set(names: Iterable[str] | str | None, what: str) -> frozenset[str]:
    """Names as a set: one name, several, or none.

    Raises:
        InvalidInputError: anything but strings that are text.

    Example:
        >>> sorted(text_set(["b", "a"], "names")), sorted(text_set("ab", "names")), sorted(text_set(None, "names"))
        (['a', 'b'], ['ab'], [])
    """
    if names is None:
        return frozenset()
    try:
        listed = [names] if isinstance(names, str) else list(names)
    except TypeError:  # nothing that holds several
        raise InvalidInputError(f"{what} must hold names, not {shown(names)}") from None
    for name in listed:
        if not is_text(name):
            raise InvalidInputError(f"{what} must hold names, not {shown(name)}")
    return frozenset(listed)


def named(name: str) -> str:
    """A module or tensor in a sentence; the root has no name of its own.

    Example:
        >>> named("layers.0"), named("")
        ("'layers.0'", 'the model')
    """
    return f"'{name}'" if name else "the model"


def is_text(name: object) -> bool:
    """Whether a name is a string without lone surrogates: no other can be a module's."""
    if not isinstance(name, str):
        return False
    if name.isascii():
        return True
    return name.encode(errors="ignore").decode() == name


def nearest_key(name: str, keys: Container[str]) -> str | None:
    """The name itself or the nearest name around it that is a key; "" is around everything.

    Example:
        >>> nearest_key("layers.1.mlp", {"layers.1": 0, "": 1}), nearest_key("layers.10", {"layers.1": 0})
        ('layers.1', None)
    """
    while name and name not in keys:
        name = name.rpartition(".")[0]
    return name if name in keys else None


def is_within(name: str, outer: str) -> bool:
    """Whether a name is another one or lies inside of it; everything lies in "".

    Example:
        >>> is_within("layers.1.mlp", "layers.1"), is_within("layers.10", "layers.1"), is_within("layers", "")
        (True, False, True)
    """
    return not outer or name == outer or name.startswith(f"{outer}.")


def by_outer(names: Iterable[str]) -> dict[str, list[str]]:
    """By every name that is one of these or is around some, those that lie there; "" is around everything.

    Example:
        >>> by_outer(["a.b", "a"])
        {'': ['a.b', 'a'], 'a.b': ['a.b'], 'a': ['a.b', 'a']}
    """
    found: dict[str, list[str]] = {"": []}
    for name in names:
        outer = name
        while outer:
            found.setdefault(outer, []).append(name)
            outer = outer.rpartition(".")[0]
        found[""].append(name)
    return found


def qualified(prefix: str, name: str) -> str:
    """The name of what is called so inside of a module.

    Example:
        >>> qualified("layers.0", "weight"), qualified("", "weight"), qualified("layers.0", "")
        ('layers.0.weight', 'weight', 'layers.0')
    """
    return f"{prefix}.{name}" if prefix and name else prefix or name


def device_of(name: str, device_map: Mapping[str, T]) -> T | None:
    """Where a device map puts a name: as its nearest key says; None where it says nothing of it as a whole.

    Example:
        >>> device_of("layers.1.mlp", {"layers.1": "cpu"}), device_of("layers", {"layers.1": "cpu"})
        ('cpu', None)
    """
    key = nearest_key(name, device_map)
    return None if key is None else device_map[key]


def counted(count: int, noun: str) -> str:
    """So many of something, in words.

    Example:
        >>> counted(1, "block"), counted(0, "block")
        ('1 block', '0 blocks')
    """
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def listed(names: Iterable[str], most: int = 5) -> str:
    """Names in a sentence, of which only the first ones are said.

    Example:
        >>> listed("abc", most=5), listed("abcdefgh", most=3)
        ('a, b, c', 'a, b, c and 5 more')
    """
    found = list(names)
    more = f" and {len(found) - most} more" if len(found) > most else ""
    return ", ".join(found[:most]) + more

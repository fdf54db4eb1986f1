"""A device map as a trie over the parts of its keys."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from planner.checker.devices import Device, device_of, shown


@dataclass(slots=True)
class Key:
    """One part of a key, with all keys that go on below it."""

    text: str | None = None  # the key that ends here
    device: Device | None = None
    is_matched: bool = False
    children: dict[str, Key] = field(default_factory=dict)


class Keys:
    """All keys of a map; those that no name has met are unmatched."""

    def __init__(self, device_map: Mapping[str, Any]) -> None:
        self.root = Key()
        self.listed: list[Key] = []
        for text, spelling in device_map.items():
            node = self.root if isinstance(text, str) else Key()
            for part in text.split(".") if isinstance(text, str) and text else ():
                node = node.children.setdefault(part, Key())
            node.text, node.device = text if isinstance(text, str) else shown(text), device_of(spelling)
            self.listed.append(node)

    def unmatched(self) -> Iterator[str]:
        return (key.text for key in self.listed if not key.is_matched and key.text is not None)


_NOWHERE: Final = Key()  # below every key that matches


def descend(key: Key, device: Device | None, part: str) -> tuple[Key, Device | None]:
    """What a part of a name leads to, and the device that holds there: the one of the longest key so far."""
    child = key.children.get(part, _NOWHERE)
    if child.text is None:
        return child, device
    child.is_matched = True
    return child, child.device

"""An HTML page as a parser sees it."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from html.parser import HTMLParser
from typing import Any


@dataclass
class Page:
    """What a page holds.

    Args:
        tags: every start tag with its attributes, in order.
        raw: contents of scripts and styles, in order, by tag.
        text: everything else that can be read.
    """

    tags: list[tuple[str, dict[str, str | None]]] = field(default_factory=list)
    raw: dict[str, list[str]] = field(default_factory=dict)
    text: list[str] = field(default_factory=list)

    @property
    def data(self) -> dict[str, Any]:
        """The data block."""
        found: dict[str, Any] = json.loads(self.raw["script"][0])
        return found

    def attributes(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


class _Reader(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.page = Page()
        self.open: str | None = None

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.page.tags.append((tag, dict(attrs)))
        if tag in ("script", "style"):
            self.open = tag
            self.page.raw.setdefault(tag, []).append("")

    def handle_endtag(self, tag: str) -> None:
        self.open = None if tag == self.open else self.open

    def handle_data(self, data: str) -> None:
        if self.open:
            self.page.raw[self.open][-1] += data
        else:
            self.page.text.append(data)


def read_page(text: str) -> Page:
    """The page that a text is."""
    reader = _Reader()
    reader.feed(text)
    reader.close()
    return reader.page

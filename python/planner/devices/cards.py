"""Rates of known cards by their data sheets, and which card a name that torch reports is."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path
from typing import Any, Final, Literal

from planner.config.frozen import FrozenMap
from planner.errors import InvalidDevicesError
from planner.spelling import shown

_TABLE: Final = Path(__file__).with_name("cards.jsonl")

# What of a sheet's figure a model meets. A sheet gives what the wires and the units could do, and nothing of what runs on them.
MEMORY_EFFICIENCY: Final = 0.8
"""Of the memory's rate, what kernels read that stream weights: refreshes and changes of direction take the rest."""
COMPUTE_EFFICIENCY: Final = 0.5
"""Of the dense rate, what whole layers reach: large products come to more, attention and all that is no product to less."""
PINNED_EFFICIENCY: Final = 0.85
"""Of a link's rate, what copies of pinned memory reach: packets have headers."""
PAGEABLE_EFFICIENCY: Final = 0.35
"""Of a link's rate, what copies of other memory reach: the driver copies once more, on the host, into memory that is pinned."""
UNCERTAINTY: Final = 0.30
"""How far, either way, a rate from here times its efficiency may be off."""

_MEMORY_KEPT: Final = 0.1  # at most, by drivers and for correcting errors
_WORD: Final = re.compile(r"[a-z0-9]+")
_SIZE: Final = re.compile(r"([0-9]+)\s*gi?b\b")
_VENDORS: Final = {
    "NVIDIA": frozenset({"nvidia", "geforce", "tesla"}),
    "Tesla": frozenset({"nvidia", "geforce", "tesla"}),
    "AMD": frozenset({"amd", "instinct"}),
    "Apple": frozenset({"apple"}),
}
_VENDOR_WORDS: Final = frozenset().union(*_VENDORS.values())
_MOST_NAMED: Final = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Card:
    """What a data sheet says of one card, in bytes and operations per second that are to be had in theory.

    Args:
        name: what people call it, with its memory.
        torch_names: what torch calls it; of mps, what macOS calls the chip.
        kind: torch's type of device. AMD's cards are "cuda", too.
        memory_bytes: of its chips, in which sheets call 2³⁰ bytes a GB. Drivers show up to a tenth less. The most that is sold
            where the memory is the host's.
        memory_bytes_per_s: at which it is read.
        flops: by dtype, operations per second of dense products: by tensor cores that accumulate in float32, and in float32 by what
            multiplies it in full. A dtype is left out where a card has no units for it, or its vendor names no rate.
        host_bytes_per_s: between host and card, one way; None where the memory is the host's.
        peer_bytes_per_s: to another card, one way: NVLink as a whole, as behind a switch, or the one link of Infinity Fabric that
            joins two cards; None where cards meet at the host. Bridges that are sold apart do not count.
        source: the vendor's page.
        note: what was done to the sheet's figures, such as halving those with sparsity.
    """

    name: str
    torch_names: tuple[str, ...]
    kind: Literal["cuda", "mps"]
    memory_bytes: int
    memory_bytes_per_s: int
    flops: Mapping[str, int]
    host_bytes_per_s: int | None
    peer_bytes_per_s: int | None
    source: str
    note: str

    @property
    def shares_host_memory(self) -> bool:
        """Whether its memory is the host's, so that weights are there already."""
        return self.host_bytes_per_s is None

    @property
    def _vendor_words(self) -> frozenset[str]:
        return _VENDORS[self.torch_names[0].partition(" ")[0]]

    @property
    def _spellings(self) -> tuple[str, ...]:
        return (self.name, *self.torch_names)

    @property
    def _model_word(self) -> str:
        """The word that only this model's names have: "h100", "3060", "m1"."""
        return next(word for word in _words(self.name) if any(letter.isdecimal() for letter in word))

    def _is_called(self, words: tuple[str, ...]) -> bool:
        """Whether these are all words of one of its names, whatever the vendor."""
        bare = self._without_vendor(words)
        return any(bare == self._without_vendor(_words(spelling)) for spelling in self._spellings)

    def _is_meant(self, words: tuple[str, ...]) -> bool:
        """Whether its names have all of these words, and these the model."""
        known = {word for spelling in self._spellings for word in _words(spelling)} | self._vendor_words
        return self._model_word in words and known.issuperset(words)

    def _without_vendor(self, words: tuple[str, ...]) -> tuple[str, ...]:
        begun = 0
        while begun < len(words) - 1 and words[begun] in self._vendor_words:
            begun += 1
        return words[begun:]

    def _has_memory(self, memory_bytes: int | None) -> bool:
        if memory_bytes is None or self.shares_host_memory:
            return True
        return (1 - _MEMORY_KEPT) * self.memory_bytes <= memory_bytes <= self.memory_bytes


@cache
def known_cards() -> tuple[Card, ...]:
    """Every card of the table that comes with the package, by name.

    Cost: the table is read once.

    Example:
        >>> [card.name for card in known_cards()][:2]
        ['A10 24GB', 'A100 PCIe 40GB']
    """
    return tuple(_card(json.loads(line)) for line in _TABLE.read_text(encoding="utf-8").splitlines())


def card_named(name: str, *, memory_bytes: int | None = None) -> Card:
    """The one card that a name means: spelled as by torch, but for case and vendor, or by words that no other card has.

    Args:
        name: as in ``torch.cuda.get_device_name()``, or shorter.
        memory_bytes: what the device says that it has; a card of the same name with other memory is another card.

    Raises:
        InvalidDevicesError: no card, or more than one, has that name; or its memory is another. Fields: ``device``,
            ``suggestions``: names of the nearest cards, or of those that are meant.

    Guarantee: never a card of another model: of "RTX 3060 Ti" nothing is known.

    Example:
        >>> card_named("NVIDIA A100-SXM4-80GB").memory_bytes_per_s
        2039000000000
        >>> card_named("rtx 3060").name
        'RTX 3060 12GB'
    """
    words = _words(name) if isinstance(name, str) else ()
    called = [card for card in known_cards() if card._is_called(words)]
    meant = called or [card for card in known_cards() if card._is_meant(words)]
    if not meant:
        raise _refused(name, f"no card is known as {shown(name)}", "the nearest are", _nearest(name))
    fitting = [card for card in meant if card._has_memory(memory_bytes)]
    if not fitting:
        sizes = " and ".join(f"{card.memory_bytes} bytes ({card.name})" for card in meant[:_MOST_NAMED])
        what = f"{shown(name)} has {memory_bytes} bytes of memory, and the known cards of that name {sizes}"
        raise _refused(name, what, "known are", [card.name for card in meant])
    if len(fitting) > 1:
        what = f"{shown(name)} is the name of {len(fitting)} cards"
        raise _refused(name, what, "say which:", [card.name for card in fitting])
    return fitting[0]


def _refused(name: object, what: str, which: str, names: Iterable[str]) -> InvalidDevicesError:
    suggestions = tuple(names)
    told = f"; {which} {', '.join(suggestions)}" if suggestions else ""
    help_text = "measure the rates with `planner probe --out machine.json`, or write them in a machine file"
    return InvalidDevicesError(f"{what}{told}; {help_text}", device=name, suggestions=suggestions)


def _nearest(name: object) -> list[str]:
    """Names of the cards of the same model, then of cards that are spelled nearly so."""
    words = [word for word in (_words(name) if isinstance(name, str) else ()) if word not in _VENDOR_WORDS]
    same = [card for card in known_cards() if card._model_word in words]
    found = [*_alike(words, same, 0.0), *_alike(words, known_cards(), 0.5)]
    return list(dict.fromkeys(found))[:_MOST_NAMED]


def _alike(words: list[str], cards: Iterable[Card], least: float) -> list[str]:
    """Names of those cards that are spelled most like these words."""
    spelled = {
        " ".join(card._without_vendor(_words(spelling))): card.name
        for card in cards
        for spelling in card._spellings
    }
    near = difflib.get_close_matches(" ".join(words)[:100], spelled, n=2 * _MOST_NAMED, cutoff=least)
    return [spelled[spelling] for spelling in near]


@lru_cache(maxsize=1024)
def _words(name: str) -> tuple[str, ...]:
    return tuple(_WORD.findall(_SIZE.sub(r"\1gb", name.casefold())))


def _card(record: dict[str, Any]) -> Card:
    """A card from its line in the table."""
    return Card(
        **{**record, "torch_names": tuple(record["torch_names"]), "flops": FrozenMap(record["flops"])}
    )

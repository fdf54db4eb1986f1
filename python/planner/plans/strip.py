"""A plan as a strip: what follows what in a forward, where it lies, and where it runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import groupby

from planner.devices.keys import DeviceKey
from planner.plans.places import listed_places, place_name, runner_name
from planner.plans.runs import Run

__all__ = ["Piece", "place_words", "strip_of"]

_MOST_PIECES = 40  # from here on, pieces that repeat by turns are one
_LONGEST = 14  # characters of a name


@dataclass(frozen=True, slots=True)
class Piece:
    """Neighbouring blocks under one label.

    Args:
        label: as people call them, such as "0-45" for layers, or "embed_tokens".
        count: blocks.
        size_bytes: their bytes; None where the plan does not tell them.
        home: where they lie.
        runs_on: where they run.
        turns: further homes that take turns with this one, block by block.
    """

    label: str
    count: int
    size_bytes: int | None
    home: DeviceKey
    runs_on: DeviceKey
    turns: tuple[DeviceKey, ...] = ()


@dataclass(frozen=True, slots=True)
class _Block:
    run: Run
    list_name: str  # of the outermost numbered list around it; "" outside of all
    number: str


def strip_of(blocks: Sequence[Run]) -> tuple[Piece, ...]:
    """The strip of a plan's blocks, in their order.

    Args:
        blocks: each a run of its own; see :func:`planner.plans.runs.blocks_of`.

    Guarantee: counts and bytes of pieces add up to those of the blocks.

    Cost: O(blocks · depth).
    """
    found = [_numbered(block) for block in blocks]
    heads = _list_heads(list(dict.fromkeys(block.list_name for block in found if block.list_name)))
    groups = groupby(found, lambda block: (block.run.home, block.run.runs_on, block.list_name))
    pieces = [_piece(list(group), heads) for _, group in groups]
    return tuple(pieces if len(pieces) <= _MOST_PIECES else _by_turns(found, heads))


def place_words(piece: Piece) -> str:
    """Where a piece lies and, where that is another device, where it runs.

    Example:
        >>> place_words(Piece("0-3", 4, 100, "cpu", 0)), place_words(Piece("0-3", 8, 100, 0, 0, ("cpu",)))
        ('RAM → runs on GPU 0', 'GPU 0 and RAM by turns')
    """
    if piece.turns:
        return f"{listed_places([piece.home, *piece.turns])} by turns"
    if piece.runs_on == piece.home:
        return place_name(piece.home)
    return f"{place_name(piece.home)} → runs on {runner_name(piece.runs_on)}"


def _numbered(block: Run) -> _Block:
    parts = block.first.split(".")
    at = next((index for index, part in enumerate(parts) if part.isascii() and part.isdigit()), None)
    if not at:  # outside of all lists, or in a list that is the model itself
        return _Block(block, "" if at is None else ".", "" if at is None else parts[0])
    return _Block(block, ".".join(parts[:at]), parts[at])


def _list_heads(lists: Sequence[str]) -> dict[str, str]:
    """What tells lists of layers apart; nothing where there is one."""
    if len(lists) < 2:
        return dict.fromkeys(lists, "")
    split = [name.split(".") for name in lists]
    shared = 0
    while all(len(parts) > shared + 1 for parts in split) and len({parts[shared] for parts in split}) == 1:
        shared += 1
    heads = ["".join(parts[shared : shared + 1]) for parts in split]
    # Two lists below one module: their own names.
    return {
        name: f"{head if heads.count(head) == 1 else parts[-1]} "
        for name, head, parts in zip(lists, heads, split, strict=True)
    }


def _piece(group: Sequence[_Block], heads: dict[str, str]) -> Piece:
    sizes = [block.run.size_bytes for block in group if block.run.size_bytes is not None]
    run = group[0].run
    return Piece(
        label=_label(group, heads),
        count=len(group),
        size_bytes=sum(sizes) if len(sizes) == len(group) else None,
        home=run.home,
        runs_on=run.runs_on,
    )


def _label(group: Sequence[_Block], heads: dict[str, str]) -> str:
    first, last = group[0], group[-1]
    if first.list_name:
        head = heads[first.list_name]
        return f"{head}{first.number}" + (f"-{last.number}" if last.number != first.number else "")
    told = [block for block in group if block.run.size_bytes] or group  # buffers without bytes say little
    names = [_short(block.run.first.rpartition(".")[2]) or "the model" for block in told]
    return ", ".join(names) if len(names) < 3 else f"{names[0]} ... {names[-1]}"


def _short(name: str) -> str:
    return name if len(name) <= _LONGEST else f"{name[: _LONGEST - 2]}.."


def _by_turns(blocks: Sequence[_Block], heads: dict[str, str]) -> list[Piece]:
    """Pieces of whole layers; those whose blocks lie alike are one, and say which devices take turns."""
    layers = [list(layer) for _, layer in groupby(blocks, lambda block: (block.list_name, block.number))]
    alike = groupby(layers, lambda layer: (layer[0].list_name, _places(layer)))
    pieces = []
    for (_, places), group in alike:
        members = [block for layer in group for block in layer]
        (home, runs_on), *others = places
        whole = _piece(members, heads)
        turns = tuple(dict.fromkeys(other for other, _ in others if other != home))
        pieces.append(replace(whole, home=home, runs_on=runs_on, turns=turns))
    return pieces


def _places(layer: Sequence[_Block]) -> tuple[tuple[DeviceKey, DeviceKey], ...]:
    return tuple(dict.fromkeys((block.run.home, block.run.runs_on) for block in layer))

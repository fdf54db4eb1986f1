"""Tables of plain numbers for the strategies that go by time: read, with everything that is wrong with them at once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Literal, TypeAlias, cast

from planner.errors import InvalidInputError

Objective: TypeAlias = Literal["latency", "throughput", "pipeline"]
Schedule: TypeAlias = Literal["serial", "overlapped"]

OBJECTIVES: Final[tuple[Objective, ...]] = ("latency", "throughput", "pipeline")
SEARCH_STEPS: Final = 1_000_000
MOST: Final = 1 << 58  # of each number; of their sums the core says more
_SHOWN = 8

_KEYS = (
    "objective",
    "batches",
    "any",
    "overlap",
    "staging",
    "search_steps",
    "kinds",
    "devices",
    "hop",
    "pieces",
    "ties",
    "closed",
)
_KIND_KEYS = ("cap", "aside", "host")
_TIE_KEYS = ("pieces", "bits")
_PIECE_KEYS = ("bits", "state", "streamed", "homes", "run", "fetch", "host", "beside", "passes")


@dataclass(frozen=True, slots=True, kw_only=True)
class LinePiece:
    """What is run as a whole: bits, and picoseconds by kind of device; None is what may not be.

    `beside_bits`, by kind: room that is kept where it runs on the host from within a run there; none by default. `passes`: how often a
    hop is made where a run begins with it, to its device and back to that of the run before.
    """

    bits: int
    state_bits: int
    streamed_bits: int
    homes: frozenset[int]
    run_ps: tuple[int | None, ...]
    fetch_ps: tuple[int | None, ...]
    host_ps: int | None
    beside_bits: tuple[int, ...] = ()
    passes: tuple[int, int] = (1, 0)


@dataclass(frozen=True, slots=True, kw_only=True)
class LineKind:
    """Devices that are alike: their room, and picoseconds to the host and back."""

    capacity_bits: int
    hops_ps: int
    is_host: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class LineTie:
    """Pieces that share their weights: their numbers, ascending, and the bits that they have together; their own do not count."""

    pieces: tuple[int, ...]
    bits: int


@dataclass(frozen=True, slots=True, kw_only=True)
class LineProblem:
    """Pieces in execution order, devices, what is to be small, and before which pieces no run may end."""

    pieces: tuple[LinePiece, ...]
    kinds: tuple[LineKind, ...]
    devices: tuple[int, ...]
    hop_ps: tuple[tuple[int, ...], ...]
    objective: Objective
    batches: int = 1
    any_order: bool = False
    schedule: Schedule = "serial"
    staging_blocks: int = 1
    search_steps: int = SEARCH_STEPS
    ties: tuple[LineTie, ...] = ()
    closed: tuple[int, ...] = ()


def read_table(table: Mapping[str, object]) -> LineProblem:
    """A problem from plain numbers.

    Args:
        table: see :func:`planner.strategies.timed.solve_table`.

    Raises:
        InvalidInputError: everything that cannot be read, in one message.
    """
    reader = _Reader()
    said = reader.mapping(table, "the table", _KEYS)
    kinds = tuple(reader.kind(row, f"kinds[{at}]") for at, row in enumerate(reader.rows(said, "kinds")))
    count = len(kinds)
    pieces = tuple(
        reader.piece(row, f"pieces[{at}]", kinds=count) for at, row in enumerate(reader.rows(said, "pieces"))
    )
    devices = reader.numbers(said, "devices")
    hop_ps = tuple(
        reader.whole_row(row, f"hop[{at}]", count) for at, row in enumerate(reader.rows(said, "hop"))
    )
    if len(hop_ps) != count:
        reader.problem(f"hop has {len(hop_ps)} rows for {count} kinds")
    for at, device in enumerate(devices):
        if device >= count:
            reader.problem(f"devices[{at}] is of kind {device}, and there are {count} kinds, counted from 0")
    objective = said.get("objective")
    if objective not in OBJECTIVES:
        reader.problem(f"objective is {objective!r}, and can be one of {', '.join(OBJECTIVES)}")
    schedule: Schedule = "overlapped" if reader.flag(said, "overlap") else "serial"
    problem = LineProblem(
        pieces=pieces,
        kinds=kinds,
        devices=devices,
        hop_ps=hop_ps,
        objective=cast(Objective, objective),
        batches=reader.whole(said, "batches", "batches", least=1, default=1),
        any_order=reader.flag(said, "any"),
        schedule=schedule,
        staging_blocks=reader.whole(said, "staging", "staging", default=2 if schedule == "overlapped" else 1),
        search_steps=reader.whole(said, "search_steps", "search_steps", default=SEARCH_STEPS),
        ties=tuple(
            reader.tie(row, f"ties[{at}]") for at, row in enumerate(reader.rows({"ties": (), **said}, "ties"))
        ),
        closed=reader.numbers({"closed": (), **said}, "closed"),
    )
    if reader.problems:
        shown = "; ".join(reader.problems[:_SHOWN])
        more = len(reader.problems) - _SHOWN
        raise InvalidInputError(shown + (f"; and {more} more" if more > 0 else ""))
    return problem


@dataclass(slots=True)
class _Reader:
    """Reads on after what is wrong, and remembers it."""

    problems: list[str] = field(default_factory=list)

    def problem(self, text: str) -> None:
        self.problems.append(text)

    def mapping(self, value: object, where: str, keys: Sequence[str]) -> Mapping[str, object]:
        if not isinstance(value, Mapping):
            self.problem(f"{where} is {type(value).__name__}, and must be a mapping of {', '.join(keys)}")
            return {}
        unknown = [str(key) for key in value if key not in keys]
        if unknown:
            self.problem(f"{where} has {', '.join(unknown)}, and can have {', '.join(keys)}")
        return value

    def rows(self, said: Mapping[str, object], key: str, where: str = "") -> Sequence[object]:
        value = said.get(key)
        if isinstance(value, Sequence) and not isinstance(value, str | bytes):
            return value
        self.problem(f"{where or key} is {type(value).__name__}, and must be a list")
        return ()

    def numbers(self, said: Mapping[str, object], key: str, where: str = "") -> tuple[int, ...]:
        rows = self.rows(said, key, where)
        return tuple(self.number(value, f"{where or key}[{at}]") for at, value in enumerate(rows))

    def number(self, value: object, where: str, least: int = 0) -> int:
        if isinstance(value, int) and not isinstance(value, bool) and least <= value <= MOST:
            return value
        self.problem(f"{where} is {value!r}, and must be a whole number from {least} to {MOST}")
        return least

    def whole(
        self,
        said: Mapping[str, object],
        key: str,
        where: str,
        *,
        least: int = 0,
        default: int | None = None,
    ) -> int:
        if key not in said and default is not None:
            return default
        return self.number(said.get(key), where, least)

    def flag(self, said: Mapping[str, object], key: str, where: str = "") -> bool:
        value = said.get(key, False)
        if not isinstance(value, bool):
            self.problem(f"{where or key} is {value!r}, and must be true or false")
        return value is True

    def whole_row(self, row: object, where: str, count: int) -> tuple[int, ...]:
        return tuple(each or 0 for each in self.row(row, where, count, may_be_none=False))

    def pair(self, value: object, where: str) -> tuple[int, int]:
        """How often there and back."""
        if isinstance(value, Sequence) and not isinstance(value, str | bytes) and len(value) == 2:
            return self.number(value[0], f"{where}[0]"), self.number(value[1], f"{where}[1]")
        self.problem(f"{where} is {value!r}, and must be two whole numbers: how often there, and back")
        return 1, 0

    def row(self, row: object, where: str, count: int, *, may_be_none: bool = True) -> tuple[int | None, ...]:
        """A number for each kind, or None."""
        if not isinstance(row, Sequence) or isinstance(row, str | bytes) or len(row) != count:
            self.problem(f"{where} is {row!r}, and must be a list of a number for each of {count} kinds")
            return (0,) * count
        return tuple(
            None if value is None and may_be_none else self.number(value, f"{where}[{at}]")
            for at, value in enumerate(row)
        )

    def kind(self, value: object, where: str) -> LineKind:
        said = self.mapping(value, where, _KIND_KEYS)
        return LineKind(
            capacity_bits=self.whole(said, "cap", f"{where}.cap"),
            hops_ps=self.whole(said, "aside", f"{where}.aside", default=0),
            is_host=self.flag(said, "host", f"{where}.host"),
        )

    def tie(self, value: object, where: str) -> LineTie:
        said = self.mapping(value, where, _TIE_KEYS)
        return LineTie(
            pieces=self.numbers(said, "pieces", f"{where}.pieces"),
            bits=self.whole(said, "bits", f"{where}.bits"),
        )

    def piece(self, value: object, where: str, *, kinds: int) -> LinePiece:
        said = self.mapping(value, where, _PIECE_KEYS)
        bits = self.whole(said, "bits", f"{where}.bits")
        homes = said.get("homes", range(kinds))
        if not isinstance(homes, Sequence) or isinstance(homes, str | bytes):
            self.problem(f"{where}.homes is {homes!r}, and must be a list of kinds")
            homes = ()
        found = frozenset(self.number(home, f"{where}.homes[{at}]") for at, home in enumerate(homes))
        if any(home >= kinds for home in found):
            self.problem(
                f"{where}.homes names kind {max(found)}, and there are {kinds} kinds, counted from 0"
            )
        host = said.get("host")
        return LinePiece(
            bits=bits,
            state_bits=self.whole(said, "state", f"{where}.state", default=0),
            streamed_bits=self.whole(said, "streamed", f"{where}.streamed", default=bits),
            homes=found,
            run_ps=self.row(said.get("run"), f"{where}.run", kinds),
            fetch_ps=self.row(said.get("fetch", (None,) * kinds), f"{where}.fetch", kinds),
            host_ps=None if host is None else self.number(host, f"{where}.host"),
            beside_bits=self.whole_row(said.get("beside", (0,) * kinds), f"{where}.beside", kinds),
            passes=self.pair(said.get("passes", (1, 0)), f"{where}.passes"),
        )

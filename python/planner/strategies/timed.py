"""The strategies that go by time: problems for the core, and its answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

from planner import _core
from planner.devices.keys import DeviceKey
from planner.errors import InfeasibleError, InvalidInputError
from planner.strategies.line_tables import LineProblem, read_table

_PieceRow: TypeAlias = tuple[int, int, int, int, list[int | None], list[int | None], int | None, list[int]]
Way: TypeAlias = Literal["resident", "fetched", "beside", "tied"]


@dataclass(frozen=True, slots=True, kw_only=True)
class LineRun:
    """Consecutive pieces that one device runs: from `first` up to `end`, which is not one of them."""

    device: int
    first: int
    end: int
    ps: int
    ways: tuple[Way, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class LineAnswer:
    """A plan, and what is known of it."""

    value_ps: int
    lower_bound_ps: int
    latency_ps: int
    bottleneck_ps: int
    runs: tuple[LineRun, ...]
    steps: int

    @property
    def proven(self) -> bool:
        """No plan in which each device has at most one run is better."""
        return self.value_ps == self.lower_bound_ps


def solve_table(table: Mapping[str, object]) -> LineAnswer:
    """The best plan of a table of plain numbers.

    Each device executes at most one run of consecutive pieces. Inside a run, each piece lies on its device, or on the host and is
    fetched, or, if it has no state, lies on the host and runs there. There is room for what lies on a device, the state of what
    it runs, and `staging` times the largest piece that it fetches.

    Args:
        table: `objective` (`latency`, the sum of runs and hops; `throughput`, the longest run; `pipeline`, the sum and
            `batches` - 1 times the longest run); `any` order of devices, or the order given; `overlap`: a run takes the longer of
            what it runs and what it fetches, not both; `staging`; `kinds` of devices, each with `cap` in bits, `aside`, the
            picoseconds to the host and back, and whether it is the `host`; `devices`, by their kinds; `hop`, picoseconds from
            kind to kind; `pieces`, each with its `bits`, the bits of `state` that lie where it runs, the bits that fetching it
            takes (`streamed`), the kinds that may be its `homes`, and picoseconds to `run` and to `fetch` by kind, and on the
            `host`; by kind, bits that are kept `beside` it while the host runs it, for steps in which it is brought in; and how
            often a hop is made where a run begins with it, to its device and back to that of the run before (`passes`, [1, 0] by
            default; where it is made back, no run of the host ends). None is what may not be. `ties` name `pieces` that share their
            weights, and the `bits` of these: they have one home, and those that another device reaches run there all the same
            (`tied`), at two hops. `closed` are numbers of pieces before which no run ends.

    Raises:
        InvalidInputError: what cannot be read, all of it at once; more than 64 devices; numbers too large to be added.
        InfeasibleError: no plan has room. Fields: ``is_proven``.

    Guarantee: `lower_bound_ps` is at most the value of every plan; the same table gives the same plan everywhere.

    Cost: at most `search_steps` steps where bounds do not settle it. The GIL is released.

    Example:
        >>> answer = solve_table({
        ...     "objective": "latency", "kinds": [{"cap": 10}, {"cap": 10}], "devices": [0, 1], "hop": [[0, 1], [1, 0]],
        ...     "pieces": [{"bits": 4, "run": [5, 2]}] * 4,
        ... })
        >>> answer.value_ps, answer.proven, [(run.device, run.first, run.end) for run in answer.runs]
        (15, True, [(0, 0, 2), (1, 2, 4)])
    """
    return solve_line(read_table(table))


def solve_line(problem: LineProblem) -> LineAnswer:
    """The best plan of a problem; see :func:`solve_table`. Raises InvalidInputError, InfeasibleError."""
    try:
        line = core_line(problem)
        found = line.solve(
            objective=problem.objective,
            batches=problem.batches,
            any_order=problem.any_order,
            search_steps=problem.search_steps,
        )
    except ValueError as error:
        raise InvalidInputError(str(error)) from None
    if isinstance(found, _core.TimedFailure):
        said = "there is none" if found.proven else "none was found"
        raise InfeasibleError(
            f"no plan of {len(problem.pieces)} pieces keeps within the rooms of {len(problem.devices)} devices: {said}; more "
            "room, or pieces that may lie on the host, would help",
            is_proven=found.proven,
        )
    runs = tuple(
        LineRun(device=device, first=first, end=end, ps=ps, ways=tuple(ways))
        for device, first, end, ps, ways in found.runs
    )
    return LineAnswer(
        value_ps=found.value_ps,
        lower_bound_ps=found.lower_bound_ps,
        latency_ps=found.latency_ps,
        bottleneck_ps=found.bottleneck_ps,
        runs=runs,
        steps=found.steps,
    )


def core_line(problem: LineProblem) -> _core.TimedLine:
    """The pieces and devices of a problem as the core takes them. Raises ValueError where they cannot be planned."""
    made: dict[int, _PieceRow] = {}  # most pieces of a line are one object
    for piece in problem.pieces:
        if id(piece) not in made:
            made[id(piece)] = (
                piece.bits,
                piece.state_bits,
                piece.streamed_bits,
                sum(1 << home for home in piece.homes if home < 64),
                list(piece.run_ps),
                list(piece.fetch_ps),
                piece.host_ps,
                list(piece.beside_bits or (0,) * len(problem.kinds)),
            )
    passing = [piece.passes for piece in problem.pieces]
    return _core.TimedLine(
        pieces=[made[id(piece)] for piece in problem.pieces],
        kinds=[(kind.capacity_bits, kind.hops_ps, kind.is_host) for kind in problem.kinds],
        devices=list(problem.devices),
        hop_ps=[list(row) for row in problem.hop_ps],
        schedule=problem.schedule,
        staging_blocks=problem.staging_blocks,
        ties=[(list(tie.pieces), tie.bits) for tie in problem.ties],
        closed=list(problem.closed),
        passing=passing if any(passes != (1, 0) for passes in passing) else [],
    )


def grouped_keys(
    blocks: Sequence[Sequence[str]], homes: Sequence[DeviceKey], runs: Sequence[DeviceKey]
) -> dict[str, tuple[DeviceKey, DeviceKey]]:
    """By name, where it lies and runs: the fewest names that cover all blocks, in the order of these.

    Args:
        blocks: the names of each.
        homes, runs: of each block, where it lies and where it runs.
    """
    pairs = list(dict.fromkeys(zip(homes, runs, strict=True)))
    numbers = {pair: number for number, pair in enumerate(pairs)}
    names = [name for block in blocks for name in block]
    values = [
        numbers[pair]
        for block, pair in zip(blocks, zip(homes, runs, strict=True), strict=True)
        for _ in block
    ]
    return {name: pairs[number] for name, number in _core.clean_keys(names, values)}

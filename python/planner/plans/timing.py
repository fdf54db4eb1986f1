"""What a plan says of time: modelled, never measured."""

from __future__ import annotations

from dataclasses import dataclass

from planner.choices import Objective, PieceWay, RateKind
from planner.devices.keys import DeviceKey
from planner.names import counted
from planner.plans.device_map import HostSteps

__all__ = ["OtherWay", "TimedPiece", "TimedStage", "Timing"]

_PS_PER_S = 10**12


@dataclass(frozen=True, slots=True, kw_only=True)
class TimedStage:
    """A run: neighbouring pieces that one device executes.

    Args:
        device: which.
        first, last: the names of its first and last piece.
        ps: what it takes, fetches included.
    """

    device: DeviceKey
    first: str
    last: str
    ps: int


@dataclass(frozen=True, slots=True, kw_only=True)
class OtherWay:
    """Another way of a piece, and the rate that would make both take as long.

    Args:
        way: "fetched" or "beside".
        ps: what the piece would take that way, hops and fetches included.
        rate: which: of the "link" from the cpu to the device of its run; of the cpu, its "memory", its "flops", or the "weights" that its
            products get through.
        per_s: bytes, or operations, in a second as the machine says it.
        even_per_s: with so many, both ways take as long.
        has_room: whether the plan has the room that it takes; where it has not, another piece would have to leave, which is not in these
            times.
    """

    way: PieceWay
    ps: int
    rate: RateKind
    per_s: int
    even_per_s: int
    has_room: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class TimedPiece:
    """One piece of the line, in picoseconds.

    Args:
        name: its first module or tensor.
        device: the device of its run.
        way: "resident" there; "fetched" from where it rests; "beside", on the host, which runs it; or "tied", on the device of what
            shares its weights, which runs it.
        run_ps: what running it takes, where it runs.
        fetch_ps: what bringing its weights in takes; 0 for one that is not fetched.
        hop_ps: what its arguments and results take to what runs it and back; 0 where that is the device of its run.
        other: what else it could be that is not resident; None where room alone decides.
        host_up_to_tokens: of one "beside": the most new tokens of a step that the host runs; in longer ones it is fetched to the device
            of its run, which has room for that. None where the host runs it in all steps.
    """

    name: str
    device: DeviceKey
    way: PieceWay
    run_ps: int
    fetch_ps: int
    hop_ps: int
    other: OtherWay | None = None
    host_up_to_tokens: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Timing:
    """How long one step is modelled to take.

    Args:
        objective: what was to be small: "latency", the sum of all runs and of the hops between them; "throughput", the longest
            run; "pipeline", the first of some batches and as often the longest run as there are others.
        tokens: new tokens of the step, over all sequences.
        batches: of "pipeline"; else 1.
        value_ps: what the plan comes to.
        lower_bound_ps: no plan of those that are considered comes to less.
        latency_ps, bottleneck_ps: the sum, and what the busiest device takes: the longest run, or one with what its device runs for
            others besides.
        stages: the runs, in the order of execution.
        pieces: in the order of execution.
        machine: fingerprint of the machine.
        from_table: names of devices whose rates are those of the table of known cards.
        cache_tokens: tokens of cache, over all sequences, that the device with room for fewest has room for; None where that was not
            to be large.
    """

    objective: Objective
    tokens: int
    batches: int
    value_ps: int
    lower_bound_ps: int
    latency_ps: int
    bottleneck_ps: int
    stages: tuple[TimedStage, ...]
    pieces: tuple[TimedPiece, ...]
    machine: str
    from_table: tuple[DeviceKey, ...] = ()
    cache_tokens: int | None = None

    @property
    def proven(self) -> bool:
        """Whether no plan of those that are considered is better: one run a device, in an order of execution that is kept."""
        return self.value_ps == self.lower_bound_ps

    @property
    def host_steps(self) -> dict[str, HostSteps]:
        """By name, the parts that the host runs in short steps, and which these are."""
        return {
            piece.name: HostSteps(piece.host_up_to_tokens, piece.device)
            for piece in self.pieces
            if piece.host_up_to_tokens is not None
        }

    @property
    def long_steps(self) -> str:
        """What longer steps do otherwise, in one line; nothing where they are like this one."""
        limits = [steps.tokens for steps in self.host_steps.values()]
        if not limits:
            return ""
        most = f"{limits[0]}" if min(limits) == max(limits) else f"{min(limits)} to {max(limits)}"
        return (
            f"{counted(len(limits), 'part')} that the host runs {'is' if len(limits) == 1 else 'are'} brought in in steps of more than "
            f"{most} tokens"
        )

    @property
    def gap(self) -> float:
        """By how much the plan may be worse than the best, as a share of it."""
        return self.value_ps / self.lower_bound_ps - 1 if self.lower_bound_ps else 0.0

    @property
    def tokens_per_s(self) -> float:
        """New tokens in a second, as modelled: of "throughput", as many as pass the longest run."""
        step_ps = self.bottleneck_ps if self.objective == "throughput" else self.latency_ps
        return self.tokens * _PS_PER_S / step_ps if step_ps else 0.0

    @property
    def sentence(self) -> str:
        """The answer in one line."""
        what = "the longest stage" if self.objective == "throughput" else "a step"
        step_ps = self.bottleneck_ps if self.objective == "throughput" else self.latency_ps
        known = "proven best" if self.proven else f"at most {self.gap:.1%} above the best"
        tokens = f"{self.tokens} token" + ("s" if self.tokens > 1 else "")
        table = "" if not self.from_table else ", by a table of cards"
        return (
            f"modelled: {step_ps / 1e9:.3g} ms for {what} of {tokens}, {self.tokens_per_s:.3g} tokens a second{table}; {known} of the "
            f"plans with one run a device{self._with_cache}"
        )

    @property
    def _with_cache(self) -> str:
        if self.cache_tokens is None:
            return ""
        return f" and room for {self.cache_tokens} tokens of cache, the most that every device has"

"""What verifying a plan has found."""

from __future__ import annotations

from dataclasses import dataclass

from planner.dispatching.mixed.crossing import Crossing
from planner.names import counted
from planner.units import format_bytes
from planner.verification.peak_rows import PeakRow

__all__ = ["Verification"]


@dataclass(frozen=True, slots=True)
class Verification:
    """Whether a dispatched model would run, and what its own code would bring from one device to another in each forward.

    Args:
        runs: True, or False; None where that depends on values that are not there.
        error: why it does not run, or why that cannot be told, with the module and the line; None if it runs.
        crossings: what one forward brings together outside of blocks, up to the error if there is one.
        peaks: with a plan that has a workload, by phase and device, the most bytes that the plan predicts and that a run of the
            workload has found; empty without one, or if it does not run.
        peaks_error: why there are none, where the plan has a workload and runs; None where there are.

    Example:
        >>> print(Verification(True, None, (Crossing("net.py:12", "add", 1, 0, 2, 4096),)))
        runs; 1 crossing (4.00 KiB) in each forward
          net.py:12: add brought 2 tensors (4.00 KiB) from 1 to 0
    """

    runs: bool | None
    error: str | None
    crossings: tuple[Crossing, ...]
    peaks: tuple[PeakRow, ...] = ()
    peaks_error: str | None = None

    def __str__(self) -> str:
        head = {True: "runs", False: "does not run", None: "cannot be told"}[self.runs]
        if self.error is not None:
            head = f"{head}: {self.error}"
        if self.crossings:
            size_bytes = sum(crossing.size_bytes for crossing in self.crossings)
            what = counted(len(self.crossings), "crossing")
            until = " in each forward" if self.runs else " until then"
            head = f"{head}; {what} ({format_bytes(size_bytes)}){until}"
        lines = [head, *(f"  {crossing}" for crossing in self.crossings)]
        if self.peaks:
            lines += ["memory, as planned and as found:", *(f"  {row}" for row in self.peaks)]
        if self.peaks_error is not None:
            lines.append(f"memory was not found: {self.peaks_error}")
        return "\n".join(lines)

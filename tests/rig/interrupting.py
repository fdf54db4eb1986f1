"""Raises KeyboardInterrupt wherever CPython could: a run that is tried again and again, each time stopped one point later."""

from __future__ import annotations

import dis
import itertools
import sys
from collections.abc import Callable
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

__all__ = ["ARE_POINTS_KNOWN", "interrupted_in", "points_in"]

ARE_POINTS_KNOWN = sys.version_info[:2] == (3, 11)
# After these, and nowhere else, CPython lets a signal's handler run (3.11, ceval.c: CHECK_EVAL_BREAKER).
TAKES_SIGNALS = {"RESUME", "CALL", "CALL_FUNCTION_EX", "JUMP_BACKWARD"}


def signal_points(code: CodeType, found: dict[CodeType, set[int]]) -> set[int]:
    """Offsets of the instructions before which an interrupt can arrive."""
    if code not in found:
        rows = list(dis.get_instructions(code))
        found[code] = {
            after.offset for row, after in itertools.pairwise(rows) if row.opname in TAKES_SIGNALS
        } | {int(row.argval) for row in rows if row.opname == "JUMP_BACKWARD"}
    return found[code]


def interrupted_in(folders: tuple[Path, ...], run: Callable[[], Any], stop_at: int) -> bool:
    """Runs with a KeyboardInterrupt at the n-th point inside of code of these folders; False if there are fewer."""
    try:
        points_in(folders, run, stop_at)
    except KeyboardInterrupt:
        return True
    return False


def points_in(folders: tuple[Path, ...], run: Callable[[], Any], stop_at: int | None = None) -> int:
    """How many points a run has, each time one is reached counted; stopped at one of them."""
    prefixes = tuple(str(folder) for folder in folders)
    steps = 0
    points: dict[CodeType, set[int]] = {}

    def trace(frame: FrameType, event: str, _: Any) -> Any:
        nonlocal steps
        if not frame.f_code.co_filename.startswith(prefixes):
            return None
        frame.f_trace_opcodes, frame.f_trace_lines = True, False
        if event == "opcode" and frame.f_lasti in signal_points(frame.f_code, points):
            steps += 1
            if steps == stop_at:
                raise KeyboardInterrupt
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        run()
    finally:
        sys.settrace(before)
    return steps

"""`planner devices`: what this machine has free."""

from __future__ import annotations

import time
from typing import Annotated

import typer

from planner.cli.arguments import Json
from planner.cli.exits import OK
from planner.cli.output import show_table, write, write_json
from planner.detect import Free, free_devices
from planner.units import format_bytes

__all__ = ["command"]


def command(
    offload_folder: Annotated[
        str | None,
        typer.Option("--offload-folder", metavar="FOLDER", help="Also what its disk has free."),
    ] = None,
    as_json: Json = False,
) -> int:
    """List what this machine has free.

    Accelerators are found by torch, and importing it takes a second or more; budgets named with -d need neither.
    """
    start = time.perf_counter()
    found = free_devices(offload_folder)
    seconds = time.perf_counter() - start
    if as_json:
        write_json({"devices": [_data(free) for free in found], "seconds": round(seconds, 3)})
        return OK
    rows = [(free.device, format_bytes(free.free_bytes), free.pool or "", free.origin) for free in found]
    show_table(("device", "free", "shares", "said by"), rows, right=("free",))
    write(f"detected in {seconds:.1f} s, nearly all of it importing torch")
    return OK


def _data(free: Free) -> dict[str, object]:
    return {
        "device": str(free.device),
        "free_bytes": free.free_bytes,
        "pool": free.pool,
        "origin": free.origin,
    }

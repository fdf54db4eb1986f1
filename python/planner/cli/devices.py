"""`planner devices`: what this machine has free."""

from __future__ import annotations

import time
from importlib.util import find_spec

import click

from planner.cli.arguments import json_option
from planner.cli.exits import OK
from planner.cli.output import show_table, write, write_json
from planner.cli.parsing import FILE, Command
from planner.cli.waiting import saying
from planner.devices.absence import no_accelerator
from planner.devices.detect import FreeMemory, free_devices, free_disk, free_host_memory
from planner.units import format_bytes


@click.command(cls=Command)
@click.option("--offload-folder", type=FILE, metavar="FOLDER", help="Also what its disk has free.")
@json_option
def command(offload_folder: str | None, as_json: bool) -> int:
    """List what this machine has free.

    Accelerators are found by torch, and importing it takes a second or more; budgets named with -d need neither.
    """
    start = time.perf_counter()
    has_torch = find_spec("torch") is not None
    with saying("importing torch to find accelerators"):
        found = free_devices(offload_folder) if has_torch else _without_accelerators(offload_folder)
    seconds = time.perf_counter() - start
    if as_json:
        listed = [_data(free) for free in found]
        write_json({"devices": listed, "has_torch": has_torch, "seconds": round(seconds, 3)})
        return OK
    rows = [(free.device, format_bytes(free.free_bytes), free.pool or "", free.origin) for free in found]
    show_table(("device", "free", "shares", "said by"), rows, right=("free",))
    if has_torch:
        write(f"detected in {seconds:.1f} s, nearly all of it importing torch")
    absence = no_accelerator()
    if absence is not None:
        write(absence)
    return OK


def _without_accelerators(offload_folder: str | None) -> tuple[FreeMemory, ...]:
    disk = () if offload_folder is None else (free_disk(offload_folder),)
    return (free_host_memory(), *disk)


def _data(free: FreeMemory) -> dict[str, object]:
    return {
        "device": str(free.device),
        "free_bytes": free.free_bytes,
        "pool": free.pool,
        "origin": free.origin,
    }

"""`planner probe`: what this machine does in a second, measured."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import click

from planner.cli.arguments import json_option
from planner.cli.exits import OK
from planner.cli.output import show_table, write, write_json_text, write_remark
from planner.cli.parsing import FILE, Command
from planner.devices.machine import Machine
from planner.devices.rate import Rate
from planner.errors import InvalidInputError
from planner.units import format_bytes


@click.command(cls=Command)
@click.option("--out", type=FILE, metavar="FILE", help="Where to write it, for --machine.")
@click.option("--folder", type=FILE, metavar="FOLDER", help="Whose disk is measured.")
@click.option(
    "--seconds",
    type=click.FloatRange(min=0, min_open=True),
    default=8.0,
    show_default=True,
    help="For each device.",
)
@json_option
def command(out: str | None, folder: str | None, seconds: float, as_json: bool) -> int:
    """Measure what this machine reads, computes and copies in a second.

    Nothing else should run meanwhile: numbers that lie far apart are marked.
    """
    # Asked before minutes are spent on what could then not be written.
    if out is not None and not Path(out).absolute().parent.is_dir():
        raise InvalidInputError(f"{out} cannot be written: there is no folder {Path(out).absolute().parent}")
    from planner.measuring.probe import probe

    found = probe(folder=folder, seconds=seconds, tell=lambda what: write_remark(f"measuring {what} …"))
    if out is not None:
        try:
            Path(out).write_text(found.machine.to_json(), encoding="utf-8")
        except OSError as error:
            raise InvalidInputError(f"{out} cannot be written: {error}") from error
    if as_json:
        write_json_text(found.machine.to_json().rstrip())
    else:
        show_table(
            ("what", "rate", "lowest", "highest", ""),
            _rows(found.machine),
            right=("rate", "lowest", "highest"),
        )
    for note in found.notes:
        write_remark(f"not measured: {note}")
    if out is not None and not as_json:
        write(f"written to {out}")
    return OK


def _rows(machine: Machine) -> Iterator[tuple[str, str, str, str, str]]:
    for device in machine.devices:
        name = f"{device.key} ({device.name or device.kind})"
        if device.memory_bytes_per_s is not None:
            yield _row(f"{name} reads", device.memory_bytes_per_s)
        for dtype, rates in device.weights_bytes_per_s.items():
            for tokens, rate in rates.items():
                yield _row(f"{device.key} {dtype} weights, {tokens} token{'s' if tokens > 1 else ''}", rate)
        if device.launch_ps is not None:
            yield _row(f"{device.key} starts a module in", device.launch_ps, in_us=True)
    for link in machine.links:
        kind = (
            ""
            if link.source == "disk" or "cpu" not in (link.source, link.to)
            else ", pinned"
            if link.is_pinned
            else ", pageable"
        )
        yield _row(f"{link.source} to {link.to}{kind}", link.bytes_per_s)


def _row(what: str, rate: Rate, *, in_us: bool = False) -> tuple[str, str, str, str, str]:
    numbers = [
        f"{each / 1e6:.0f} µs" if in_us else f"{format_bytes(each)}/s"
        for each in (rate.value, rate.low, rate.high)
    ]
    return what, numbers[0], numbers[1], numbers[2], "busy" if rate.is_busy else ""

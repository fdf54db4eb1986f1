"""`planner bench`: how long planning takes here, beside accelerate where it is installed."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Annotated, Final

import typer

from planner.checkpoint.source import open_source
from planner.cli.arguments import Json
from planner.cli.beside import accelerate_plan
from planner.cli.exits import OK
from planner.cli.output import noted, show_table, write, write_json, write_notes
from planner.cli.synthetic import write_synthetic
from planner.devices.keys import DeviceKey
from planner.errors import InvalidInputError
from planner.model.layout import Layout
from planner.model.tree import ModuleTree
from planner.planning import plan, plan_many
from planner.units import format_bytes

_MANY: Final = 1000


def command(
    model: Annotated[
        str | None,
        typer.Argument(
            metavar="MODEL",
            help="As for `planner plan`; without it, the headers of a 70B Llama in 30 files, made for the purpose.",
            show_default=False,
        ),
    ] = None,
    repeat: Annotated[
        int, typer.Option("--repeat", min=1, max=100_000, metavar="TIMES", help="Times that each is run.")
    ] = 15,
    as_json: Json = False,
) -> int:
    """Measure how long planning takes here.

    Medians, after one run to warm up.
    """
    with _source(model) as path:
        opened = open_source(path)
        tree = opened.tree
        total_bytes = int(Layout(tree).stored_sizes().get("", 0))
        if not total_bytes:
            raise InvalidInputError(f"{path}: holds no tensor, so there is nothing to plan", file=path)
        budgets = _budgets(total_bytes)
        figures = dict(_figures(path, tree, budgets, repeat))
    if as_json:
        facts = {"modules": tree.module_count, "tensors": tree.tensor_count, "total_bytes": total_bytes}
        write_json({**facts, "repeat": repeat, "median_seconds": figures, **noted(opened.notes)})
        return OK
    rows = [
        (what, found if isinstance(found, str) else f"{found * 1e3:.2f} ms")
        for what, found in figures.items()
    ]
    write(f"{tree.module_count} modules, {tree.tensor_count} tensors, {format_bytes(total_bytes)}")
    show_table(("median", "time"), rows, right=("time",))
    write_notes(opened.notes)
    return OK


@contextmanager
def _source(model: str | None) -> Iterator[str]:
    if model is not None:
        yield model
        return
    with tempfile.TemporaryDirectory(prefix="planner-bench-") as folder:
        write_synthetic(folder)
        yield folder


def _budgets(total_bytes: int) -> dict[DeviceKey, int]:
    """Two unlike cards that hold nine tenths of the model together, and a host that holds all of it."""
    return {0: total_bytes * 6 // 10, 1: total_bytes * 3 // 10, "cpu": total_bytes}


def _figures(
    path: str, tree: ModuleTree, budgets: dict[DeviceKey, int], repeat: int
) -> Iterator[tuple[str, float | str]]:
    """By what was done, seconds, or why there are none."""
    rows = [{**budgets, 0: budgets[0] + row} for row in range(_MANY)]
    yield "read the headers", _median_s(lambda: open_source(path), repeat)
    yield "read and plan", _median_s(lambda: plan(open_source(path), max_memory=budgets), repeat)
    yield "plan again", _median_s(lambda: plan(tree, max_memory=budgets), repeat)
    yield f"plan for {_MANY} budgets", _median_s(lambda: plan_many(tree, rows), 1)
    theirs = accelerate_plan(tree, budgets)
    yield "accelerate, from the live model", theirs if isinstance(theirs, str) else _median_s(theirs, repeat)


def _median_s(call: Callable[[], object], repeat: int) -> float:
    from statistics import median  # it loads fractions and decimals, which no other command needs

    call()
    times = []
    for _ in range(repeat):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return median(times)

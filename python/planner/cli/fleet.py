"""`planner plan --budgets`: one model, many budgets: a table for people, a line of JSON for each for programs."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Sequence
from typing import Final

from planner.checkpoint.source import Opened
from planner.cli.exits import NEGATIVE, OK, failure_of
from planner.cli.files import STANDARD_STREAM, BudgetRow, read_budget_rows, write_file
from planner.cli.output import console, json_text, show_table, write_json_text, write_remark
from planner.config import Stack
from planner.errors import InfeasibleError
from planner.planning import plan_many
from planner.plans.parts import DevicePlan
from planner.plans.places import place_name
from planner.plans.plan import Plan
from planner.settings.schema import Settings
from planner.units import format_bytes

_ROWS_AT_ONCE: Final = 256  # planned on all cores; the bar moves and lines appear after each lot

_Planned = tuple[BudgetRow, Plan | InfeasibleError]


def plan_fleet(
    opened: Opened, stack: Stack[Settings], file: str, output: str | None, *, as_json: bool
) -> int:
    """Plans for each row of a file.

    Args:
        opened: the model.
        stack: settings for all rows.
        file: budgets, one JSON object in each line.
        output: where lines of JSON go; None and "-" are standard output.
        as_json: lines of JSON on a terminal, too.

    Returns:
        The exit code: 1 if any row has no plan.

    Raises:
        InvalidInputError: a line that holds no budgets; then nothing is planned. Fields: ``file``, ``line``.
    """
    rows = read_budget_rows(file)
    planned = _planned(opened, stack, rows)
    if output is None and sys.stdout.isatty() and not as_json:
        return _show(planned)
    is_all, lines = True, list[str]()
    for number, (row, made) in enumerate(planned, start=1):
        is_all = is_all and isinstance(made, Plan)
        line = _line(number, row, made)
        if output in (None, STANDARD_STREAM):
            write_json_text(line)
        else:
            lines.append(line)
    if output not in (None, STANDARD_STREAM):
        write_file(output, "".join(f"{line}\n" for line in lines))
        write_remark(f"wrote {len(lines)} answers to {output}")
    return OK if is_all else NEGATIVE


def _planned(opened: Opened, stack: Stack[Settings], rows: Sequence[BudgetRow]) -> Iterator[_Planned]:
    from rich.progress import Progress

    errors = console(sys.stderr)
    with Progress(console=errors, transient=True, disable=not errors.is_terminal) as progress:
        bar = progress.add_task("planning", total=len(rows))
        for start in range(0, len(rows), _ROWS_AT_ONCE):
            lot = rows[start : start + _ROWS_AT_ONCE]
            plans = plan_many(opened, [row.budgets for row in lot], config=stack)
            yield from zip(lot, plans, strict=True)
            progress.advance(bar, len(lot))


def _show(planned: Iterable[_Planned]) -> int:
    """A line for each row: whether it fits, what is offloaded, and the accelerator with the least room left."""
    rows, is_all = list[tuple[str, str, str, str]](), True
    for number, (row, made) in enumerate(planned, start=1):
        name = row.name or str(number)
        if isinstance(made, Plan):
            offloaded_bytes = sum(made.offloaded_bytes.values())
            verdict = "runs, offloaded" if offloaded_bytes else "fits"
            rows.append((name, verdict, format_bytes(offloaded_bytes), _tightest(made)))
        else:
            is_all = False
            left_bytes = made.fields.get("shortfall_bytes")
            rows.append((name, "does not fit", "", _lacking(left_bytes)))
    show_table(("name", "verdict", "offloaded", "tightest card"), rows, right=("offloaded",))
    return OK if is_all else NEGATIVE


def _tightest(made: Plan) -> str:
    accelerators = [each for each in made.devices if each.kind == "accelerator" and each.used_bytes]
    if not accelerators:
        return "none is used"
    found = min(accelerators, key=_free_bytes)
    return f"{place_name(found.id)}, {format_bytes(_free_bytes(found))} left"


def _free_bytes(device: DevicePlan) -> float:
    return float("inf") if device.free_bytes is None else device.free_bytes


def _lacking(left_bytes: object) -> str:
    return f"{format_bytes(left_bytes)} too little" if isinstance(left_bytes, int) else ""


def _line(number: int, row: BudgetRow, made: Plan | InfeasibleError) -> str:
    """One row as JSON: its number, its name if it has one, its budgets, and its plan or why there is none."""
    budgets = {str(device): size for device, size in row.budgets.items()}
    name = "" if row.name is None else f'"name":{json_text(row.name)},'
    if isinstance(made, Plan):
        rest = f'"feasible":true,"plan":{made.to_json()}'
    else:
        rest = f'"feasible":false,"error":{json_text(failure_of(made).to_data())}'
    return f'{{"row":{number},{name}"budgets":{json_text(budgets)},{rest}}}'

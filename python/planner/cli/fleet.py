"""`planner plan --budgets`: one model, many budgets, one line of JSON for each."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Final

from planner.checkpoint.source import Opened
from planner.cli.exits import NEGATIVE, OK, failure_of
from planner.cli.files import read_budget_rows, write_file
from planner.cli.output import console, json_text, write_json_text
from planner.config import Stack
from planner.devices.keys import DeviceKey
from planner.errors import InfeasibleError
from planner.planning import plan_many
from planner.plans.plan import Plan
from planner.settings.schema import Settings

_ROWS_AT_ONCE: Final = 256  # planned on all cores; the bar moves and lines appear after each lot

_Budgets = Mapping[DeviceKey, int]


def plan_fleet(opened: Opened, stack: Stack[Settings], file: str, output: str | None) -> int:
    """Plans for each row of a file.

    Args:
        opened: the model.
        stack: settings for all rows.
        file: budgets, one JSON object in each line.
        output: where the lines go; None is standard output.

    Returns:
        The exit code: 1 if any row has no plan.

    Raises:
        InvalidInputError: a line that holds no budgets; then nothing is planned. Fields: ``file``, ``line``.
    """
    rows = read_budget_rows(file)
    lines, is_all = list[str](), True
    for number, (row, made) in enumerate(_planned(opened, stack, rows), start=1):
        is_all = is_all and isinstance(made, Plan)
        line = _line(number, row, made)
        if output is None:
            write_json_text(line)
        else:
            lines.append(line)
    if output is not None:
        write_file(output, "".join(f"{line}\n" for line in lines))
    return OK if is_all else NEGATIVE


def _planned(
    opened: Opened, stack: Stack[Settings], rows: Sequence[_Budgets]
) -> Iterator[tuple[_Budgets, Plan | InfeasibleError]]:
    from rich.progress import Progress

    errors = console(sys.stderr)
    with Progress(console=errors, transient=True, disable=not errors.is_terminal) as progress:
        bar = progress.add_task("planning", total=len(rows))
        for start in range(0, len(rows), _ROWS_AT_ONCE):
            lot = rows[start : start + _ROWS_AT_ONCE]
            yield from zip(lot, plan_many(opened, lot, config=stack), strict=True)
            progress.advance(bar, len(lot))


def _line(number: int, row: _Budgets, made: Plan | InfeasibleError) -> str:
    """One row as JSON: its number, its budgets, and its plan or why there is none."""
    budgets = {str(device): size for device, size in row.items()}
    if isinstance(made, Plan):
        rest = f'"feasible":true,"plan":{made.to_json()}'
    else:
        rest = f'"feasible":false,"error":{json_text(failure_of(made).to_data())}'
    return f'{{"row":{number},"budgets":{json_text(budgets)},{rest}}}'

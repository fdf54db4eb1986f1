"""Plans whose first screens a person can read in `golden`, at every width."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

from rich.console import Console

import planner
from planner.cli.synthetic import write_synthetic
from planner.report.terminal import plan_view

GIB = 1 << 30
GOLDEN = Path(__file__).parent / "golden"
WIDTHS = (40, 60, 80, 110, 200)
BUDGETS: dict[str, dict[Any, int]] = {
    "everything fits": {0: 80 * GIB, 1: 80 * GIB, "cpu": 200 * GIB},
    "two unlike cards": {0: 80 * GIB, 1: 24 * GIB, "cpu": 200 * GIB},
}
SIXTEEN: dict[Any, int] = dict.fromkeys(range(16), 10 * GIB)
TOO_SMALL: dict[Any, int] = {0: 24 * GIB, 1: 24 * GIB, "cpu": 64 * GIB}


def llama(folder: Path) -> Path:
    """A folder that looks like a model of 70B, without weights."""
    place = folder / "llama-70b"
    write_synthetic(place)
    return place


def drawn(view: Any, width: int, **console: Any) -> str:
    """What arrives in a file, without blanks at the ends of lines."""
    file = io.StringIO()
    Console(file=file, width=width, **console).print(view)
    return "".join(f"{line.rstrip()}\n" for line in file.getvalue().splitlines())


def golden_text(folder: Path, width: int) -> str:
    """All screens of one width, each under its title."""
    screens = {
        title: plan_view(planner.plan(folder, max_memory=budgets)) for title, budgets in BUDGETS.items()
    }
    if width == 110:
        screens["sixteen cards"] = plan_view(planner.plan(folder, max_memory=SIXTEEN))
    return "\n\n".join(f"---- {title}\n\n{drawn(view, width)}" for title, view in screens.items())

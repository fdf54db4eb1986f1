"""Plans whose first screens a person can read in `golden`, at every width.

`python tests/report/screens.py` writes them again; read what changed before it is kept.
"""

from __future__ import annotations

import io
import tempfile
from pathlib import Path
from typing import Any

from rich.console import Console

import planner
from planner.cli.synthetic import write_synthetic
from planner.errors import InfeasibleError
from planner.planning.partial import partial_plan
from planner.plans.no_plan import NoPlan
from planner.report.terminal import plan_view

Budgets = dict[Any, int]

GIB = 1 << 30
GOLDEN = Path(__file__).parent / "golden"
WIDTHS = (40, 60, 80, 110, 200)
FITS: Budgets = {0: 80 * GIB, 1: 80 * GIB, "cpu": 200 * GIB}
UNLIKE: Budgets = {0: 80 * GIB, 1: 24 * GIB, "cpu": 200 * GIB}
TOO_SMALL: Budgets = {0: 24 * GIB, 1: 24 * GIB, "cpu": 64 * GIB}
SIXTEEN: Budgets = dict.fromkeys(range(16), 10 * GIB)


def llama(folder: Path) -> Path:
    """A folder that looks like a model of 70B, without weights."""
    place = folder / "llama-70b"
    write_synthetic(place)
    return place


def refused(source: Any, **settings: Any) -> NoPlan:
    """What is shown where there is no plan."""
    try:
        planner.plan(source, **settings)
    except InfeasibleError as error:
        return partial_plan(error, source, **settings)
    raise AssertionError("there is a plan")


def drawn(view: Any, width: int, **console: Any) -> str:
    """What arrives in a file, without blanks at the ends of lines."""
    file = io.StringIO()
    Console(file=file, width=width, **console).print(view)
    return "".join(f"{line.rstrip()}\n" for line in file.getvalue().splitlines())


def golden_text(folder: Path, width: int) -> str:
    """All screens of one width, each under its title."""
    screens = {
        "everything fits": planner.plan(folder, max_memory=FITS),
        "two unlike cards": planner.plan(folder, max_memory=UNLIKE),
        "no plan": refused(folder, max_memory=TOO_SMALL),
    }
    if width == 110:
        screens["sixteen cards"] = planner.plan(folder, max_memory=SIXTEEN)
    return "\n\n".join(f"---- {title}\n\n{drawn(plan_view(plan), width)}" for title, plan in screens.items())


if __name__ == "__main__":
    GOLDEN.mkdir(exist_ok=True)
    place = llama(Path(tempfile.mkdtemp()))
    for each in WIDTHS:
        (GOLDEN / f"first_screen_{each}.txt").write_text(golden_text(place, each), encoding="utf-8")

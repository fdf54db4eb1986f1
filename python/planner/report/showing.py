"""Opens the report of a plan: in a browser, or below a cell of a notebook."""

from __future__ import annotations

import importlib
import sys
import tempfile
import webbrowser
from pathlib import Path
from typing import Any

from planner.model.tree import ModuleTree
from planner.plans.no_plan import NoPlan
from planner.plans.notebook import markup
from planner.plans.plan import Plan
from planner.report.html import html_report

__all__ = ["show"]

_FRAME_PIXELS = 900  # high, in a notebook


def show(plan: Plan | NoPlan, tree: ModuleTree | None = None) -> Path | None:
    """Opens the report of a plan.

    Args:
        plan: the plan; where there is none, what :func:`planner.planning.partial.partial_plan` says of the attempt.
        tree: the model it was made for, to look into blocks.

    Returns:
        The file that was written and that a browser was asked to open; None in a notebook, which shows it itself.

    Raises:
        PlanMismatchError: the tree is not the one that was planned. Fields: ``findings``.

    Cost: that of :func:`planner.report.html.html_report`, and a file in the system's folder for temporary ones.
    """
    page = html_report(plan, tree)
    if _is_notebook():
        _display(page)
        return None
    with tempfile.NamedTemporaryFile(
        "w", encoding="utf-8", prefix="planner-", suffix=".html", delete=False
    ) as file:
        file.write(page)
    path = Path(file.name)
    webbrowser.open(path.as_uri())
    return path


def _is_notebook() -> bool:
    """Whether the code runs in a kernel that can show HTML; a shell has no kernel."""
    loaded = sys.modules.get("IPython")
    shell = loaded.get_ipython() if loaded is not None else None
    return getattr(shell, "kernel", None) is not None


def _display(page: str) -> None:
    tools: Any = importlib.import_module("IPython.display")  # of whoever runs the notebook
    frame = f'<iframe srcdoc="{markup(page)}" width="100%" height="{_FRAME_PIXELS}" frameborder="0"></iframe>'
    tools.display(tools.HTML(frame))

"""A plan as one HTML file that needs no network: the first screen, lanes in the order of execution, treemap, table."""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Sequence
from importlib.resources import files

from planner.model.tree import ModuleTree
from planner.plans.first_screen import first_screen
from planner.plans.no_plan import NoPlan
from planner.plans.notebook import advice_list, devices_table, markup, notices_list, strip_picture
from planner.plans.parts import PlanParts
from planner.plans.plan import Plan
from planner.report.payload import page_json, payload
from planner.report.rows import plan_rows, uncounted_notices

__all__ = ["html_report"]

# One script for the page; each file uses only those before it.
_SCRIPTS = (
    *("bytes", "rows", "reasons", "nodes", "ordered", "treemap", "lanes"),
    *("details", "search", "table", "tabs", "page"),
)


def html_report(plan: Plan | NoPlan, tree: ModuleTree | None = None, *, remarks: Sequence[str] = ()) -> str:
    """A plan as a page to look at, search and pass on.

    Args:
        plan: the plan; where there is none, what :func:`planner.planning.partial.partial_plan` says of the attempt.
        tree: the model it was made for; without it, the page shows the names in the plan, down to its blocks.
        remarks: further notices, such as what was looked for where no accelerator was found.

    Returns:
        One self-contained HTML document. Its policy forbids any connection and any script or style but its own.

    Raises:
        PlanMismatchError: the tree is not the one that was planned. Fields: ``findings``.

    Guarantee: whatever a module is called, it is text in the page. Numbers are the plan's.

    Cost: O(modules + tensors); about 30 bytes of page for each.

    Example:
        >>> import torch
        >>> from planner import plan
        >>> page = html_report(plan(torch.nn.Linear(2, 2), max_memory={0: 100}))
        >>> page.startswith("<!doctype html>"), "http:" in page or "https:" in page
        (True, False)
    """
    screen = first_screen(plan, remarks=remarks)
    parts = plan.attempt if isinstance(plan, NoPlan) else plan
    rows = plan_rows(parts, tree)
    style, script = _asset("report.css"), "\n".join(_asset(f"{name}.js") for name in _SCRIPTS)
    filled = {
        "policy": _policy(style, script),
        "style": style,
        "script": script,
        "title": markup(f"{screen.name}: {screen.verdict}"),
        "name": markup(screen.name),
        "facts": markup(screen.facts),
        "verdict": markup(screen.verdict),
        "tone": screen.tone,
        "devices": devices_table(screen.devices),
        "strip": strip_picture(screen),
        "advice": advice_list(screen),
        "notices": notices_list(screen, uncounted_notices(rows)),
        "settings": _settings_rows(parts),
        "certificate": "" if isinstance(plan, NoPlan) else _certificate_rows(parts),
        "data": page_json(payload(parts, rows)),
    }
    # One pass, so that nothing in a part is taken for a place to fill.
    return re.sub(r"\{\{(\w+)\}\}", lambda place: filled[place[1]], _asset("report.html"))


def _asset(name: str) -> str:
    return files("planner.report").joinpath("assets", name).read_text(encoding="utf-8")


def _policy(style: str, script: str) -> str:
    """Content security: nothing is fetched, nothing runs but this script, nothing is written as markup."""
    return (
        f"default-src 'none'; script-src {_digest(script)}; style-src {_digest(style)}; img-src data:; "
        "base-uri 'none'; form-action 'none'; require-trusted-types-for 'script'; trusted-types 'none'"
    )


def _digest(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def _settings_rows(plan: PlanParts) -> str:
    """Settings that were given; defaults would only hide them."""
    return "".join(
        f'<tr><th scope="row">{markup(path)}</th><td>{markup(setting.value)}</td>'
        f"<td>{markup(plan.account.provenance.get(path, setting.rank))}</td></tr>"
        for path, setting in plan.account.settings.items()
        if setting.rank not in ("default", "computed")
    )


def _certificate_rows(plan: PlanParts) -> str:
    certificate = plan.certificate
    words = {
        "kind of source": plan.account.source.kind,
        "fingerprint": plan.account.source.fingerprint,
        "stage": certificate.stage,
        "proven": "yes" if certificate.proven else "no",
        "lower bound, bytes": certificate.lower_bound_bytes,
        "gap, bytes": certificate.gap_bytes,
        "returns": f"{certificate.returns}, at least {certificate.returns_lower_bound}",
        "steps of the search": certificate.steps,
    }
    return "".join(
        f'<tr><th scope="row">{key}</th><td>{markup(value)}</td></tr>' for key, value in words.items()
    )

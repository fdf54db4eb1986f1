"""The settings of a plan as it tells them: each value, its rank, and who said it."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import Any, Final

from planner.choices import RankName
from planner.config import Resolved
from planner.config.problem import Origin, Rank
from planner.config.resolved_node import ResolvedNode
from planner.devices.keys import DeviceKey
from planner.plans.parts import Setting
from planner.settings.schema import Settings
from planner.spelling import one_line

__all__ = ["provenance", "setting_values"]

_RANK_NAMES: Final[Mapping[Rank, RankName]] = {
    Rank.DEFAULT: "default",
    Rank.COMPUTED: "computed",
    Rank.IMPORTED: "imported",
    Rank.USER: "user",
    Rank.DERIVED: "derived",
}

_CODE: Final = re.compile(r"(keyword arguments|import) at ")
_NO_FILES: Final = ("keyword arguments", "import", "environment", "command line argument", "live ")


def setting_values(
    resolved: Resolved[Settings], own_budgets: Mapping[DeviceKey, int] | None
) -> dict[str, Setting]:
    """By path, the value of each setting and its rank.

    Args:
        resolved: the settings.
        own_budgets: budgets in the place of those that they say, if there are any.
    """
    found = {
        # A size is a number here, as all of a plan's bytes are; `written` gives it a unit, for files that people keep.
        _dotted(path): Setting(
            value=node.value if type(node.value) is int else node.written,
            rank=_RANK_NAMES[node.origin.rank],
        )
        for path, node in _leaves(resolved, own_budgets)
    }
    for key, size in (own_budgets or {}).items():
        found[f"max_memory.{key}"] = Setting(value=size, rank="user")
    return dict(sorted(found.items()))


def provenance(resolved: Resolved[Settings], own_budgets: Mapping[DeviceKey, int] | None) -> dict[str, str]:
    """By path, who said a setting; arguments as of :func:`setting_values`."""
    return {_dotted(path): _said_by(node.origin) for path, node in _leaves(resolved, own_budgets)}


def _leaves(
    resolved: Resolved[Settings], own_budgets: Mapping[DeviceKey, int] | None
) -> list[tuple[tuple[Any, ...], ResolvedNode]]:
    """The settings with one value each, without budgets that are replaced."""
    return [
        (path, node)
        for path, node in resolved.answers.items()
        if node.shape == "leaf" and not (own_budgets is not None and path[0] == "max_memory")
    ]


def _said_by(origin: Origin) -> str:
    """Who said a value, without lines of code and folders: these differ where the same is planned."""
    note = f" ({origin.note})" if origin.note else ""
    rank = origin.rank.name.lower()
    if origin.rank not in (Rank.IMPORTED, Rank.USER):
        return one_line(f"{rank}{note}")
    code = _CODE.match(origin.where)
    where = code[1] if code else origin.where
    is_file = not where.startswith(_NO_FILES)
    return one_line(f"{rank} · {os.path.basename(where) if is_file else where}{note}")


def _dotted(path: tuple[Any, ...]) -> str:
    return ".".join(map(str, path))

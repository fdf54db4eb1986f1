"""Classes whose stages were compared with the whole: a table that is shipped, written by ``benches/sweep_stages.py``."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Final

from torch import nn

from planner.pipelines.layers import Roles

__all__ = ["KnownClasses", "as_row"]

TABLE: Final = Path(__file__).with_name("stage_classes.jsonl")


@dataclass(frozen=True, slots=True)
class KnownClasses:
    """Classes that have passed, with what their models call around their layers.

    Args:
        transformers: the version that they were of.
        roles: by name of the class.
    """

    transformers: str
    roles: Mapping[str, Roles]

    @classmethod
    @cache
    def shipped(cls) -> KnownClasses:
        """The table of the package."""
        first, *rows = TABLE.read_text(encoding="utf-8").splitlines()
        return cls(json.loads(first)["transformers"], dict(map(_read_row, rows)))

    def roles_of(self, model: nn.Module) -> Roles | None:
        """Those of a model's class, None where it has not passed with the version of transformers that is here."""
        kind = type(model)
        transformers: Any = sys.modules.get("transformers")
        if transformers is None or transformers.__version__ != self.transformers:
            return None
        return self.roles.get(kind.__name__) if kind.__module__.startswith("transformers.") else None


def _read_row(line: str) -> tuple[str, Roles]:
    row = json.loads(line)
    name = row.pop("class")
    return name, Roles(**{when: frozenset(names) for when, names in row.items()})


def as_row(name: str, roles: Roles) -> dict[str, Any]:
    """A line of the table, as JSON."""
    parts = {"before": roles.before, "between": roles.between, "after": roles.after}
    return {"class": name, **{when: sorted(names) for when, names in parts.items()}}

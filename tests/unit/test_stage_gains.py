"""The table of what cuts are worth, in the page of machines, is what its command prints."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).parents[2]


def bench() -> ModuleType:
    spec = importlib.util.spec_from_file_location("stage_gains", ROOT / "benches/stage_gains.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where dataclasses look up their module
    spec.loader.exec_module(module)
    return module


def test_the_page_shows_what_the_command_prints() -> None:
    page = (ROOT / "docs/machines.md").read_text()
    assert "`python benches/stage_gains.py`" in page
    lines = list(bench().table(1))
    assert len(lines) == 2 + 8
    assert "\n".join(lines) in page

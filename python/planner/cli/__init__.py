"""The command line: `planner plan ./llama -d 0=80GiB`; see docs/cli.md."""

from __future__ import annotations

from planner.cli.app import main

__all__ = ["main"]

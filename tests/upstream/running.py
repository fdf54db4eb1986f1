"""pytest on others' test files, in a process of its own with our plugins."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from upstream.fetch import Upstream

__all__ = ["ROOT", "BrokenRunError", "results_of_pytest"]

ROOT = Path(__file__).parents[2]


class BrokenRunError(RuntimeError):
    """pytest did not get as far as a result."""


def results_of_pytest(
    options: Sequence[str],
    upstream: Upstream,
    *,
    time_limit_s: float,
    is_verbose: bool,
    variables: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """What a plugin wrote for its option `--results` in one run.

    Args:
        options: the plugin, its options, and the files.
        upstream: what those files import in addition.
        time_limit_s: for the whole run.
        is_verbose: shows what pytest prints.
        variables: of the environment, in addition.

    Raises:
        BrokenRunError: the run has no results; with what it printed.
    """
    with tempfile.TemporaryDirectory() as folder:
        results = Path(folder, "results.json")
        command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-q", "-c", os.devnull]
        command += ["--tb=short", "--results", str(results), *options]
        path = os.pathsep.join(
            [str(ROOT / "tests"), str(upstream.packages), os.environ.get("PYTHONPATH", "")]
        )
        environment = {**os.environ, "PYTHONPATH": path, "HF_HUB_OFFLINE": "1", **(variables or {})}
        done = subprocess.run(
            command,
            cwd=folder,
            env=environment,
            capture_output=not is_verbose,
            text=True,
            timeout=time_limit_s,
        )
        if not results.exists():
            raise BrokenRunError(f"exit code {done.returncode}\n{done.stdout}\n{done.stderr}")
        found: dict[str, Any] = json.loads(results.read_text())
        return found

"""Formats of quantisers on the command line: listed, planned, judged, and offered when a word is completed."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path


def planner(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "planner", *words], capture_output=True, text=True, check=False
    )


def test_sizes_in_a_format_are_those_of_the_plan_and_a_check_counts_the_same(tmp_path: Path) -> None:
    file = tmp_path / "plan.json"
    plan = planner("plan", "--example", "llama-70b", "-d", "0=80GiB", "--dtype", "nf4", "-o", str(file))
    assert plan.returncode == 0 and "estimate of nf4 as bitsandbytes" in plan.stdout
    sizes = planner("sizes", "--example", "llama-70b", "--dtype", "nf4", "--json")
    listed = json.loads(sizes.stdout)
    assert listed["total_bytes"] == json.loads(file.read_text())["source"]["total_bytes"]
    assert any("estimate of nf4" in note for note in listed["notes"])
    judged = planner("check", "--example", "llama-70b", str(file))
    assert judged.returncode == 0, judged.stderr
    tight = planner("check", "--example", "llama-70b", str(file), "-d", "0=39GiB")
    assert tight.returncode == 1, tight.stdout + tight.stderr

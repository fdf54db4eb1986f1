"""`benches/gpu.py`, rehearsed: what it finds, prints and writes, and its exit code."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from rig import missing

ROOT = Path(__file__).parents[2]
# Only what the script itself sets; its children find everything else.
SCRIPT = [sys.executable, str(ROOT / "benches/gpu.py")]
MARKED = """
import pytest

pytestmark = pytest.mark.gpu


def test_passes():
    pass


def test_fails():
    assert {fails} == 0


@pytest.mark.skipif(True, reason="needs another device")
def test_is_skipped():
    pass
"""


@pytest.fixture
def tests(tmp_path: Path) -> Path:
    """A folder with a file of tests that has the mark, and one that has not and could not be imported."""
    folder = tmp_path / "tests"
    folder.mkdir()
    (folder / "test_without_the_mark.py").write_text("raise RuntimeError")
    (folder / "test_marked.py").write_text(MARKED.format(fails=0))
    return folder


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(ROOT / "benches"))
    return importlib.import_module("gpu")


def run_of(gpu: Any, tests: Path, tmp_path: Path) -> Any:
    options = gpu.options_of(["--tests", str(tests)])
    return gpu.Run(tmp_path, gpu.environment(ROOT / "python"), options)


@pytest.mark.sweep  # half a minute of measuring
def test_the_whole_way(tests: Path, tmp_path: Path) -> None:
    """As on a machine that has neither transformers nor accelerate, and without a path to anything."""
    if reason := missing():
        pytest.skip(reason)
    given = ["--tests", tests, "--rounds", "1", "--only", "tests", "load"]
    done = subprocess.run(
        [*SCRIPT, "--virtual", tmp_path, *given, "--without", "transformers", "accelerate"],
        env={**{k: v for k, v in os.environ.items() if k != "PYTHONPATH"}, "OUT": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=500,
    )
    found = json.loads((tmp_path / "gpu.json").read_text())
    assert done.returncode == found["exit_code"] == 0, done.stdout + done.stderr
    for shown in (
        "load, warm / copy",
        "load, cold / load_file",
        "transformers is not installed",
        "tests: 2 passed, 0 failed, 1 skipped, 0 unfinished",
    ):
        assert shown in done.stdout, done.stdout
    assert "test_marked.py" in (tmp_path / "gpu_tests.txt").read_text()
    assert not list(tmp_path.glob("tmp*"))  # the model has gone again


@pytest.mark.sweep
def test_a_failed_test_is_named_and_told_by_the_exit_code(gpu: Any, tests: Path, tmp_path: Path) -> None:
    (tests / "test_marked.py").write_text(MARKED.format(fails=1))
    part = run_of(gpu, tests, tmp_path).tests(60)
    assert part.ended == "failed, exit code 1"
    assert [note.rpartition("::")[2] for note in part.notes] == ["test_fails"]
    assert gpu.exit_code([gpu.Part("machine"), part]) == 1


@pytest.mark.sweep  # waits for its time limit
def test_tests_that_do_not_end_are_stopped(gpu: Any, tests: Path, tmp_path: Path) -> None:
    """What has ended until then is known."""
    hangs = "\n\ndef test_hangs():\n    import time; time.sleep(600)\n"
    (tests / "test_marked.py").write_text(MARKED.format(fails=0) + hangs)
    part = run_of(gpu, tests, tmp_path).tests(10)
    assert part.ended == "out of time" and part.seconds < 10 + gpu.GRACE_S
    assert part.found == {"passed": 2, "failed": 0, "skipped": 1, "unfinished": 1}
    assert [note.rpartition("::")[2] for note in part.notes] == ["test_hangs"]
    assert gpu.exit_code([gpu.Part("machine"), part]) == 1


def test_without_an_accelerator_there_is_nothing_to_run_on(gpu: Any) -> None:
    assert gpu.exit_code([gpu.Part("machine", ended="failed, exit code 1")]) == 2


def test_each_part_gets_its_share_of_what_is_left(gpu: Any) -> None:
    budget = gpu.Budget(480, list(gpu.SHARES))
    shares = [budget.seconds(name) for name in gpu.SHARES]
    assert shares[0] < 110 and shares[-1] == pytest.approx(480 - gpu.GRACE_S, abs=1)


def test_without_the_extension_it_says_how_to_get_one(tmp_path: Path) -> None:
    copied = tmp_path / "benches"
    copied.mkdir()
    for name in ("gpu.py", "timing.py"):
        (copied / name).write_text((ROOT / "benches" / name).read_text())
    done = subprocess.run([sys.executable, str(copied / "gpu.py")], capture_output=True, text=True)
    assert done.returncode == 2 and "make wheel" in done.stderr

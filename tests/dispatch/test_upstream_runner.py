"""`make upstream`, without what it fetches: the plugin on a file of its own, and what is made of its outcomes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import upstream.__main__ as runner

TEST_FILE = """
import accelerate
import accelerate.utils.modeling
from accelerate import infer_auto_device_map
from accelerate.test_utils import torch_device
from accelerate.utils.modeling import compute_module_sizes, dtype_byte_size, get_state_dict_from_offload


class Taken:
    function = staticmethod(compute_module_sizes)  # taken while the file is imported, as a base class would be


def test_names_are_ours():
    for function in (Taken.function, dtype_byte_size, infer_auto_device_map):
        assert function.__module__.startswith("planner")


def test_facades_are_ours_while_tests_run():
    from accelerate.utils import find_tied_parameters

    assert find_tied_parameters.__module__.startswith("planner")


def test_accelerate_itself_is_as_it_was():
    assert accelerate.utils.modeling.compute_module_sizes.__module__ == "accelerate.utils.modeling"


def test_fails_with_either():
    assert torch_device == "cuda"
"""


def run(folder: Path, *options: str) -> dict[str, str]:
    (folder / "test_names.py").write_text(TEST_FILE)
    results = folder / "results.json"
    command = [sys.executable, "-m", "pytest", "-p", "upstream.plugin", "-p", "no:cacheprovider"]
    # Without a root, every folder from the top of the disk down to this one would be listed.
    command += [
        "-c",
        os.devnull,
        "--confcutdir",
        str(folder),
        "--results",
        str(results),
        *options,
        str(folder / "test_names.py"),
    ]
    path = os.pathsep.join([str(Path(runner.__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
    subprocess.run(command, env={**os.environ, "PYTHONPATH": path}, capture_output=True)
    return dict(json.loads(results.read_text())["outcomes"])


def test_test_files_get_ours_and_accelerate_keeps_its_own(tmp_path: Path) -> None:
    assert run(tmp_path, "--ours") == {
        "test_names::test_names_are_ours": "passed",
        "test_names::test_facades_are_ours_while_tests_run": "passed",
        "test_names::test_accelerate_itself_is_as_it_was": "passed",
        "test_names::test_fails_with_either": "failed",
    }


def test_without_the_option_nothing_is_replaced(tmp_path: Path) -> None:
    found = run(tmp_path)
    assert [name for name, outcome in found.items() if outcome == "passed"] == [
        "test_names::test_accelerate_itself_is_as_it_was"
    ]


def test_only_what_passes_with_theirs_can_be_lost() -> None:
    theirs = {"a::T.one": "passed", "a::T.two": "passed", "a::T.three": "failed", "b::T.four": "passed"}
    ours = {"a::T.one": "passed", "a::T.two": "failed", "a::T.three": "failed"}
    assert runner.lost(theirs, ours) == ["a::T.two", "b::T.four"]


def test_what_is_lost_must_be_explained(capsys: pytest.CaptureFixture[str]) -> None:
    assert runner.report([("cpu", "a::T.test_two")], "| `test_two` | why |") == 0
    assert "explained" in capsys.readouterr().out
    assert runner.report([("cpu", "a::T.test_two"), ("cpu", "a::T.test_one")], "| `test_two` | why |") == 1
    assert "(cpu, unexplained): a::T.test_one" in capsys.readouterr().out
    assert runner.report([], "") == 0

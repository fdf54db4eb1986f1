"""`python -m upstream.from_pretrained`, without what it fetches: what is made of the outcomes."""

from __future__ import annotations

import pytest

import upstream.from_pretrained.__main__ as runner
from upstream.from_pretrained.classes import CLASSES

THEIRS = {"A.test_cpu_offload": "passed", "B.test_cpu_offload": "passed", "C.test_cpu_offload": "failed"}


def test_only_what_passes_with_theirs_can_be_lost(capsys: pytest.CaptureFixture[str]) -> None:
    runs = {"theirs": THEIRS, "same map": THEIRS, "best": {**THEIRS, "A.test_cpu_offload": "failed"}}
    assert runner.report(runs, "") == 1
    assert runner.report(runs, "| `A.test_cpu_offload` | why |") == 0
    out = capsys.readouterr().out
    assert "not with best (unexplained): A.test_cpu_offload" in out
    assert "not with best (explained): A.test_cpu_offload" in out
    assert "B.test" not in out and "C.test" not in out


def test_a_test_that_ours_has_no_outcome_of_is_lost(capsys: pytest.CaptureFixture[str]) -> None:
    assert runner.report({"theirs": THEIRS, "best": {}}, "") == 1
    assert capsys.readouterr().out.count("unexplained") == 2


def test_the_table_has_each_test_and_the_sum(capsys: pytest.CaptureFixture[str]) -> None:
    runner.print_table({"theirs": THEIRS})
    rows = [line.split() for line in capsys.readouterr().out.splitlines() if "/" in line]
    assert rows[0] == ["test_cpu_offload", "2", "/", "1", "/", "0"]
    assert rows[-2] == ["all", "2", "/", "1", "/", "0"]


def test_each_class_is_named_once() -> None:
    assert len(set(CLASSES)) == len(CLASSES) == 47

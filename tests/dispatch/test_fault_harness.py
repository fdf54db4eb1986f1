"""The fault harness tells the ways of ending apart: a case for each."""

from __future__ import annotations

import ctypes
import mmap
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch

from planner import OffloadError, PlannerError
from rig.faults import MIB, Verdict, judge

SHORT_S = 2.0


def answers() -> None:
    assert torch.ones(4).sum() == 4


def raises_ours() -> None:
    raise OffloadError("the folder is full")


def raises_something() -> None:
    raise KeyError("weight")


def leaves() -> None:
    sys.exit(0)


def finds_a_difference() -> None:
    assert torch.equal(torch.ones(2), torch.zeros(2)), "values differ"


def reads_address_zero() -> None:
    ctypes.string_at(0)


def reads_a_truncated_file(path: str) -> None:
    with open(path, "w+b") as file:
        file.truncate(mmap.PAGESIZE)
        view = mmap.mmap(file.fileno(), mmap.PAGESIZE)
        file.truncate(0)
        view[0]


def dies_without_a_word() -> None:
    os._exit(7)


def waits_for_itself() -> None:
    lock = threading.Lock()
    lock.acquire()
    lock.acquire()


def leaves_a_thread_behind() -> None:
    threading.Thread(target=time.sleep, args=(60,)).start()


def starts_a_process(path: str) -> None:
    child = subprocess.Popen(["sleep", "60"])
    Path(path).write_text(str(child.pid))
    child.wait()


def takes_much() -> None:
    kept = [torch.ones(16 * MIB, dtype=torch.uint8) for _ in range(64)]
    time.sleep(60)
    assert kept


def prints() -> None:
    print("to the output", flush=True)
    os.write(2, b"to the errors\n")


@pytest.mark.parametrize(
    ("case", "verdict", "error", "message"),
    [
        (answers, Verdict.CLEAN, None, ""),
        (raises_ours, Verdict.CLEAN, "OffloadError", "the folder is full"),
        (raises_something, Verdict.UNCLEAR, "KeyError", "'weight'"),
        (leaves, Verdict.UNCLEAR, "SystemExit", "0"),
        (finds_a_difference, Verdict.WRONG, "AssertionError", "values differ"),
        (reads_address_zero, Verdict.CRASH, None, "SIGSEGV"),
        (dies_without_a_word, Verdict.CRASH, None, "exit code 7"),
        (waits_for_itself, Verdict.HANG, None, "was not over"),
        (leaves_a_thread_behind, Verdict.HANG, None, "was not over"),
    ],
)
def test_each_way_of_ending_has_its_verdict(
    case: object, verdict: Verdict, error: str | None, message: str
) -> None:
    outcome = judge(case, clean_errors=[PlannerError], time_limit_s=SHORT_S)
    assert (outcome.verdict, outcome.error) == (verdict, error)
    assert message in outcome.message


def test_memory_has_a_limit() -> None:
    outcome = judge(takes_much, memory_limit_bytes=200 * MIB)
    assert outcome.verdict is Verdict.GREEDY
    assert f"of {200 * MIB}" in outcome.message


def test_reading_past_the_end_of_a_file_is_a_crash(tmp_path: Path) -> None:
    outcome = judge(reads_a_truncated_file, str(tmp_path / "file"))
    assert (outcome.verdict, outcome.message) == (Verdict.CRASH, "SIGBUS")
    assert "reads_a_truncated_file" in outcome.output


def test_what_a_case_started_ends_with_it(tmp_path: Path) -> None:
    outcome = judge(starts_a_process, str(tmp_path / "pid"), time_limit_s=SHORT_S)
    assert outcome.verdict is Verdict.HANG
    status = Path("/proc", (tmp_path / "pid").read_text(), "status")
    assert not status.exists() or "State:\tZ" in status.read_text()


def test_output_is_kept() -> None:
    outcome = judge(prints)
    assert "to the output" in outcome.output and "to the errors" in outcome.output

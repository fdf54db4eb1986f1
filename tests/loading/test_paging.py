"""What stays on the CPU as it lies in files is read in the background after a load, by a thread that leaves nothing behind."""

from __future__ import annotations

import gc
import os
import threading
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import planner
from planner.loading import paging
from planner.loading.streaming.files import FileReads
from waiting import is_soon


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file that is never in the page cache."""
    path = tmp_path / "model.safetensors"
    save_file({"weight": torch.randn(256, 256)}, path)
    monkeypatch.setattr(paging, "is_cached", lambda files, spans: False)
    monkeypatch.setattr(paging, "_CHUNK_BYTES", 1 << 14)
    return path


def loaded(path: Path) -> nn.Module:
    with torch.device("meta"):
        model = nn.Linear(256, 256, bias=False)
    return planner.load(path, model, {"": "cpu"})


def holds_handle(path: Path) -> bool:
    links = (os.path.join("/proc/self/fd", name) for name in os.listdir("/proc/self/fd"))
    return any(os.path.lexists(link) and os.readlink(link) == str(path) for link in links)


def threads() -> int:
    return sum(thread.name == "planner-paging" for thread in threading.enumerate())


@pytest.mark.parametrize("error", [None, MemoryError, OSError])
def test_neither_thread_nor_handle_stays(
    file: Path, monkeypatch: pytest.MonkeyPatch, error: type[Exception] | None
) -> None:
    """Of a model that is gone, also where reading fails in a way that nobody has thought of."""

    def page_in(self: FileReads, spans: object) -> None:
        if error is not None:
            raise error("broken")
        time.sleep(0.05)

    monkeypatch.setattr(FileReads, "page_in", page_in)
    before = threads()
    model = loaded(file)
    assert holds_handle(file)
    del model
    gc.collect()
    assert is_soon(lambda: threads() == before)
    assert is_soon(lambda: not holds_handle(file))


def test_where_no_thread_can_be_started(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def start(self: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(paging._Paging, "start", start)
    model = loaded(file)
    model(torch.ones(256))
    del model
    gc.collect()
    assert not holds_handle(file)
    assert not paging._running


def test_behind_the_end_of_threads_none_is_started(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is loaded in a function that atexit calls later."""
    monkeypatch.setattr(paging._Paging, "has_ended", False)
    paging._end_all()
    before = threads()
    model = loaded(file)
    assert threads() == before
    model(torch.ones(256))

"""Too little memory, few handles, small bounds; and what is left of a model: nothing.

Each case is a process of its own: elsewhere they crash, hang or compute with other weights.
"""

from __future__ import annotations

import contextlib
import copy
import gc
import os
import resource
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import planner
from layered_net import (
    EVERY_WAY,
    MAPS,
    Before,
    Net,
    empty,
    is_right,
    layout_of,
    state,
    written,
)
from planner import PlannerError
from rig.faults import MIB, all_must_end_clean, must_end_clean
from tensor_files import write_file


def case_of_too_little_memory(folder: Path, placed: dict[str, Any], copy: Any, dtype: Any) -> None:
    """A copy of twice the size of the files, which does not fit."""
    folder.mkdir()
    write_file(folder / "model.safetensors", Net(2048, 3).state_dict())
    model = empty(2048, 3)
    gc.collect()
    before = Before(model)
    taken = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    size = (folder / "model.safetensors").stat().st_size
    assert size > 150 * MIB
    resource.setrlimit(resource.RLIMIT_AS, (taken + size + size // 3,) * 2)
    try:
        planner.load(folder, model, placed, copy=copy, dtype=dtype)
    except (MemoryError, PlannerError, RuntimeError) as error:
        assert before.difference() == "", (before.difference(), error)
        return
    raise AssertionError("there was room")


def test_too_little_memory_leaves_the_model_as_it_was(tmp_path: Path) -> None:
    """Half of it can be made: then there is no room for more."""
    must_end_clean(
        case_of_too_little_memory,
        tmp_path / "a",
        {"": "cpu"},
        True,
        torch.float64,
        memory_limit_bytes=4096 * MIB,
        time_limit_s=60,
    )


def open_things(folder: Path) -> tuple[list[str], list[str], int]:
    """Handles and mappings of files of a folder, and threads."""
    handles = [str(link) for link in links_of(Path("/proc/self/fd")) if str(folder) in str(link)]
    maps = [line for line in Path("/proc/self/maps").read_text().splitlines() if str(folder) in line]
    return handles, maps, len(list(Path("/proc/self/task").iterdir()))


def links_of(folder: Path) -> list[str]:
    found = []
    for path in folder.iterdir():
        try:
            found.append(os.readlink(path))
        except OSError:
            continue
    return found


def case_of_what_is_left(folder: Path, layout: str, read: str, end: str) -> None:
    torch.set_num_threads(1)
    written(folder)
    is_right(planner.load(folder, empty(), {"": "disk"}))  # what libraries keep for good is there now
    gc.collect()
    before = open_things(folder)
    assert before[:2] == ([], [])
    for forwards in (0, 1, 4):
        model = planner.load(folder, empty(), layout_of(layout), read=read)
        if forwards:
            assert is_right(model, forwards)
        twin = copy.deepcopy(model) if end == "copied" else None
        if end == "undispatched":
            planner.undispatch(model)
        if end == "an error":
            with contextlib.suppress(RuntimeError):
                model(torch.ones(2, 3))
        del model
        if twin is not None:
            assert is_right(twin)
            del twin
        assert wait_for(lambda: open_things(folder) == before), (open_things(folder), before)


def wait_for(condition: Callable[[], bool]) -> bool:
    """Threads end a moment after what they served; cycles go with the collector."""
    for _ in range(100):
        if condition():
            return True
        gc.collect()
        threading.Event().wait(0.02)
    return False


@pytest.mark.parametrize("end", ["deleted", "copied", "undispatched", "an error"])
def test_nothing_is_left_of_a_model(end: str, tmp_path: Path) -> None:
    variants = [(*way, end) for way in (*EVERY_WAY, ("cpu", "auto"))]
    all_must_end_clean(case_of_what_is_left, tmp_path, variants, time_limit_s=60)


def case_of_few_handles(folder: Path, layout: str) -> None:
    tensors = state()
    written(folder, tensors, files=len(tensors))
    assert len(list(folder.glob("*.safetensors"))) > 25
    used = len(list(Path("/proc/self/fd").iterdir()))
    resource.setrlimit(resource.RLIMIT_NOFILE, (used + 12,) * 2)
    model = planner.load(folder, empty(), layout_of(layout), read="auto")
    assert is_right(model)
    direct = planner.load(folder, empty(), layout_of(layout), read="direct")
    assert is_right(direct) and is_right(model)
    with open(os.devnull, "rb"):  # somebody else needs one too
        pass


@pytest.mark.parametrize("layout", ["cpu", *MAPS])
def test_more_files_than_may_be_open(layout: str, tmp_path: Path) -> None:
    must_end_clean(case_of_few_handles, tmp_path, layout)


ENDS = """
import sys
from pathlib import Path
import torch, planner
from layered_net import X, empty, written
model = planner.load(written(Path(sys.argv[1])), empty(), {"": "disk"}, read="direct")
if sys.argv[2] == "in a forward":
    model.layers[2].register_forward_hook(lambda *_: sys.exit(3))
model(X)
sys.exit(3)
"""


@pytest.mark.parametrize("place", ["after", "in a forward"])
def test_a_process_ends_with_a_model_that_reads_ahead(place: str, tmp_path: Path) -> None:
    """With its own exit code, and without waiting for the reader.

    A daemon thread that is in a forward then aborts the process with any model, by torch alone; nothing is said of that.
    """
    done = subprocess.run(
        [sys.executable, "-c", ENDS, tmp_path, place],
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert done.returncode == 3, done.stderr
    assert "Traceback" not in done.stderr and "Fatal" not in done.stderr, done.stderr


def case_of_a_small_bound(folder: Path, layout: str, blocks: float, grad: bool) -> None:
    """Buffers never take more than they may; what does not fit is views."""
    torch.set_num_threads(1)
    tensors = state(width=256)
    written(folder, tensors)
    plain = Net(256)
    plain.load_state_dict(tensors)
    x = torch.linspace(-1, 1, 512).reshape(2, 256)
    block_bytes = sum(value.nbytes for name, value in tensors.items() if name.startswith("layers.0."))
    bound = int(blocks * block_bytes)
    model = planner.load(folder, empty(256), MAPS[layout], read="direct", staging_bytes={"cpu": bound})
    assert planner.load_report(model).staging_bytes <= bound
    with torch.no_grad():
        want = plain(x)
    for _ in range(4):
        with torch.set_grad_enabled(grad):
            assert model(x).equal(want)
        assert planner.load_report(model).staging_bytes <= bound


@pytest.mark.parametrize("blocks", [0, 0.5, 1, 1.5, 2, 3, 100])
def test_the_bound_on_buffers_is_hard(blocks: float, tmp_path: Path) -> None:
    variants = [(layout, blocks, grad) for layout in MAPS for grad in (False, True)]
    all_must_end_clean(case_of_a_small_bound, tmp_path, variants)

"""Blocks from files on virtual accelerators never take more than their room there, whatever was guessed."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
import torch
from ring_stacks import (
    LAYER_BYTES,
    LAYERS,
    WIDTH,
    Layer,
    Stack,
    layout,
    loaded,
    settle,
    some_rows,
    stack,
    written,
)
from torch import nn

import planner
from planner.loading.streaming.files import FileReads
from rig import Accelerators
from tensor_files import write_file
from waiting import is_soon


@pytest.fixture
def x() -> torch.Tensor:
    return some_rows()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return written(tmp_path)


@pytest.mark.parametrize("read", ["auto", "cached", "direct"])
@pytest.mark.parametrize("rest", ["cpu", "disk"])
def test_answers_room_and_traffic(
    rest: str, read: str, folder: Path, x: torch.Tensor, virtual_accelerators: Accelerators
) -> None:
    want = stack()(x)
    settle(virtual_accelerators)
    with virtual_accelerators.watch_streams():
        model = loaded(folder, rest, read=read)
        crossed_bytes = virtual_accelerators.traffic().to_device_bytes
        resident_bytes = LAYER_BYTES
        for _ in range(3):
            assert model(x).cpu().equal(want)
    assert virtual_accelerators.used_bytes(1) == resident_bytes
    assert virtual_accelerators.peak_bytes(0) - resident_bytes <= 2.3 * LAYER_BYTES
    # One block ahead: the pinned slots are as large as a block.
    assert 0 < virtual_accelerators.pinned_bytes() <= 2.1 * LAYER_BYTES
    # Each weight of the six that rest crosses once a forward; that of `load` may have begun.
    crossed_bytes = virtual_accelerators.traffic().to_device_bytes - 2 * LAYER_BYTES
    arguments_bytes = 3 * 8 * x.nbytes
    assert 18 * LAYER_BYTES <= crossed_bytes <= 18 * LAYER_BYTES + arguments_bytes
    streamed = planner.load_report(model).streamed
    assert streamed.blocks_from_cache + streamed.blocks_from_disk == 18
    if rest == "disk" and read == "direct":
        assert streamed.blocks_from_disk == 18 and streamed.streamed_bytes >= 18 * LAYER_BYTES
    if rest == "cpu":
        assert streamed.blocks_from_disk == 0


@pytest.mark.parametrize("rest", ["cpu", "disk"])
def test_a_block_that_does_not_fit_twice_is_not_read_ahead(
    rest: str, folder: Path, x: torch.Tensor, virtual_accelerators: Accelerators
) -> None:
    settle(virtual_accelerators)
    with virtual_accelerators.watch_streams():
        model = loaded(folder, rest, room_layers=1.5)
        assert model(x).cpu().equal(stack()(x))
    assert virtual_accelerators.peak_bytes(0) - LAYER_BYTES <= 1.3 * LAYER_BYTES
    assert virtual_accelerators.pinned_bytes() > 0


@pytest.mark.parametrize("dtype", ["auto", torch.bfloat16, torch.float64])
def test_blocks_that_are_larger_than_the_slots(
    dtype: Any, tmp_path: Path, virtual_accelerators: Accelerators
) -> None:
    """The bound on the CPU holds for pinned memory, too; blocks pass it in pieces."""

    def wide() -> nn.Module:
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(900, 900), nn.Linear(900, 901))

    plain = wide().requires_grad_(False)
    write_file(tmp_path / "model.safetensors", plain.state_dict(), gap=1)
    with torch.device("meta"):
        empty = wide().requires_grad_(False)
    settle(virtual_accelerators)
    room = {0: 20 << 20, "cpu": 2 << 20}
    with virtual_accelerators.watch_streams():
        model = planner.load(
            tmp_path, empty, {"0": "cpu", "1": "disk"}, execution_map={"": 0}, dtype=dtype, staging_bytes=room
        )
        found = model(torch.ones(2, 900, dtype=torch.float32 if dtype == "auto" else dtype))
    plain = plain.to(torch.float32 if dtype == "auto" else dtype)
    assert found.cpu().equal(plain(torch.ones(2, 900, dtype=found.dtype)))
    report = planner.load_report(model)
    assert virtual_accelerators.pinned_bytes() == report.streamed.pinned_bytes == report.streamed.ring_bytes
    assert 0 < report.streamed.ring_bytes <= report.staging_bytes <= 2 << 20


class WideLayer(Layer):
    """As much as sixteen layers."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Sequential(nn.Linear(WIDTH, 8 * WIDTH), nn.Linear(8 * WIDTH, WIDTH))  # type: ignore[assignment]


def uneven_stack() -> Stack:
    torch.manual_seed(0)
    built = Stack()
    built.layers = nn.ModuleList(WideLayer() if number in (3, 5) else Layer() for number in range(LAYERS))
    return built.requires_grad_(False).eval()


def test_a_wrong_guess_lets_go_before_what_is_really_next(
    tmp_path: Path, x: torch.Tensor, monkeypatch: pytest.MonkeyPatch, virtual_accelerators: Accelerators
) -> None:
    """Also when its read is under way: two wide layers have no room beside each other."""
    plain = uneven_stack()
    write_file(tmp_path / "model.safetensors", plain.state_dict())
    with torch.device("meta"):
        empty = uneven_stack()
    wide_bytes = sum(parameter.nbytes for parameter in plain.layers[3].parameters())
    room_bytes = wide_bytes + 2 * LAYER_BYTES
    model = planner.load(tmp_path, empty, layout("disk"), staging_bytes={0: room_bytes}).eval()
    assert model(x).cpu().equal(plain(x))
    settle(virtual_accelerators)
    read = FileReads.read_spans

    def slowly(*args: Any, **settings: Any) -> Any:
        time.sleep(0.05)  # longer than a layer takes, so that the guess is being read when it turns out wrong
        return read(*args, **settings)

    monkeypatch.setattr(FileReads, "read_spans", slowly)
    for _ in range(2):
        for way in ([2, 5], range(LAYERS), [4, 3]):
            model.way = plain.way = way
            assert model(x).cpu().equal(plain(x)), way
    assert wide_bytes < virtual_accelerators.peak_bytes(0) - LAYER_BYTES <= room_bytes + 8 * x.nbytes


def test_where_memory_ends(folder: Path, x: torch.Tensor, virtual_accelerators: Accelerators) -> None:
    """Reading ahead that does not fit is left; what the block itself needs is said."""
    model, want = loaded(folder), stack()(x)
    settle(virtual_accelerators)
    outcomes = []
    for allocations in range(40):
        with virtual_accelerators.out_of_memory_after(0, allocations):
            try:
                assert model(x).cpu().equal(want)
                outcomes.append(True)
            except torch.OutOfMemoryError:
                outcomes.append(False)
        assert model(x).cpu().equal(want)
    settle(virtual_accelerators)
    assert outcomes[0] is False
    assert is_soon(lambda: virtual_accelerators.used_bytes(0) == LAYER_BYTES)

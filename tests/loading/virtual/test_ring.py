"""From files to virtual accelerators: values, order on streams, room there, bytes that cross, and what may go wrong on the way."""

from __future__ import annotations

import copy
import gc
import os
import signal
import threading
import time
from collections.abc import Callable, Sequence
from functools import partial
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
from planner.dispatching.tensors.placeholder import is_offloaded
from planner.errors import OffloadError
from planner.loading.streaming import ring as rings
from planner.loading.streaming.accelerators import RingTicket
from planner.loading.streaming.files import FileReads
from planner.loading.streaming.layout import Span
from rig import Accelerators, OutOfOrderError
from rig.interrupting import ARE_POINTS_KNOWN, interrupted_in
from tensor_files import write_file
from waiting import is_soon


@pytest.fixture
def x() -> torch.Tensor:
    return some_rows()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return written(tmp_path)


def test_a_forked_child_reads_for_itself(folder: Path, x: torch.Tensor) -> None:
    model, want = loaded(folder), stack()(x)
    assert model(x).cpu().equal(want)
    child = os.fork()
    if child == 0:
        os._exit(0 if model(x).cpu().equal(want) else 1)
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            assert os.waitstatus_to_exitcode(status) == 0
            return
        time.sleep(0.05)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    pytest.fail("the child waits for something that it does not have")


def test_a_slot_that_is_filled_without_waiting_is_noticed(
    folder: Path, x: torch.Tensor, monkeypatch: pytest.MonkeyPatch, virtual_accelerators: Accelerators
) -> None:
    monkeypatch.setattr(rings._Slot, "wait", lambda slot: slot._events.clear())
    with (
        pytest.raises(OutOfOrderError, match="pinned memory was changed"),
        virtual_accelerators.watch_streams(),
    ):
        loaded(folder)(x)


def test_a_block_that_is_used_without_waiting_is_noticed(
    folder: Path, x: torch.Tensor, monkeypatch: pytest.MonkeyPatch, virtual_accelerators: Accelerators
) -> None:
    model = loaded(folder)
    settle(virtual_accelerators)
    carry = RingTicket._carry

    def forgetful(ticket: RingTicket) -> None:
        carry(ticket)
        ticket._event = None

    monkeypatch.setattr(RingTicket, "_carry", forgetful)
    with pytest.raises(RuntimeError, match="stream race"), virtual_accelerators.watch_streams():
        model(x)
        model(x)


@pytest.mark.usefixtures("watched_streams")
def test_other_ways_through_the_model(
    folder: Path, x: torch.Tensor, virtual_accelerators: Accelerators
) -> None:
    model, plain = loaded(folder), stack()
    ways: list[Sequence[int]] = [
        range(LAYERS),
        range(4),
        [0, 3, 3, 2, 7, 3],
        reversed(range(LAYERS)),  # type: ignore[list-item]
        [5],
        [],
        range(LAYERS),
    ]
    for way in map(list, ways):
        model.way = plain.way = way
        assert model(x).cpu().equal(plain(x)), way
        virtual_accelerators.synchronize()
        gc.collect()
        assert is_soon(lambda: virtual_accelerators.used_bytes(0) == LAYER_BYTES)
    for number in (3, 7, 2):
        assert model.layers[number](x).cpu().equal(plain.layers[number](x))
        assert is_soon(lambda: virtual_accelerators.used_bytes(0) == LAYER_BYTES)


def test_threads(folder: Path, x: torch.Tensor) -> None:
    model, want = loaded(folder), stack()(x)
    wrong: list[Any] = []

    def run() -> None:
        try:
            for _ in range(15):
                if not model(x).cpu().equal(want):
                    wrong.append("other values")
        except BaseException as error:
            wrong.append(error)

    threads = [threading.Thread(target=run) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not any(thread.is_alive() for thread in threads)
    assert not wrong


@pytest.mark.usefixtures("watched_streams")
def test_copies_and_undispatching(folder: Path, x: torch.Tensor, virtual_accelerators: Accelerators) -> None:
    settle(virtual_accelerators)
    model, want = loaded(folder), stack()(x)
    assert model(x).cpu().equal(want)
    twin = copy.deepcopy(model)
    assert twin(x).cpu().equal(want) and model(x).cpu().equal(want)
    del twin
    settle(virtual_accelerators)
    assert planner.undispatch(model)(x).equal(want)
    settle(virtual_accelerators)
    assert virtual_accelerators.pinned_bytes() == 0
    assert [virtual_accelerators.used_bytes(index) for index in (0, 1)] == [0, 0]
    assert not [thread for thread in threading.enumerate() if thread.name == "planner-reader"]


class FailingReads:
    """Reads of which one fails."""

    def __init__(self, at: int, error: Callable[[], BaseException]) -> None:
        self.left = at
        self.error = error
        self.original = FileReads.read_spans

    def __call__(
        self, reads: FileReads, spans: Sequence[Span], memory: Any, *, direct: bool
    ) -> tuple[int, int]:
        self.left -= 1
        if self.left == 0:
            raise self.error()
        return self.original(reads, spans, memory, direct=direct)


@pytest.mark.parametrize("room_layers", [1.1, 2.1])
@pytest.mark.parametrize("at", [1, 2, 6])
def test_an_error_of_reading_is_raised_once_in_the_forward_that_waits(
    at: int,
    room_layers: float,
    folder: Path,
    x: torch.Tensor,
    monkeypatch: pytest.MonkeyPatch,
    virtual_accelerators: Accelerators,
) -> None:
    model, want = loaded(folder, room_layers=room_layers), stack()(x)
    assert model(x).cpu().equal(want)
    failing = FailingReads(at, lambda: OSError("the disk is gone"))
    monkeypatch.setattr(FileReads, "read_spans", lambda *args, **settings: failing(*args, **settings))
    with pytest.raises((OffloadError, OSError), match="the disk is gone"):
        model(x)
    assert model(x).cpu().equal(want)
    settle(virtual_accelerators)
    assert is_soon(lambda: virtual_accelerators.used_bytes(0) == LAYER_BYTES)


def test_an_interrupt_while_waiting(
    folder: Path, x: torch.Tensor, monkeypatch: pytest.MonkeyPatch, virtual_accelerators: Accelerators
) -> None:
    """Where the one who waits reads the block itself."""
    model, want = loaded(folder, room_layers=1.1), stack()(x)
    assert model(x).cpu().equal(want)
    reads = FailingReads(3, KeyboardInterrupt)
    model._hf_hook.prefetcher.close()  # there is no other thread any more
    monkeypatch.setattr(FileReads, "read_spans", lambda *args, **settings: reads(*args, **settings))
    with pytest.raises(KeyboardInterrupt):
        model(x)
    assert model(x).cpu().equal(want)
    settle(virtual_accelerators)
    assert is_soon(lambda: virtual_accelerators.used_bytes(0) == LAYER_BYTES)


PARTS = tuple(Path(planner.__file__).parent / name for name in ("loading", "dispatching"))


@pytest.mark.skipif(not ARE_POINTS_KNOWN, reason="where signals are taken is known for CPython 3.11")
@pytest.mark.parametrize("every", [61, pytest.param(1, marks=pytest.mark.sweep)])
@pytest.mark.parametrize("has_reader", [True, False])
def test_an_interrupt_anywhere_in_a_forward(
    has_reader: bool, every: int, folder: Path, x: torch.Tensor, virtual_accelerators: Accelerators
) -> None:
    """With another thread that reads, and where who waits reads for itself."""
    model, want = loaded(folder, read="direct"), stack()(x)
    assert model(x).cpu().equal(want)
    if not has_reader:
        model._hf_hook.prefetcher.close()
    stop = 1
    while interrupted_in(PARTS, lambda: model(x), stop):
        assert sum(parameter.is_meta for parameter in model.parameters()) == 2 * (LAYERS - 2), stop
        if stop % 3 == 0:
            assert model(x).cpu().equal(want), stop
        stop += every
    assert model(x).cpu().equal(want)
    settle(virtual_accelerators)
    # pytest keeps what was raised where nobody could catch it, with the arguments of those calls.
    assert virtual_accelerators.used_bytes(0) <= LAYER_BYTES + 10 * x.nbytes


@pytest.mark.skipif(not ARE_POINTS_KNOWN, reason="where signals are taken is known for CPython 3.11")
@pytest.mark.parametrize("every", [331, pytest.param(7, marks=pytest.mark.sweep)])
def test_an_interrupt_anywhere_in_a_load(
    every: int, folder: Path, x: torch.Tensor, virtual_accelerators: Accelerators
) -> None:
    """The live model is as it was, or loaded, and nothing stays on the accelerators or pinned."""
    want = stack()(x)
    stop = 1
    while True:
        model: Any = Stack().requires_grad_(False)
        before = {name: (id(tensor), tensor._version) for name, tensor in model.named_parameters()}
        run = partial(planner.load, folder, model, layout("disk"))
        if not interrupted_in(PARTS, run, stop):
            break
        if not is_offloaded(model.layers[2].inner.weight):
            after = {name: (id(tensor), tensor._version) for name, tensor in model.named_parameters()}
            assert after == before, stop
            assert not any("forward" in vars(module) for module in model.modules())
        planner.load(folder, model, layout("disk"))
        assert model(x).cpu().equal(want), stop
        stop += every
    del model, run
    settle(virtual_accelerators)
    assert [virtual_accelerators.used_bytes(index) for index in (0, 1)] == [0, 0]
    assert virtual_accelerators.pinned_bytes() == 0


@pytest.mark.parametrize(
    ("stored", "wanted"),
    [
        (torch.bfloat16, torch.float32),
        (torch.float16, torch.float32),
        (torch.float32, torch.bfloat16),
        (torch.bfloat16, torch.float16),
        (torch.float16, torch.bfloat16),
    ],
)
@pytest.mark.parametrize("rest", ["cpu", "disk"])
def test_casts_cross_as_the_narrower_one(
    stored: torch.dtype, wanted: torch.dtype, rest: str, tmp_path: Path, virtual_accelerators: Accelerators
) -> None:
    weights = {name: tensor.to(stored) for name, tensor in stack().state_dict().items()}
    write_file(tmp_path / "model.safetensors", weights)
    narrow_bytes = min(stored.itemsize, wanted.itemsize) * LAYER_BYTES // 4
    with virtual_accelerators.watch_streams():
        with torch.device("meta"):
            empty = Stack()
        placed = {name: (0 if name < "layers.4" else rest) for name in layout(rest)}
        model: Any = planner.load(tmp_path, empty, placed, dtype=wanted, staging_bytes={0: 1 << 20})
        virtual_accelerators.synchronize()
        # The reader may be at the first block on disk.
        whole_bytes = (4 * narrow_bytes, 5 * narrow_bytes)
        assert is_soon(lambda: virtual_accelerators.traffic().to_device_bytes in whole_bytes)
        seen: dict[str, torch.Tensor] = {}
        for name, layer in model.layers.named_children():
            layer.inner.register_forward_hook(
                lambda module, *_, name=name: seen.update({name: module.weight.detach().cpu()})
            )
        model(torch.zeros(1, WIDTH, dtype=wanted))
    for name, found in seen.items():
        want = weights[f"layers.{name}.inner.weight"].to(wanted)
        assert found.dtype == wanted and found.equal(want)
    assert len(seen) == LAYERS


def test_a_number_that_does_not_fit_is_named_and_counted(tmp_path: Path) -> None:
    weights = stack().state_dict()
    weights["layers.1.inner.weight"][3, :7] = 1e6
    write_file(tmp_path / "model.safetensors", weights)
    with pytest.raises(OffloadError, match=r"7 numbers of 'layers\.1\.inner\.weight'"):
        loaded(tmp_path, dtype=torch.float16)


def test_all_devices_are_loaded_in_one_pass_over_the_file(
    folder: Path, monkeypatch: pytest.MonkeyPatch, virtual_accelerators: Accelerators
) -> None:
    spans: list[Span] = []
    original = FileReads.read_spans

    def reading(reads: FileReads, asked: Sequence[Span], memory: Any, *, direct: bool) -> tuple[int, int]:
        spans.extend(asked)
        return original(reads, asked, memory, direct=direct)

    monkeypatch.setattr(FileReads, "read_spans", reading)
    settle(virtual_accelerators)
    done: list[tuple[int, int]] = []
    with torch.device("meta"):
        empty = Stack()
    placed = {name: number % 2 for number, name in enumerate(layout("disk"))}
    model = planner.load(folder, empty, placed, progress=lambda *bytes_done: done.append(bytes_done))
    assert spans == sorted(spans)
    traffic = virtual_accelerators.traffic()
    assert traffic.to_device_bytes == LAYERS * LAYER_BYTES and traffic.between_devices_bytes == 0
    assert virtual_accelerators.pinned_bytes() == 0
    assert planner.load_report(model).read_bytes == sum(span.end - span.begin for span in spans)
    assert done == sorted(done) and done[-1] == (LAYERS * LAYER_BYTES, LAYERS * LAYER_BYTES)


def test_a_tied_tensor_crosses_once(tmp_path: Path, virtual_accelerators: Accelerators) -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.words = nn.Embedding(64, WIDTH)
            self.body = Layer()
            self.head = nn.Linear(WIDTH, 64, bias=False)
            self.head.weight = self.words.weight

        def forward(self, ids: torch.Tensor) -> torch.Tensor:
            return self.head(self.body(self.words(ids)))

    torch.manual_seed(0)
    plain = Tied().requires_grad_(False)
    weights = {name: tensor for name, tensor in plain.state_dict().items() if name != "head.weight"}
    write_file(tmp_path / "model.safetensors", weights)
    with torch.device("meta"):
        empty = Tied()
    model = planner.load(tmp_path, empty, {"words": 0, "head": 0, "body": 1})
    crossed_bytes = virtual_accelerators.traffic().to_device_bytes
    assert crossed_bytes == sum(tensor.nbytes for tensor in weights.values())
    ids = torch.arange(5)
    assert model(ids).cpu().equal(plain(ids))


class Counting(nn.Module):
    """Writes to its buffer in place, and replaces another one."""

    count: torch.Tensor
    last: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)
        self.register_buffer("count", torch.zeros(4))
        self.register_buffer("last", torch.zeros(4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.count.add_(1)
        self.last = self.count * 2
        return self.linear(x) + self.count + self.last


def test_what_a_forward_writes_rests_in_memory_of_the_host(
    tmp_path: Path, virtual_accelerators: Accelerators
) -> None:
    torch.manual_seed(0)
    plain = nn.Sequential(Counting(), Counting()).requires_grad_(False)
    write_file(tmp_path / "model.safetensors", plain.state_dict())
    with torch.device("meta"):
        empty = nn.Sequential(Counting(), Counting())
    model: Any = planner.load(
        tmp_path, empty, {"0": 0, "1": "disk"}, offload_buffers=True, staging_bytes={0: 1 << 20}
    )
    virtual_accelerators.synchronize()
    before_bytes = virtual_accelerators.used_bytes(0)
    x = torch.ones(2, 4)
    for _ in range(3):
        assert model(x).cpu().equal(plain(x))
    settle(virtual_accelerators)
    assert virtual_accelerators.used_bytes(0) <= before_bytes
    state = planner.undispatch(model).state_dict()
    assert all(tensor.cpu().equal(state[name].cpu()) for name, tensor in plain.state_dict().items())

"""Blocks on disk that run on the CPU: equal in every way of reading, within their bound, and gone with the model."""

from __future__ import annotations

import copy
import gc
import os
import pickle
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

import planner
from planner import OffloadError
from planner.loading.streaming.ahead import BlocksAhead
from planner.loading.streaming.buffers import BufferPlan
from planner.loading.streaming.caching import fixed_share
from planner.loading.streaming.files import FileReads
from planner.loading.streaming.layout import Span

WIDTH = 64
DISK = {"": "disk"}
IDS = torch.arange(7)[None]
READS = ("auto", "cached", "direct")
HUGE = 2 << 20


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(WIDTH)
        self.up = nn.Linear(WIDTH, 4 * WIDTH, bias=False)
        self.down = nn.Linear(4 * WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(torch.relu(self.up(self.norm(x))))


class Net(nn.Module):
    _no_split_modules = ["Block"]  # noqa: RUF012 (as transformers has it)

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(100, WIDTH)
        self.layers = nn.ModuleList([Block() for _ in range(6)])
        self.head = nn.Linear(WIDTH, 100, bias=False)
        self.order = list(range(6))

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embed(ids)
        for number in self.order:
            x = self.layers[number](x)
        return self.head(x)


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(3)


@pytest.fixture
def net() -> Net:
    return Net().eval().requires_grad_(False)


@pytest.fixture
def folder(net: Net, tmp_path: Path) -> Path:
    state = net.state_dict()
    names = list(state)
    save_file({name: state[name] for name in names[::2]}, tmp_path / "a.safetensors")
    save_file({name: state[name] for name in names[1::2]}, tmp_path / "b.safetensors")
    return tmp_path


def empty() -> Net:
    with torch.device("meta"):
        return Net().eval().requires_grad_(False)


def forget(folder: Path) -> None:
    """Nothing of the files is in the page cache afterwards, but for what is mapped and was looked at."""
    for path in folder.glob("*.safetensors"):
        with path.open("rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def load(folder: Path, device_map: Any = None, **options: Any) -> Net:
    loaded: Net = planner.load(folder, empty(), device_map or DISK, **options)
    return loaded


def ahead_of(model: nn.Module) -> BlocksAhead:
    ahead = model._hf_hook.prefetcher
    assert isinstance(ahead, BlocksAhead)
    return ahead


def readers() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "planner-reader"]


def gone(threads: Sequence[threading.Thread]) -> bool:
    for thread in threads:
        thread.join(5)
    return not any(thread.is_alive() for thread in threads)


@pytest.mark.parametrize("read", READS)
@pytest.mark.parametrize("is_cold", [False, True])
def test_outputs_are_equal(net: Net, folder: Path, read: str, is_cold: bool) -> None:
    if is_cold:
        forget(folder)
    model = load(folder, read=read)
    for _ in range(3):
        assert torch.equal(model(IDS), net(IDS))
    progress = ahead_of(model).progress()
    assert progress.blocks_from_cache + progress.blocks_from_disk == 3 * 8
    if read == "direct":
        assert progress.blocks_from_disk == 3 * 8
        assert 0 < progress.buffer_bytes <= ahead_of(model).staging_bytes == 2 * HUGE
    if read == "auto" and not is_cold:
        assert progress.streamed_bytes == progress.buffer_bytes == 0  # nothing is read, and no memory taken


def test_what_fits_is_in_the_page_cache_from_the_second_forward_on(net: Net, folder: Path) -> None:
    forget(folder)
    model = load(folder)
    assert torch.equal(model(IDS), net(IDS))
    first = ahead_of(model).progress()
    assert torch.equal(model(IDS), net(IDS))
    second = ahead_of(model).progress()
    assert second.streamed_bytes == first.streamed_bytes
    assert second.blocks_from_cache == first.blocks_from_cache + 8


@pytest.mark.parametrize("read", READS)
def test_blocks_in_memory_between_blocks_on_disk(net: Net, folder: Path, read: str) -> None:
    device_map = {"embed": "cpu", "head": "disk", **{f"layers.{n}": ("cpu", "disk")[n % 2] for n in range(6)}}
    model = load(folder, device_map, read=read)
    for _ in range(2):
        assert torch.equal(model(IDS), net(IDS))


def test_gradients_are_equal_and_buffers_stay_within_their_bound(net: Net, folder: Path) -> None:
    """Backward holds the weights of all blocks: those beyond the bound are views."""

    def gradient(model: Net) -> Tensor:
        with torch.no_grad():
            x = torch.randn(2, WIDTH, generator=torch.Generator().manual_seed(1))
        x.requires_grad_()
        y = x
        hidden = model.embed.register_forward_hook(lambda *_: y)
        try:
            model(IDS).square().sum().backward()
        finally:
            hidden.remove()
        assert x.grad is not None
        return x.grad

    model = load(folder, read="direct")
    for _ in range(2):
        assert torch.equal(gradient(model), gradient(net))
    progress = ahead_of(model).progress()
    assert progress.buffer_bytes <= ahead_of(model).staging_bytes
    model(IDS)
    assert ahead_of(model).progress().blocks_from_disk > progress.blocks_from_disk


def test_a_kept_alias_keeps_its_values(net: Net, folder: Path) -> None:
    model = load(folder, read="direct")
    kept: list[Tensor] = []
    layer = model.layers[2]
    hook = layer.norm.register_forward_hook(lambda *_: kept.append(layer.up.weight.detach()))
    model(IDS)
    hook.remove()
    for _ in range(3):
        assert torch.equal(model(IDS), net(IDS))
    assert torch.equal(kept[0], net.layers[2].up.weight)


@pytest.mark.parametrize("read", ["auto", "direct"])
def test_four_threads(net: Net, folder: Path, read: str) -> None:
    forget(folder)
    model, want = load(folder, read=read), net(IDS)
    found: list[bool] = []

    def run() -> None:
        with torch.no_grad():
            found.extend([torch.equal(model(IDS), want) for _ in range(20)])

    threads = [threading.Thread(target=run) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert found == [True] * 80
    assert ahead_of(model).progress().buffer_bytes <= ahead_of(model).staging_bytes


def test_another_way_through_the_model(net: Net, folder: Path) -> None:
    model = load(folder, read="direct")
    for order in ([0, 1, 2, 3, 4, 5], [5, 4, 3, 2, 1, 0], [1], [2, 2, 2], [0, 1, 0, 1], [0, 1, 2, 3, 4, 5]):
        model.order = net.order = order
        assert torch.equal(model(IDS), net(IDS))


def test_a_forward_that_ends_early(net: Net, folder: Path) -> None:
    class StopError(Exception):
        pass

    def stop(*_: Any) -> None:
        raise StopError

    model = load(folder, read="direct")
    for number in (0, 3, 5):
        hook = model.layers[number].down.register_forward_hook(stop)
        with pytest.raises(StopError):
            model(IDS)
        hook.remove()
        assert torch.equal(model(IDS), net(IDS))


def test_the_model_inside_of_its_own_forward(net: Net, folder: Path) -> None:
    model, found = load(folder, read="direct"), []

    def again(*_: Any) -> None:
        hook.remove()
        found.append(model(IDS))

    hook = model.layers[3].norm.register_forward_hook(again)
    assert torch.equal(model(IDS), net(IDS))
    assert torch.equal(found[0], net(IDS))


@pytest.mark.parametrize("read", READS)
def test_parts_called_alone(net: Net, folder: Path, read: str) -> None:
    forget(folder)
    model, x = load(folder, read=read), torch.randn(2, WIDTH)
    for _ in range(2):
        assert torch.equal(model.layers[4](x), net.layers[4](x))
        assert torch.equal(model.layers[1].up(x), net.layers[1].up(x))
        assert torch.equal(model.head(x), net.head(x))
    assert torch.equal(model(IDS), net(IDS))


@pytest.mark.parametrize("read", READS)
def test_what_a_forward_writes_into_a_weight_is_kept(net: Net, folder: Path, read: str) -> None:
    """Embeddings with `max_norm` do; the memory that they were read into is used again."""
    model = load(folder, read=read)
    for each in (model, net):
        each.embed.max_norm = 0.5
    for _ in range(3):
        assert torch.equal(model(IDS), net(IDS))
    assert not torch.equal(planner.state_dict(model)["embed.weight"], Net().embed.weight)
    assert torch.equal(planner.state_dict(model)["embed.weight"], net.embed.weight)
    assert torch.equal(planner.undispatch(model).embed.weight, net.embed.weight)


def test_casting(net: Net, folder: Path) -> None:
    want = copy.deepcopy(net).to(torch.bfloat16)
    for read in READS:
        forget(folder)
        model = load(folder, read=read, dtype=torch.bfloat16)
        for _ in range(2):
            assert torch.equal(model(IDS), want(IDS))
        assert ahead_of(model).progress().buffer_bytes <= ahead_of(model).staging_bytes


def test_tensors_at_odd_offsets(net: Net, folder: Path) -> None:
    """Whoever wrote the files need not have put tensors where their elements can be looked at."""
    path = folder / "a.safetensors"
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = data[8 : 8 + length].rstrip() + b" " * (-(len(data[8 : 8 + length].rstrip())) % 8 + 1)
    path.write_bytes(len(header).to_bytes(8, "little") + header + data[8 + length :])
    for read in READS:
        model = load(folder, read=read)
        for _ in range(2):
            assert torch.equal(model(IDS), net(IDS))


@pytest.mark.parametrize("staging_bytes", [0, HUGE, 2 * HUGE, 5 * HUGE])
def test_the_bound_holds(net: Net, folder: Path, staging_bytes: int) -> None:
    model = load(folder, read="direct", staging_bytes={"cpu": staging_bytes})
    for _ in range(2):
        assert torch.equal(model(IDS), net(IDS))
    progress = ahead_of(model).progress()
    assert progress.buffer_bytes <= ahead_of(model).staging_bytes <= staging_bytes
    assert (progress.blocks_from_disk > 0) == (staging_bytes > 0)


def refusing(times: int, error: BaseException) -> Callable[..., tuple[int, int]]:
    """Reads that fail so often, and then no more."""
    left, read = [error] * times, FileReads.read_spans

    def read_spans(self: FileReads, spans: Sequence[Span], memory: Any, *, direct: bool) -> tuple[int, int]:
        if left:
            raise left.pop()
        return read(self, spans, memory, direct=direct)

    return read_spans


@pytest.mark.parametrize("error", [OSError(5, "gone"), OffloadError("a: gone", name="a"), RuntimeError("no")])
def test_an_error_of_the_reader_is_raised_once(
    net: Net, folder: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    model = load(folder, read="direct")
    assert torch.equal(model(IDS), net(IDS))
    monkeypatch.setattr(FileReads, "read_spans", refusing(1, error))
    with pytest.raises(OffloadError, match=r"gone|no") as raised:
        model(IDS)
    assert raised.value.name
    for _ in range(2):
        assert torch.equal(model(IDS), net(IDS))


def test_no_memory_for_buffers(net: Net, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def none(_size_bytes: int) -> Any:
        raise MemoryError("2 MiB")

    monkeypatch.setattr("planner.loading.streaming.buffers.PageBuffer", none)
    model = load(folder, read="direct")
    for _ in range(2):
        assert torch.equal(model(IDS), net(IDS))


def test_a_reader_that_is_gone(net: Net, folder: Path) -> None:
    """Nobody waits for it."""
    model = load(folder, read="direct")
    model(IDS)
    reader = ahead_of(model)._reader
    assert reader is not None
    reader.end()
    reader.join()
    assert torch.equal(model(IDS), net(IDS))


def change(folder: Path) -> None:
    with (folder / "b.safetensors").open("r+b") as file:
        file.seek(-4, os.SEEK_END)
        file.write(b"\0\0\0\0")


def cut(folder: Path) -> None:
    os.truncate(folder / "b.safetensors", 100)


@pytest.mark.parametrize("read", READS)
@pytest.mark.parametrize("harm", [change, cut])
def test_a_changed_file_is_found_before_it_is_read(
    folder: Path, read: str, harm: Callable[[Path], None]
) -> None:
    model, x = load(folder, read=read), torch.randn(2, WIDTH)
    model(IDS)
    harm(folder)
    for call in (lambda: model(IDS), lambda: model.layers[1](x)):
        with pytest.raises(OffloadError, match=r"b\.safetensors"):
            call()


@pytest.mark.parametrize("read", READS)
def test_a_file_that_is_changed_in_a_forward(net: Net, folder: Path, read: str) -> None:
    """What was read before that is right, and what is read afterwards is not used."""
    model = load(folder, read=read)
    assert torch.equal(model(IDS), net(IDS))

    def harm(*_: Any) -> None:
        for path in folder.glob("*.safetensors"):
            with path.open("r+b") as file:
                file.seek(4096)
                file.write(b"\0" * (path.stat().st_size - 4096))

    model.layers[0].register_forward_hook(harm)
    with pytest.raises(OffloadError, match="safetensors"):
        model(IDS)


def test_a_copy_has_a_reader_of_its_own(net: Net, folder: Path) -> None:
    model = load(folder, read="direct")
    model(IDS)
    before = readers()
    others = [copy.deepcopy(model), pickle.loads(pickle.dumps(model))]
    planner.undispatch(model)
    for other in others:
        for _ in range(2):
            assert torch.equal(other(IDS), net(IDS))
        assert ahead_of(other).progress().blocks_from_disk > 0
    assert len([reader for reader in readers() if reader not in before]) == 2


def test_a_copy_of_one_layer_takes_no_other_along(net: Net, folder: Path) -> None:
    model, x = load(folder, read="direct"), torch.randn(2, WIDTH)
    model(IDS)
    layer = copy.deepcopy(model.layers[1])
    assert torch.equal(layer(x), net.layers[1](x))
    before = set(map(id, gc.get_objects()))
    copy.deepcopy(model.layers[1])
    made = [each for each in gc.get_objects() if id(each) not in before]
    assert not [each for each in made if isinstance(each, Block)][1:]


FORK = """
import os, sys, torch
torch.set_num_threads(1)  # its own threads do not survive a fork
from test_streaming import IDS, ahead_of, load
from pathlib import Path
model = load(Path(sys.argv[1]), read="direct")
want = model(IDS)
ahead_of(model).start()  # a read that is under way, which the child cannot wait for
child = os.fork()
if child == 0:
    found = [torch.equal(model(IDS), want) for _ in range(2)]
    os._exit(0 if all(found) and not ahead_of(model)._running_reader() else 1)
assert os.waitpid(child, 0)[1] == 0
assert torch.equal(model(IDS), want)
"""


@pytest.mark.usefixtures("net")
def test_a_forked_child_has_views(folder: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path])}
    command = [sys.executable, "-c", FORK, str(folder)]
    subprocess.run(command, check=True, timeout=120, env=environment)


@pytest.fixture
def started() -> Iterator[Callable[[], list[threading.Thread]]]:
    gc.collect()
    before = readers()
    yield lambda: [thread for thread in readers() if thread not in before]


def test_all_goes_with_the_model(folder: Path, started: Callable[[], list[threading.Thread]]) -> None:
    handles = len(os.listdir("/proc/self/fd"))
    model = load(folder, read="direct")
    model(IDS)
    threads = started()
    assert len(threads) == 1
    del model
    gc.collect()
    assert gone(threads)
    assert len(os.listdir("/proc/self/fd")) <= handles
    assert str(folder) not in Path("/proc/self/maps").read_text()


def test_all_goes_when_it_is_undone(
    net: Net, folder: Path, started: Callable[[], list[threading.Thread]]
) -> None:
    model = load(folder, read="direct")
    model(IDS)
    threads = started()
    planner.undispatch(model)
    assert not any(thread.is_alive() for thread in threads)
    assert torch.equal(model(IDS), net(IDS))


@pytest.mark.parametrize(
    ("rooms", "staging", "plan"),
    [
        ([], None, (0, 0)),
        ([1, HUGE + 1], None, (2 * HUGE, 2)),
        ([1, HUGE + 1], 4 * HUGE, (2 * HUGE, 2)),
        ([1, HUGE + 1], 3 * HUGE, (HUGE, 3)),
        ([1, HUGE + 1], HUGE, (HUGE, 1)),
        ([HUGE + 1], HUGE, (0, 0)),
        ([1], 7 * HUGE, (HUGE, 7)),
    ],
)
def test_how_many_buffers(rooms: list[int], staging: int | None, plan: tuple[int, int]) -> None:
    assert tuple(BufferPlan.within(rooms, staging)) == plan


@pytest.mark.parametrize(("spare", "count"), [(0, 0), (9, 0), (55, 5), (100, 10), (1000, 10)])
def test_a_share_is_spread_evenly(spare: int, count: int) -> None:
    chosen = fixed_share({f"{number}": 10 for number in range(10)}, spare)
    assert len(chosen) == count
    if count == 5:
        places = sorted(map(int, chosen))
        assert max(b - a for a, b in pairwise(places)) == 2

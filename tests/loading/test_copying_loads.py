"""What a load puts into memory of its own on the CPU: values, storages, how much memory, and what is left of the files."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import planner
from planner.errors import OffloadError
from planner.loading import file_order
from planner.loading.reading import cached_bytes
from planner.loading.recipe import Pieces
from planner.loading.stored import StoredTensor
from planner.loading.streaming.fillings import fillings_of
from planner.loading.weights import WantedTensor
from tensor_files import write_file

MIB = 1 << 20
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


class Mixed(nn.Module):
    """Tensors of several dtypes and sizes, one of them empty, and a buffer."""

    counts: torch.Tensor

    def __init__(self, rows: int = 40) -> None:
        super().__init__()
        for number in range(9):
            tensor = torch.randn(rows + number, 36).to(DTYPES[number % 3])
            self.register_parameter(f"weight_{number}", nn.Parameter(tensor, requires_grad=False))
        self.empty = nn.Parameter(torch.empty(0, 4), requires_grad=False)
        self.register_buffer("counts", torch.arange(5))


def made(rows: int = 40) -> Mixed:
    torch.manual_seed(0)
    return Mixed(rows)


def empty(rows: int = 40) -> Mixed:
    with torch.device("meta"):
        return Mixed(rows)


@pytest.mark.parametrize("gap", [0, 1, 3])
@pytest.mark.parametrize("dtype", ["auto", torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("copy", [False, True])
def test_values_and_storages(copy: bool, dtype: Any, gap: int, tmp_path: Path) -> None:
    plain = made()
    write_file(tmp_path / "model.safetensors", plain.state_dict(), gap=gap)
    model = planner.load(tmp_path, empty(), {"": "cpu"}, dtype=dtype, copy=copy)
    found = model.state_dict()
    storages = set()
    for name, tensor in plain.state_dict().items():
        want = tensor.to(dtype) if dtype != "auto" and tensor.is_floating_point() else tensor
        assert found[name].dtype == want.dtype and found[name].equal(want), name
        assert found[name].untyped_storage().nbytes() == found[name].nbytes
        storages.add(found[name].untyped_storage().data_ptr())
    assert len(storages) == len(found)
    report = planner.load_report(model)
    ways = {row.names[0]: row.way for row in report.tensors}
    if dtype == "auto" and copy:
        assert all(way == "copy" for name, way in ways.items() if name != "empty")
    if dtype == "auto" and not copy and not gap:
        assert set(ways.values()) == {"view"} and report.copied_bytes == report.read_bytes == 0
    if copy:
        assert report.copied_bytes == sum(tensor.nbytes for tensor in found.values())
    for tensor in found.values():
        if tensor.is_floating_point():
            tensor.add_(1)  # it is memory like any other


def test_a_copy_survives_what_becomes_of_the_file(tmp_path: Path) -> None:
    plain = made()
    path = write_file(tmp_path / "model.safetensors", plain.state_dict())
    model = planner.load(tmp_path, empty(), {"": "cpu"}, copy=True)
    with path.open("r+b") as file:
        file.truncate(0)
    assert all(tensor.equal(plain.state_dict()[name]) for name, tensor in model.state_dict().items())


def test_files_on_slow_file_systems_are_copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_file(tmp_path / "a.safetensors", {"a": torch.ones(3000)})
    write_file(tmp_path / "b.safetensors", {"b": torch.ones(3000)})
    monkeypatch.setattr("planner.loading.open_files.OpenFiles.slow_files", lambda files: frozenset({1}))
    model = nn.Module()
    for name in "ab":
        model.register_parameter(name, nn.Parameter(torch.empty(3000, device="meta"), requires_grad=False))
    loaded = planner.load(tmp_path, model, {"": "cpu"})
    ways = {row.names[0]: row.way for row in planner.load_report(loaded).tensors}
    assert ways == {"a": "view", "b": "copy"}
    assert loaded.a.equal(torch.ones(3000)) and loaded.b.equal(torch.ones(3000))


def test_what_rests_beside_something_on_disk_is_copied_too(tmp_path: Path) -> None:
    """Of one module, a tensor on disk and one that is copied."""
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8)).requires_grad_(False)
    write_file(tmp_path / "model.safetensors", plain.state_dict())
    with torch.device("meta"):
        skeleton = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8)).requires_grad_(False)
    placed = {"0": "cpu", "1.weight": "disk", "1.bias": "cpu"}
    model = planner.load(tmp_path, skeleton, placed, copy=True)
    x = torch.randn(2, 8)
    assert model(x).equal(plain(x))


def test_a_number_that_does_not_fit_is_counted_in_the_whole_tensor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A tensor that passes the slot in many pieces."""
    monkeypatch.setattr(file_order, "_CAST_SLOT_BYTES", 64 << 10)
    weight = torch.ones(300, 300)
    weight[::100, 5] = 1e7
    write_file(tmp_path / "model.safetensors", {"weight": weight, "bias": torch.zeros(300)})
    with torch.device("meta"):
        skeleton = nn.Linear(300, 300).requires_grad_(False)
    with pytest.raises(OffloadError, match="3 numbers of 'weight'") as caught:
        planner.load(tmp_path, skeleton, {"": "cpu"}, dtype=torch.float16)
    assert caught.value.name == "weight"
    assert skeleton.weight.is_meta


def test_a_model_is_as_it_was_where_memory_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def none_left(size_bytes: int) -> Any:
        raise MemoryError("no memory")

    write_file(tmp_path / "model.safetensors", made().state_dict())
    monkeypatch.setattr(file_order, "PageBuffer", none_left)
    model = made()
    before = {name: (id(tensor), tensor._version) for name, tensor in model.named_parameters()}
    with pytest.raises(MemoryError):
        planner.load(tmp_path, model, {"": "cpu"}, copy=True)
    assert {name: (id(tensor), tensor._version) for name, tensor in model.named_parameters()} == before


# How tensors are cut for a slot.


@pytest.mark.parametrize("most_bytes", [40_000, 64 << 10, 1 << 20])
@pytest.mark.parametrize("wanted", [torch.bfloat16, torch.float32, torch.float16])
@pytest.mark.parametrize("begin", [8, 4096, 4099])
def test_every_element_is_in_one_slice_and_fillings_keep_the_bound(
    begin: int, wanted: torch.dtype, most_bytes: int
) -> None:
    rows = []
    at = begin
    for number, (dtype, count) in enumerate(
        [(torch.bfloat16, 70_001), (torch.float32, 7), (torch.float32, 30_000)]
    ):
        end = at + count * dtype.itemsize
        rows.append(StoredTensor(f"t{number}", 0, at, end, dtype, (count,)))
        at = end + number * 5000
    fused = Pieces(torch.bfloat16, (2, 70_001), ((rows[0], 140_002), (rows[0]._replace(name="u", file=1), 0)))
    tensors = [WantedTensor(row.name, row, wanted, True) for row in rows]
    tensors.append(WantedTensor("fused", fused, wanted, True))
    seen = {row.name: torch.zeros(row.nbytes // wanted.itemsize, dtype=torch.int) for row in tensors}
    last = (0, 0)
    for filling in fillings_of(tensors, most_bytes):
        assert filling.layout.room_bytes <= most_bytes
        assert last <= filling.position
        last = filling.position
        for row in filling.slices:
            seen[row.name][row.first : row.first + row.length] += 1
    assert all(bool((counts == 1).all()) for counts in seen.values())


# Memory and the page cache, each in a process of its own.

MEASURE = """
    import gc, resource, sys
    from pathlib import Path
    import torch
    from torch import nn
    import planner
    def anonymous_bytes():
        lines = Path("/proc/self/status").read_text().splitlines()
        return sum(int(line.split()[1]) << 10 for line in lines if line.startswith("RssAnon"))
    class Peak:
        def __init__(self): self.bytes = 0
        def __call__(self, done_bytes, total_bytes): self.bytes = max(self.bytes, anonymous_bytes())
    folder, dtype, copy, layers = sys.argv[1], sys.argv[2], sys.argv[3] == "copy", int(sys.argv[4])
    def stack():
        with torch.device("meta"):
            return nn.Sequential(*(nn.Linear(1024, 2048, bias=False) for _ in range(layers))).requires_grad_(False)
    small = Path(folder) / "small"
    planner.load(small, nn.ParameterDict({"a": torch.empty(1000, device="meta")}), {"": "cpu"}, dtype="bfloat16", copy=copy)
    gc.collect()
    before, peak = anonymous_bytes(), Peak()
    model = planner.load(Path(folder) / "large", stack(), {"": "cpu"}, dtype=dtype, copy=copy, progress=peak)
    stays = sum(parameter.nbytes for parameter in model.parameters())
    print(peak.bytes - before, stays)
"""


def measured(folder: Path, dtype: str, copy: str, layers: int) -> tuple[int, int]:
    """The most anonymous memory while loading, and bytes of what stays."""
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(MEASURE), str(folder), dtype, copy, str(layers)],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    peak_bytes, stays_bytes = done.stdout.split()
    return int(peak_bytes), int(stays_bytes)


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """128 MiB in bfloat16, and something small to warm up with."""
    folder = tmp_path_factory.mktemp("copying")
    for name in ("small", "large"):
        (folder / name).mkdir()
    write_file(folder / "small" / "model.safetensors", {"a": torch.zeros(1000)})
    weights = {
        f"{number}.weight": torch.full((2048, 1024), number, dtype=torch.bfloat16) for number in range(32)
    }
    path = write_file(folder / "large" / "model.safetensors", weights)
    with path.open("rb") as file:
        os.fsync(file.fileno())
    return folder


@pytest.mark.parametrize(("dtype", "copy"), [("float32", "view"), ("float16", "view"), ("auto", "copy")])
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_memory_is_what_stays(dtype: str, copy: str, large: Path) -> None:
    peak_bytes, stays_bytes = measured(large, dtype, copy, 32)
    assert 0.95 * stays_bytes < peak_bytes <= 1.05 * stays_bytes + 8 * MIB


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_copying_leaves_nothing_in_the_page_cache(large: Path) -> None:
    path = large / "large" / "model.safetensors"
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
        os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(handle)
    from planner.checkpoint.files import StoredFile

    file = StoredFile.open(str(path), path.name)
    before_bytes, _ = cached_bytes(file, 0, file.size_bytes)
    if before_bytes > file.size_bytes // 100:
        pytest.skip("this file system keeps what it is asked to drop")
    measured(large, "auto", "copy", 32)
    after_bytes, _ = cached_bytes(file, 0, file.size_bytes)
    # The header is read through the page cache.
    assert after_bytes - before_bytes <= 2 * MIB

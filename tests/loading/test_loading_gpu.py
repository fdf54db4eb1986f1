"""The way from files to a real card: answers, room, bits of casts, and how fast it is beside what it is made of.

Also runs, small and without its limits on time, where the virtual accelerators are registered before pytest starts:
`python -c "import rig, pytest; rig.Accelerators(); pytest.main(['tests/loading/test_loading_gpu.py', '-m', 'gpu'])"`.
"""

from __future__ import annotations

import gc
import os
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import nn

import planner
from planner.checkpoint.files import StoredFile
from planner.loading.reading import read_spans
from tensor_files import write_file

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.accelerator.is_available(), reason="needs an accelerator"),
]

IS_REAL = torch.cuda.is_available()
WIDTH, LAYERS, ROUNDS = (4096, 24, 5) if IS_REAL else (256, 6, 2)
LAYER_BYTES = 2 * WIDTH * WIDTH
RESIDENT = 2


def stack(dtype: torch.dtype = torch.bfloat16) -> nn.Sequential:
    layers = (nn.Linear(WIDTH, WIDTH, bias=False, dtype=dtype) for _ in range(LAYERS))
    return nn.Sequential(*layers).requires_grad_(False).eval()


def empty() -> nn.Sequential:
    with torch.device("meta"):
        return stack()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """In four files, written to the disk."""
    torch.manual_seed(0)
    found = tmp_path_factory.mktemp("gpu")
    weights = {name: tensor * 2 for name, tensor in stack().state_dict().items()}
    names = list(weights)
    for number in range(4):
        path = write_file(found / f"{number}.safetensors", {name: weights[name] for name in names[number::4]})
        with path.open("rb") as file:
            os.fsync(file.fileno())
    return found


@pytest.fixture
def x() -> torch.Tensor:
    torch.manual_seed(1)
    return torch.randn(16, WIDTH, dtype=torch.bfloat16).to(0)


@pytest.fixture(autouse=True)
def let_go() -> Iterator[None]:
    yield
    gc.collect()
    torch.accelerator.empty_cache()


def paths_of(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.safetensors"))


def drop(folder: Path) -> None:
    """Takes the files out of the page cache."""
    for path in paths_of(folder):
        with path.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def warm(folder: Path) -> None:
    for path in paths_of(folder):
        path.read_bytes()


def loaded(folder: Path, rest: str, room_layers: float = 2.1, **settings: Any) -> Any:
    placed = {str(number): 0 if number < RESIDENT else rest for number in range(LAYERS)}
    return planner.load(
        folder, empty(), placed, staging_bytes={0: int(room_layers * LAYER_BYTES)}, **settings
    )


def plain(folder: Path) -> nn.Module:
    weights: dict[str, torch.Tensor] = {}
    for path in paths_of(folder):
        weights.update(safetensors.torch.load_file(path))
    model = stack()
    model.load_state_dict(weights)
    return model.to(0)


def seconds(run: Callable[[], object], before: Callable[[], object] = lambda: None) -> float:
    """Median, without the first."""
    found = []
    for _ in range(ROUNDS + 1):
        before()
        torch.accelerator.synchronize()
        began = time.perf_counter()
        run()
        torch.accelerator.synchronize()
        found.append(time.perf_counter() - began)
    return statistics.median(found[1:])


def bare_read(folder: Path, *, direct: bool, slot_bytes: int = 64 << 20) -> Callable[[], None]:
    """All files into one pinned slot, again and again."""
    slot = torch.empty(slot_bytes, dtype=torch.uint8, pin_memory=True)
    memory = slot.numpy()
    files = [StoredFile.open(str(path), path.name) for path in paths_of(folder)]

    def run() -> None:
        for number, file in enumerate(files):
            for begin in range(0, file.size_bytes, slot_bytes):
                end = min(begin + slot_bytes, file.size_bytes)
                read_spans(files, [(number, begin, end, 0)], memory, direct, 2)

    return run


def bare_copy(total_bytes: int, slot_bytes: int = 64 << 20) -> Callable[[], None]:
    """As many bytes from pinned memory to the card."""
    here = torch.empty(slot_bytes, dtype=torch.uint8, pin_memory=True)
    there = torch.empty(slot_bytes, dtype=torch.uint8, device=0)

    def run() -> None:
        for begin in range(0, total_bytes, slot_bytes):
            count = min(slot_bytes, total_bytes - begin)
            there[:count].copy_(here[:count], non_blocking=True)

    return run


def computing(folder: Path, x: torch.Tensor) -> float:
    resident = plain(folder)
    return seconds(lambda: resident(x))


def report(name: str, **figures: float) -> None:
    print(f"\n{name}: " + ", ".join(f"{key} {value * 1e3:.1f} ms" for key, value in figures.items()))


@pytest.mark.parametrize("read", ["auto", "cached", "direct"])
@pytest.mark.parametrize("room_layers", [1.1, 2.1])
@pytest.mark.parametrize("rest", ["cpu", "disk"])
def test_answers_and_room(rest: str, room_layers: float, read: str, folder: Path, x: torch.Tensor) -> None:
    want = plain(folder)(x)
    gc.collect()
    torch.accelerator.empty_cache()
    model = loaded(folder, rest, room_layers, read=read)
    torch.accelerator.synchronize()
    before_bytes = RESIDENT * LAYER_BYTES
    torch.accelerator.reset_peak_memory_stats()
    for _ in range(10):
        assert model(x).equal(want)
    torch.accelerator.synchronize()
    peak_bytes = torch.accelerator.max_memory_allocated() - before_bytes
    assert peak_bytes <= (1.3 if room_layers < 2 else 2.3) * LAYER_BYTES + 10 * x.nbytes
    streamed = planner.load_report(model).streamed
    if rest == "disk" and read == "direct":
        assert streamed.direct_bytes >= 0.99 * streamed.streamed_bytes > 0


def test_a_card_widens_as_the_host_does() -> None:
    """Every number of sixteen bits."""
    bits = torch.arange(1 << 16, dtype=torch.int32).to(torch.uint16)
    for dtype in (torch.float16, torch.bfloat16):
        for wanted in (torch.float32, torch.float64):
            narrow = bits.view(dtype)
            want, found = narrow.to(wanted), narrow.to(0).to(wanted).cpu()
            whole = torch.int32 if wanted == torch.float32 else torch.int64
            is_number = ~want.isnan()
            assert found.isnan().equal(want.isnan())
            assert found.view(whole)[is_number].equal(want.view(whole)[is_number])


def test_gradients_through_blocks_that_came_through_the_ring(folder: Path, x: torch.Tensor) -> None:
    gradients = []
    for make in (plain, lambda where: loaded(where, "disk")):
        given = x.clone().requires_grad_(True)
        make(folder)(given).float().square().mean().backward()
        assert given.grad is not None
        gradients.append(given.grad.clone())
        gc.collect()
    assert gradients[0].equal(gradients[1])


def test_loading_to_the_card(folder: Path) -> None:
    """Beside reading and crossing the same bytes, and beside mapped pages that go to the card."""
    total_bytes = sum(path.stat().st_size for path in paths_of(folder))

    def ours() -> None:
        planner.load(folder, empty(), {"": 0})

    def mapped() -> None:
        for path in paths_of(folder):
            safetensors.torch.load_file(path, device="cuda:0" if IS_REAL else "cpu")

    warm(folder)
    figures = {
        "load": seconds(ours),
        "mapped": seconds(mapped),
        "read": seconds(bare_read(folder, direct=False)),
        "copy": seconds(bare_copy(total_bytes)),
    }
    report("warm", **figures)
    cold = {
        "load": seconds(ours, lambda: drop(folder)),
        "mapped": seconds(mapped, lambda: drop(folder)),
        "read": seconds(bare_read(folder, direct=True), lambda: drop(folder)),
    }
    report("cold", **cold)
    if IS_REAL:
        assert figures["load"] <= 1.3 * max(figures["read"], figures["copy"]) + 0.1
        assert figures["load"] <= 1.1 * figures["mapped"] + 0.1
        assert cold["load"] <= 1.2 * max(cold["read"], figures["copy"]) + 0.1
        assert cold["load"] <= cold["mapped"]


@pytest.mark.parametrize("rest", ["cpu", "disk"])
def test_forwards(rest: str, folder: Path, x: torch.Tensor) -> None:
    """Bound by the slowest of reading, crossing and computing, and not by their sum."""
    streamed_bytes = (LAYERS - RESIDENT) * LAYER_BYTES
    share = streamed_bytes / sum(path.stat().st_size for path in paths_of(folder))
    compute = computing(folder, x)
    is_direct = rest == "disk"
    before: Callable[[], object] = (lambda: drop(folder)) if is_direct else (lambda: None)
    warm(folder)
    read = share * seconds(bare_read(folder, direct=is_direct), before)
    crossing = seconds(bare_copy(streamed_bytes))
    model = loaded(folder, rest, read="direct" if is_direct else "auto")
    ahead = seconds(lambda: model(x), before)
    model = loaded(folder, rest, 1.1, read="direct" if is_direct else "auto")
    alone = seconds(lambda: model(x), before)
    report(f"forward, {rest}", ahead=ahead, alone=alone, read=read, crossing=crossing, compute=compute)
    if IS_REAL:
        assert ahead <= 1.3 * max(read, crossing, compute) + 0.005

"""Views that stay in memory behind streamed blocks are read with these, once the system has taken pages of the files."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import planner
from planner.loading.streaming.files import FileReads
from planner.loading.streaming.layout import Span
from waiting import is_soon

LAYERS = 3


class Chain(nn.Module):
    """Layers, and a head that stays."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(64, 64)
        self.layers = nn.ModuleList(nn.Linear(64, 64) for _ in range(LAYERS))
        self.head = nn.Linear(64, 64)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.first(x)
        for layer in self.layers:
            x = layer(x)
        return self.head(x)


class Disk:
    """A page cache that tests fill and empty, and what is read into it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.is_cached = True
        self.paged: list[tuple[int, int]] = []
        monkeypatch.setattr(
            FileReads,
            "cached_bytes",
            lambda _, file, begin, end: (self.is_cached * (end - begin), end - begin),
        )
        real = FileReads.page_in

        def page_in(files: FileReads, spans: Sequence[Span]) -> None:
            self.paged += [(span.begin, span.end) for span in spans]
            real(files, spans)

        monkeypatch.setattr(FileReads, "page_in", page_in)


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Disk:
    return Disk(monkeypatch)


@pytest.fixture
def saved(tmp_path: Path) -> tuple[Chain, Path]:
    torch.manual_seed(0)
    model = Chain()
    save_file(model.state_dict(), tmp_path / "model.safetensors")
    return model, tmp_path / "model.safetensors"


def bytes_of(path: Path, prefix: str) -> list[tuple[int, int]]:
    raw = path.read_bytes()
    size = int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8 : 8 + size])
    return [
        (8 + size + row["data_offsets"][0], 8 + size + row["data_offsets"][1])
        for name, row in header.items()
        if name.startswith(prefix)
    ]


def loaded(path: Path, read: str) -> nn.Module:
    with torch.device("meta"):
        model = Chain()
    device_map = {"first": "cpu", "head": "cpu"} | {f"layers.{i}": "disk" for i in range(LAYERS)}
    return planner.load(path, model, device_map, read=read)


@pytest.mark.parametrize("read", ["auto", "cached"])
def test_the_head_is_read_behind_the_last_block(saved: tuple[Chain, Path], disk: Disk, read: str) -> None:
    whole, path = saved
    model = loaded(path, read)
    x = torch.randn(2, 64)
    for _ in range(2):  # the model's order, then the one that was learnt
        assert torch.equal(model(x), whole(x))
        assert disk.paged == []
    disk.is_cached = False
    for _ in range(3):
        disk.paged.clear()
        assert torch.equal(model(x), whole(x))
        # The reader may come to it when the forward has ended.
        assert is_soon(lambda: set(bytes_of(path, "head")) <= set(disk.paged))
        assert not set(bytes_of(path, "first")) & set(disk.paged)


def test_who_reads_past_the_page_cache_leaves_it_alone(saved: tuple[Chain, Path], disk: Disk) -> None:
    whole, path = saved
    model = loaded(path, "direct")
    disk.is_cached = False
    x = torch.randn(2, 64)
    for _ in range(2):
        assert torch.equal(model(x), whole(x))
    assert disk.paged == []

"""What forwards write into weights that lie in files, in whatever way, whichever way the next forward reads them."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

import planner

WIDTH = 64
BESIDE = {"cached": "direct", "direct": "cached"}


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Linear(WIDTH, WIDTH, bias=False)
        self.norm = nn.BatchNorm1d(WIDTH)
        self.register_buffer("seen", torch.zeros(WIDTH))
        self.write: Callable[[Block], None] | None = None

    def forward(self, x: Tensor) -> Tensor:
        if self.write is not None:
            self.write(self)
        return self.norm(torch.tanh(self.up(x))) + self.seen


class Net(nn.Module):
    _no_split_modules = ["Block"]  # noqa: RUF012 (as transformers has it)

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([Block() for _ in range(3)])

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x)
        return x


def data(block: Block) -> None:
    block.up.weight.data.mul_(0.5)


def other_data(block: Block) -> None:
    block.up.weight.data = block.up.weight * 0.5


def array(block: Block) -> None:
    block.up.weight.detach().numpy()[...] *= np.float32(0.5)


def counted(block: Block) -> None:
    with torch.no_grad():
        block.up.weight.mul_(0.5)


def buffer_data(block: Block) -> None:
    block.seen.data.add_(1)


def buffer_array(block: Block) -> None:
    block.seen.numpy()[...] += 1


def pair(folder: Path, read: str, *, is_training: bool = False) -> tuple[Any, Net]:
    torch.manual_seed(1)
    net = Net().requires_grad_(False).train(is_training)
    save_file(net.state_dict(), folder / "model.safetensors")
    with torch.device("meta"):
        empty = Net().requires_grad_(False).train(is_training)
    return planner.load(folder, empty, {"": "disk"}, read=read, offload_buffers=True), net


def read_otherwise(model: Any, read: str) -> None:
    """As where the page cache loses bytes between two forwards, or gets them."""
    model._hf_hook.prefetcher._choice.read = read


def same(model: Any, net: Net) -> bool:
    held = planner.state_dict(model)
    return all(torch.equal(held[name], tensor) for name, tensor in net.state_dict().items())


@pytest.mark.parametrize("read", BESIDE)
@pytest.mark.parametrize("write", [data, other_data, array, counted, buffer_data, buffer_array])
def test_what_is_written_once_stays(tmp_path: Path, read: str, write: Callable[[Block], None]) -> None:
    model, net = pair(tmp_path, read)
    x = torch.randn(5, WIDTH)
    for each in (model, net):
        each.layers[1].write = write
    assert torch.equal(model(x), net(x))
    for each in (model, net):
        each.layers[1].write = None
    want = net(x)
    for way in (read, BESIDE[read]):
        read_otherwise(model, way)
        assert torch.equal(model(x), want)
        assert torch.equal(copy.deepcopy(model)(x), want)
    assert same(model, net)
    assert torch.equal(planner.undispatch(model)(x), want)


@pytest.mark.parametrize("read", BESIDE)
def test_running_statistics(tmp_path: Path, read: str) -> None:
    """The native batch norm writes them, and does not count it."""
    model, net = pair(tmp_path, read, is_training=True)
    for way in (read, BESIDE[read], read):
        read_otherwise(model, way)
        x = torch.randn(5, WIDTH)
        assert torch.equal(model(x), net(x))
    assert same(model, net)


def anonymous_bytes() -> int:
    text = Path("/proc/self/smaps_rollup").read_text()
    return 1024 * int(re.search(r"Anonymous:\s+(\d+)", text)[1])  # type: ignore[index]


def test_tensors_at_odd_offsets_keep_the_bound(tmp_path: Path) -> None:
    """They cannot be views; copies of them must not stay."""
    large, path = 1024, tmp_path / "model.safetensors"
    net = nn.Sequential(*[nn.Linear(large, large, bias=False) for _ in range(10)]).requires_grad_(False)
    save_file(net.state_dict(), path)
    whole = path.read_bytes()
    length = int.from_bytes(whole[:8], "little")
    header = whole[8 : 8 + length].rstrip()
    header += b" " * (-len(header) % 8 + 1)
    path.write_bytes(len(header).to_bytes(8, "little") + header + whole[8 + length :])
    with torch.device("meta"):
        empty = nn.Sequential(*[nn.Linear(large, large, bias=False) for _ in range(10)]).requires_grad_(False)
    model: Any = planner.load(tmp_path, empty, {"": "disk"}, read="cached")
    report = planner.load_report(model)
    assert {row.way for row in report.tensors} == {"copy"}
    x = torch.randn(2, large)
    want = net(x)
    before = anonymous_bytes()
    for _ in range(2):
        assert torch.equal(model(x), want)
    assert anonymous_bytes() - before <= report.staging_bytes + (16 << 20)

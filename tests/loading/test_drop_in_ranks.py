"""Several ranks load by accelerate's functions on our reading of files."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from drop_in_models import (
    WRITERS,
    Small,
    X,
    trained,
)
from safetensors.torch import save_file
from torch import nn

import planner


@pytest.fixture
def process_group(tmp_path: Path) -> Iterator[None]:
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/group", rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


@pytest.mark.usefixtures("process_group")
@pytest.mark.parametrize("kind", WRITERS)
def test_the_first_rank_alone_reads_where_that_is_asked(kind: str, checkpoint: Callable[..., Path]) -> None:
    model, source = trained(), checkpoint(kind, trained())
    planner.load_checkpoint_and_dispatch(model, source, strict=True, broadcast_from_rank0=True)
    expected = planner.load_checkpoint_and_dispatch(Small().eval(), source)
    assert torch.equal(model(X), expected(X))


TWO_RANKS = """
import sys, torch, torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
import planner
rank, rendezvous, source, missing = int(sys.argv[1]), *sys.argv[2:]
dist.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=2)
make = lambda: torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Linear(4, 2))
expected = planner.load_checkpoint_and_dispatch(make(), source)
for seen in (source, source if rank == 0 else missing):
    plain, spread = make(), fully_shard(make(), mesh=init_device_mesh("cpu", (2,)))
    for model in (plain, spread):
        planner.load_checkpoint_and_dispatch(model, seen, strict=True, broadcast_from_rank0=True)
    for one, whole, part in zip(plain.parameters(), expected.parameters(), spread.parameters(), strict=True):
        assert isinstance(part, DTensor)
        assert torch.equal(one, whole) and torch.equal(part.full_tensor(), whole)
planner.load_checkpoint_and_dispatch(spread, source, strict=True)
assert all(torch.equal(p.full_tensor(), w) for p, w in zip(spread.parameters(), expected.parameters()))
dist.destroy_process_group()
"""


@pytest.mark.sweep  # two processes that load torch
def test_two_ranks_get_what_the_first_one_reads(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2))
    save_file(model.state_dict(), tmp_path / "m.safetensors")
    ranks = [
        subprocess.Popen(
            [
                sys.executable,
                "-c",
                TWO_RANKS,
                str(rank),
                tmp_path / "group",
                tmp_path / "m.safetensors",
                "nowhere",
            ],
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    for process in ranks:
        _, said = process.communicate(timeout=120)
        assert process.returncode == 0, said[-3000:]

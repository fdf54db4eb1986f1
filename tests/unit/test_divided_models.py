"""A workload of a model that is divided among processes is refused before anything is planned; its weights are planned as they are."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch.distributed
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module
from torch.testing._internal.distributed.fake_pg import FakeStore

import planner
from planner import InvalidInputError
from tiny_models import built

WORK = {"context_length": 64}
ROOM: dict[Any, int] = {0: 1 << 28}


@pytest.fixture
def mesh() -> Iterator[DeviceMesh]:
    """Two processes, of which only one is there."""
    torch.distributed.init_process_group("fake", store=FakeStore(), rank=0, world_size=2)
    try:
        yield init_device_mesh("cpu", (2,))
    finally:
        torch.distributed.destroy_process_group()


def in_parallel(mesh: DeviceMesh) -> Any:
    ways = {"up_proj": ColwiseParallel(), "gate_proj": ColwiseParallel(), "down_proj": RowwiseParallel()}
    plan = {f"model.layers.*.mlp.{name}": way for name, way in ways.items()}
    return parallelize_module(built("llama"), mesh, plan)


def in_shards(mesh: DeviceMesh) -> Any:
    return fully_shard(built("llama"), mesh=mesh)


@pytest.mark.parametrize("divide", [in_parallel, in_shards])
def test_shards_are_refused(mesh: DeviceMesh, divide: Any) -> None:
    model = divide(mesh)
    for ask in (
        lambda: planner.plan(model, max_memory=ROOM, workload=WORK),
        lambda: planner.demands(model, workload=WORK),
        lambda: planner.largest(model, "batch_size", max_memory=ROOM, workload=WORK),
        lambda: planner.plan_many(model, [ROOM], workload=WORK),
    ):
        with pytest.raises(InvalidInputError, match=r"over 2 processes.*plan the model as it is before"):
            ask()
    whole = planner.plan(built("llama"), max_memory=ROOM)
    assert 0 < planner.plan(model, max_memory=ROOM).devices[0].used_bytes < whole.devices[0].used_bytes


def test_what_transformers_has_loaded_as_one_rank_is_refused() -> None:
    model: Any = built("llama")
    model._tp_size = 4
    with pytest.raises(InvalidInputError, match="tp_size=4"):
        planner.plan(model, max_memory=ROOM, workload=WORK)
    model._tp_size = 1
    assert planner.plan(model, max_memory=ROOM, workload=WORK).demands is not None

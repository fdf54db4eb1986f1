"""The formula is an upper bound of what a recording tells, and its caches are the recording's."""

from __future__ import annotations

from typing import Any

import pytest

import planner
from planner.checkpoint.source import open_source
from planner.memory.demands import Demands
from planner.planning.demands import demands_of
from planner.planning.recorded import recorded
from planner.settings.workload import Workload
from tiny_models import built

POINTS = [(1, 64, None), (4, 256, None), (2, 256, 32), (1, 1024, 512)]


def taken(demands: Demands) -> int:
    """What one device takes that runs everything."""
    blocks = demands.blocks.values()
    kept = sum(each.exec_bytes for each in blocks)
    return kept + max(each.needs_bytes for each in blocks) + demands.shared_bytes


def both(name: str, rows: int, context: int, prompt: int | None, **more: Any) -> tuple[Demands, Demands]:
    """By formula, and recorded."""
    model = built(name)
    workload = Workload(context_length=context, prompt_length=prompt, batch_size=rows, **more)
    blocks = list(planner.plan(model, max_memory={0: "1TiB"}, headroom=None).block_bytes)
    opened = open_source(model)
    found = recorded(opened, workload, blocks, fingerprint=name).demands()
    return Demands.most_of(demands_of(opened, workload, blocks, None).values()), found


@pytest.mark.parametrize("kernel", ["fused", "math"])
@pytest.mark.parametrize("point", POINTS, ids=str)
@pytest.mark.parametrize("name", ["llama", "gemma", "gpt2", "mixtral", "t5"])
def test_no_recording_is_above_the_formula(
    name: str, point: tuple[int, int, int | None], kernel: str
) -> None:
    formula, found = both(name, *point, attention_kernel=kernel)
    assert taken(formula) >= taken(found)


@pytest.mark.parametrize("point", POINTS, ids=str)
@pytest.mark.parametrize("name", ["llama", "gemma", "gpt2", "mixtral"])
def test_no_recording_of_an_offloaded_cache_is_above_the_formula(
    name: str, point: tuple[int, int, int | None]
) -> None:
    """And what rests is the recording's, to the byte."""
    formula, found = both(name, *point, cache="offloaded")
    assert taken(formula) >= taken(found)
    assert formula.resting_bytes == found.resting_bytes > 0


@pytest.mark.parametrize("name", ["llama", "gemma", "gpt2", "mixtral"])
def test_caches_are_the_same(name: str) -> None:
    """To the byte, of every block."""
    formula, found = both(name, 2, 128, 32)
    for block, demand in found.blocks.items():
        assert demand.cache_bytes == formula.blocks[block].cache_bytes, block

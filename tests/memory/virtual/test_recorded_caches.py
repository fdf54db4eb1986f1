"""Caches on the cpu, of another dtype, and made as a whole: recorded as they run."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import DynamicCache, StaticCache

import planner
from measured_peaks import measured_peaks
from planner.memory.recording.workloads import record
from planner.memory.replay import RunPlacement, replay
from planner.memory.tape import Tape
from planner.settings.workload import Workload
from rig import Accelerators
from tiny_models import built

ROWS, PROMPT, CONTEXT = 2, 24, 26


def blocks_of(model: Any) -> list[str]:
    return list(planner.plan(model, max_memory={0: "1TiB"}, headroom=None).block_bytes)


def workload(**said: Any) -> Workload:
    return Workload(
        context_length=CONTEXT,
        prompt_length=PROMPT,
        batch_size=ROWS,
        logits="all",
        attention_kernel="math",
        inputs={"input_ids": (ROWS, PROMPT)},
        **said,
    )


def taped(model: Any, **said: Any) -> Tape:
    return record(model, blocks_of(model), workload(**said))[0]


@pytest.fixture
def no_streams(monkeypatch: pytest.MonkeyPatch) -> None:
    """The virtual accelerators have none, and all is in order without."""

    class Stream(nullcontext[None]):
        def wait_stream(self, _: Any) -> None:
            pass

    monkeypatch.setattr(torch, "Stream", Stream)
    monkeypatch.setattr(torch.cuda, "default_stream", lambda device: SimpleNamespace(wait_stream=id))


def real_and_recorded(
    accelerators: Accelerators, model: Any, tape: Tape, cache: Callable[[], Any], homes: dict[str, int] | None
) -> tuple[Any, Any]:
    if homes is None:
        model.to(0)
    else:
        planner.dispatch(model, homes)
    weights = {index: accelerators.used_bytes(index) for index in ((0,) if homes is None else (0, 1))}
    given = {"input_ids": torch.ones((ROWS, PROMPT), dtype=torch.long)}
    options = {"use_cache": True}
    real = measured_peaks(model, accelerators, given, steps=2, options=options, cache=cache)
    placement = RunPlacement(execution=homes or {}, main_device=0, resident_bytes=weights)
    found = replay(tape, placement)
    return {phase: {index: real[phase][index] for index in weights} for phase in real}, found


class Watched(DynamicCache):
    """transformers' own, which remembers the most that has rested on the cpu."""

    most_bytes = 0

    def offload(self, *args: Any, **kwargs: Any) -> None:
        super().offload(*args, **kwargs)
        resting = [
            tensor
            for layer in self.layers
            for tensor in (layer.keys, layer.values)
            if tensor is not None and tensor.device.type == "cpu"
        ]
        self.most_bytes = max(self.most_bytes, sum(each.untyped_storage().nbytes() for each in resting))


@pytest.mark.parametrize("is_divided", [False, True])
@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma"])
def test_offloaded(virtual_accelerators: Accelerators, no_streams: None, name: str, is_divided: bool) -> None:
    """transformers' own runs; the recording is of ours, which does the same without streams."""
    model: Any = built(name)
    tape = taped(model, cache="offloaded")
    blocks = blocks_of(model)
    homes = {block: int(place >= 3) for place, block in enumerate(blocks)} if is_divided else None
    cache = Watched(config=model.config, offloading=True)
    real, found = real_and_recorded(virtual_accelerators, model, tape, lambda: cache, homes)
    resting = [by_device.pop("cpu") for by_device in found.values()]
    assert found == real
    assert max(resting) == cache.most_bytes > 0


def test_static(virtual_accelerators: Accelerators) -> None:
    model: Any = built("llama")
    tape = taped(model, cache="static")
    made = lambda: StaticCache(config=model.config, max_cache_len=CONTEXT)  # noqa: E731
    real, found = real_and_recorded(virtual_accelerators, model, tape, made, None)
    assert found == real


def test_another_dtype_and_the_cpu_are_recorded_in_plans() -> None:
    """Half the bytes stay of half as wide a dtype; what a layer reads is there in full meanwhile."""
    model: Any = built("llama")
    plans = [
        planner.plan(
            model, max_memory={0: "1GiB"}, headroom=None, workload={"context_length": CONTEXT, **said}
        )
        for said in ({}, {"cache_dtype": "float16"}, {"cache": "offloaded"})
    ]
    assert [plan.demands.method for plan in plans] == ["recorded"] * 3
    whole, half, few = (plan.devices[0].cache_bytes for plan in plans)
    assert half == whole // 2
    assert few < half

"""Six recordings tell of all others, and demands by block are not below a replay."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import planner
from planner.memory.polynomials import fitted
from planner.memory.recording.session import RecordedRun, record_run
from planner.memory.recording.workloads import record, recorded_demands
from planner.memory.replay import RunPlacement, replay
from planner.memory.tape import MADE, PHASE, Tape
from planner.settings.workload import Workload
from tiny_models import built

# One row runs other operators here: what is expanded need not be copied.
POINTS = [(2, 64), (2, 128), (2, 192), (3, 64), (3, 128), (3, 192)]


def blocks_of(model: Any) -> list[str]:
    return list(planner.plan(model, max_memory={0: "1TiB"}, headroom=None).block_bytes)


def taped(model: Any, rows: int, tokens: int) -> Tape:
    run = RecordedRun(
        inputs={"input_ids": ((rows, tokens), torch.long)}, options={"use_cache": True}, steps=1
    )
    return record_run(model, blocks_of(model), run)


@pytest.mark.parametrize("name", ["llama", "gemma", "mixtral"])
def test_other_points_are_told_without_an_error(name: str) -> None:
    model = built(name)
    polynomials = fitted(POINTS, [taped(model, *point) for point in POINTS])
    assert polynomials is not None
    for point in ((2, 72), (3, 320), (5, 4096)):
        assert polynomials.at(*point).events == taped(model, *point).events


def test_other_operators_are_noticed() -> None:
    model = built("llama")
    assert (
        fitted([(1, 64), *POINTS[1:]], [taped(model, 1, 64), *(taped(model, *each) for each in POINTS[1:])])
        is None
    )
    one = Tape(("0",), ((PHASE, "prefill"), (MADE, 0, 4, 1, "mm")))
    other = Tape(("0",), ((PHASE, "prefill"), (MADE, 0, 4, 1, "add")))
    assert fitted(POINTS, [one] * 5 + [other]) is None


def test_points_that_determine_nothing_are_refused() -> None:
    tape = Tape((), ())
    with pytest.raises(planner.InvalidInputError):
        fitted([(1, 64)] * 6, [tape] * 6)


@pytest.mark.parametrize("name", ["llama", "gemma", "gpt2", "mixtral"])
@pytest.mark.parametrize("prompt", [None, 16])
def test_demands_are_not_below_a_replay(name: str, prompt: int | None) -> None:
    model, workload = built(name), Workload(context_length=64, prompt_length=prompt, batch_size=2)
    names = blocks_of(model)
    demands = recorded_demands(model, names, workload)
    assert demands.method == "recorded" and next(iter(demands.blocks)).endswith(("embed_tokens", "wte"))
    execution = {name: min(2, 3 * at // len(names)) for at, name in enumerate(names)}
    for tape in record(model, names, workload):
        for peaks in replay(tape, RunPlacement(execution=execution, main_device=0)).values():
            for device, peak in peaks.items():
                mine = [demands.blocks[each] for each in names if execution[each] == device]
                told = sum(each.exec_bytes for each in mine) + demands.shared_bytes
                assert told + max(each.needs_bytes for each in mine) >= 0.98 * peak


def test_a_forward_that_cannot_be_recorded_says_where() -> None:
    class Net(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = torch.nn.Linear(2, 2)

        def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
            return self.inner(input_ids.nonzero().float())

    with pytest.raises(planner.RecordingError) as caught:
        record(Net(), ["inner"], Workload(context_length=8))
    assert "nonzero" in caught.value.operator


def test_more_blocks_than_a_model_can_have_are_refused() -> None:
    """Where memory for what is told of each would not be there, the process would end."""
    columns = type(Tape((), ()).run.columns)
    with pytest.raises(ValueError, match="a recording of 4294967295 blocks: a model has at most 30000000"):
        columns([], blocks=2**32 - 1, enclosing=[], carried=[])

"""Six recordings tell of all others, in five families; a family with other operators at other lengths is noticed."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import planner
from planner.errors import InvalidInputError
from planner.memory.polynomials import Polynomials, fitted
from planner.memory.recording.session import RecordedRun, record_run
from planner.memory.replay import RunPlacement, replay
from planner.memory.tape import Tape
from planner.memory.vectors import demands_of
from planner.planning.guessing import Guess
from planner.planning.problem import Problem
from tiny_families import family

# One row runs other operators: what is expanded need not be copied. Windows of 16 tokens are full.
POINTS = [(2, 64), (2, 128), (2, 192), (3, 64), (3, 128), (3, 192)]
OTHERS = [(2, 72), (3, 320), (5, 4096), (2, 32768), (4, 131072)]
# Dense; with windows; with experts; with latent caches; with all of these but the last.
NAMES = ["llama", "gemma3", "qwen3_moe", "deepseek_v3", "gpt_oss"]


def blocks_of(model: Any) -> list[str]:
    return list(planner.plan(model, max_memory={0: "1TiB"}, headroom=None).block_bytes)


def taped(model: Any, blocks: list[str], rows: int, tokens: int) -> Tape:
    inputs = {"input_ids": ((rows, tokens), torch.long)}
    run = RecordedRun(inputs=inputs, options={"use_cache": True}, steps=1, attention_kernel="fused")
    return record_run(model, blocks, run)


@pytest.mark.parametrize("name", NAMES)
def test_five_other_points_are_told_without_an_error(name: str) -> None:
    model = family(name, in_half=True)
    blocks = blocks_of(model)
    polynomials = fitted(POINTS, [taped(model, blocks, *point) for point in POINTS])
    assert polynomials is not None
    for point in OTHERS:
        assert polynomials.at(*point) == taped(model, blocks, *point)


def lengths(name: str, values: tuple[int, ...]) -> tuple[Any, list[str], Polynomials | None]:
    model = family(name, 4)  # the fourth of Qwen3-Next attends
    blocks = blocks_of(model)
    points = [(1, value) for value in values]
    return model, blocks, fitted(points, [taped(model, blocks, *point) for point in points])


def test_other_lengths_of_the_same_rows_take_three() -> None:
    model, blocks, polynomials = lengths("llama", (64, 128, 512))
    assert polynomials is not None
    assert polynomials.at(1, 2048) == taped(model, blocks, 1, 2048)
    with pytest.raises(InvalidInputError, match="tell nothing"):
        polynomials.at(2, 2048)


def test_chunks_of_linear_attention_are_noticed() -> None:
    assert lengths("qwen3_next", (64, 128, 192))[2] is None


def test_largest_records_where_operators_differ() -> None:
    model = family("qwen3_next", 4)
    workload = {"context_length": 200, "allocator_margin": 0}
    problem = Problem.of(model, None, {"max_memory": {0: 1 << 22}, "workload": workload}, None)
    assert Guess(problem, "context_length", has_prompt=False).between(1, 200) is None


def test_what_is_read_of_a_fit_is_what_its_tape_tells() -> None:
    _, blocks, polynomials = lengths("gemma3", (64, 128, 512))
    assert polynomials is not None
    fit = polynomials.run()
    execution: dict[str, Any] = {name: at % 2 for at, name in enumerate(blocks)}
    placement = RunPlacement(execution=execution, main_device=1, offloaded_bytes={blocks[1]: 70})
    for tokens in (65, 100, 3000, 9000):
        run, tape = fit.at((1, tokens)), polynomials.at(1, tokens)
        assert demands_of([run], main_needs_bytes=40) == demands_of([tape], main_needs_bytes=40)
        assert replay(run, placement) == replay(tape, placement)
        assert run.columns.phases() == list(tape.phases)

"""What `workload.inputs` may say: for plain modules, wrappers, and in the place of words."""

from __future__ import annotations

from typing import Any

import numpy
import pytest
import torch
from torch import nn

import planner
from planner import InvalidConfigError, InvalidInputError
from tiny_models import built

ROOM: dict[Any, int] = {0: 1 << 26}


def planned(model: nn.Module, **workload: Any) -> planner.Plan:
    wanted: Any = {"context_length": 16, "allocator_margin": 0, **workload}
    return planner.plan(model, max_memory=ROOM, workload=wanted)


def known(plan: planner.Plan) -> str:
    assert plan.demands is not None
    return plan.demands.method


class Plain(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(8, 8, bias=False)

    def forward(self, x: torch.Tensor, scale: float = 1.0) -> torch.Tensor:
        made: torch.Tensor = self.fc(x) * scale
        return made


class Wrapper(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.inner(*args, **kwargs)


def test_a_plain_module_is_recorded_with_its_inputs() -> None:
    plan = planned(Plain(), inputs={"x": ["batch", "context", 8]})
    assert known(plan) == "recorded"
    assert plan.devices[0].cache_bytes == 0
    # Its input, what the layer makes of it, and that scaled.
    assert plan.predicted_peaks["prefill"][0] == 8 * 8 * 4 + 3 * 16 * 8 * 4


def test_an_argument_that_nothing_tells_is_named() -> None:
    with pytest.raises(InvalidInputError, match="nothing tells the shape of 'x', which the forward of Plain"):
        planned(Plain(), inputs={"scale": [1]})


@pytest.mark.parametrize("inputs", [{}, {"input_ids": ["batch", "context"]}])
def test_a_wrapper_hands_on_what_it_gets(inputs: dict[str, Any]) -> None:
    model = built("llama")
    plan, whole = planned(Wrapper(model), inputs=inputs), planned(model)
    assert known(plan) == "recorded"
    assert plan.devices[0].cache_bytes == whole.devices[0].cache_bytes


def test_embeddings_in_the_place_of_words() -> None:
    model = built("llama")
    given, words = planned(model, inputs={"inputs_embeds": ["batch", "context", 32]}), planned(model)
    assert known(given) == "recorded"
    assert given.devices[0].cache_bytes == words.devices[0].cache_bytes


def test_arguments_of_any_name_are_not_an_argument() -> None:
    with pytest.raises(InvalidInputError, match="names 'kwargs', which the forward of LlamaForCausalLM does"):
        planned(built("llama"), inputs={"kwargs": [1]})


@pytest.mark.parametrize("length", [numpy.array([1, 2]), torch.zeros(2)], ids=["array", "tensor"])
def test_lengths_that_are_none_say_what_is_expected(length: Any) -> None:
    with pytest.raises(InvalidConfigError, match="expected an int of at least 1, 'batch' or 'context'"):
        planned(built("llama"), inputs={"input_ids": [length]})


def test_formulas_say_what_they_do_not_count() -> None:
    model: Any = built("llava")
    planner.dispatch(model, planner.plan(model, max_memory={"cpu": "1GiB"}))  # so that it is not recorded
    plan = planned(model, inputs={"pixel_values": ["batch", 3, 8, 8], "input_ids": ["batch", 9]})
    assert known(plan) == "formula"
    assert "what the model makes of 'pixel_values' is not counted" in plan.summary()


def test_what_was_compiled_is_not_compiled_again() -> None:
    plan = planned(torch.compile(built("llama")))  # type: ignore[arg-type]
    assert known(plan) == "formula"
    assert "compile it afterwards" in plan.summary()


@pytest.mark.parametrize("margin", [(1 << 53) - 1, 1 << 53, 1 << 70])
def test_a_margin_that_cannot_be_added_up(margin: int) -> None:
    with pytest.raises(InvalidInputError, match=r"allocator_margin.*add up less than"):
        planned(built("llama"), allocator_margin=margin)


class Biased(nn.Module):
    """A decoder that does not go without a second argument, in any forward."""

    def __init__(self) -> None:
        super().__init__()
        self.inner: Any = built("llama")
        self.config = self.inner.config

    def forward(self, input_ids: torch.Tensor, extra: torch.Tensor, **others: Any) -> Any:
        found = self.inner.model.embed_tokens(input_ids) + extra
        return self.inner(inputs_embeds=found, **others)


@pytest.mark.parametrize("extra", [["batch", "context", 32], ["batch", 1, 32]])
def test_steps_get_what_no_forward_goes_without(extra: list[Any]) -> None:
    """For each token, or the same for all."""
    model = Biased()
    said = {"inputs": {"extra": extra}, "attention_kernel": "math"}
    plan = planned(model, prompt_length=8, **said)
    assert known(plan) == "recorded", plan.demands
    assert set(plan.predicted_peaks) == {"prefill", "decode"}
    assert plan.devices[0].cache_bytes == planned(model.inner).devices[0].cache_bytes
    found = planner.verify(model, plan)
    assert found.runs
    assert found.peaks and all(row.found_bytes == row.predicted_bytes for row in found.peaks), str(found)


def test_a_plain_module_is_verified_with_the_shapes_of_its_workload() -> None:
    model = Plain()
    found = planner.verify(model, planned(model, inputs={"x": ["batch", "context", 8]}))
    assert found.runs
    assert [row.off for row in found.peaks] == [0.0]
    with pytest.raises(InvalidInputError, match="nothing tells what a Plain takes"):
        planner.verify(model, {"": 0})


class Exhausted(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(8, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        raise MemoryError("no memory is left")


def test_a_machine_without_memory_is_no_model_that_cannot_be_recorded() -> None:
    with pytest.raises(MemoryError, match="no memory is left"):
        planned(Exhausted(), inputs={"x": ["batch", "context", 8]})

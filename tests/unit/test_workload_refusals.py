"""What a workload cannot be planned for is refused with a typed error that says what would help, before anything is planned."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn
from transformers import BertConfig, BertModel, XLNetConfig, XLNetLMHeadModel

import planner
from planner import InvalidConfigError, InvalidConstraintError, InvalidInputError, UnknownMemoryError
from planner.model.tree import ModuleTree
from tiny_models import built

WORK = {"context_length": 16, "allocator_margin": 0}
ROOM: dict[Any, int] = {0: 1 << 26}


def planned(source: Any, **workload: Any) -> planner.Plan:
    return planner.plan(source, max_memory=ROOM, headroom=None, workload={**WORK, **workload})


class Chosen(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(8, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        made: torch.Tensor = self.fc(x[x.sum(-1) > 0])
        return made


class Branching(nn.Module):
    """Has a configuration of a kind that nobody knows, and counts what its weights say."""

    def __init__(self) -> None:
        super().__init__()
        self.config = SimpleNamespace(
            model_type="spiral", to_dict=lambda: {"model_type": "spiral", "hidden_size": 8}
        )
        self.layers = nn.ModuleList([nn.Linear(8, 8), Chosen()])

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        x = input_ids[..., None].float().expand(*input_ids.shape, 8)
        x = self.layers[0](x)
        return self.layers[1](x)


@pytest.mark.parametrize("strategy", ["sequential", "balanced", "balanced_low_0"])
def test_strategies_that_know_no_workload(strategy: Any) -> None:
    with pytest.raises(InvalidConstraintError, match="needs strategy 'auto'"):
        planner.plan(built("llama"), max_memory=ROOM, workload=WORK, strategy=strategy)


def test_a_tree_without_a_configuration() -> None:
    with pytest.raises(InvalidInputError, match=r"has no configuration.*plan the model itself"):
        planned(ModuleTree.from_module(built("llama")))


def test_a_class_that_is_neither_recorded_nor_computed_names_block_and_operator() -> None:
    with pytest.raises(
        UnknownMemoryError, match=r"spiral.*; and a forward of Branching cannot be recorded"
    ) as told:
        planned(Branching())
    assert "after aten.index.Tensor" in str(told.value)
    assert "'layers.1'" in str(told.value)
    assert told.value.model_type == "spiral"


def test_a_static_cache_of_a_class_that_has_none() -> None:
    config = XLNetConfig(vocab_size=64, d_model=32, n_layer=2, n_head=4, d_inner=48)
    with pytest.raises(InvalidInputError, match=r"cache='static' does not exist .*; cache='dynamic' does"):
        planned(XLNetLMHeadModel(config), cache="static")


def test_inputs_that_forward_does_not_take() -> None:
    with pytest.raises(
        InvalidInputError, match=r"names 'pixels', which the forward of LlamaForCausalLM does"
    ):
        planned(built("llama"), inputs={"pixels": ("batch", 3)})


@pytest.mark.parametrize(
    "wrong",
    [
        {"context_length": 0},
        {"context_length": -4},
        {"context_length": 2.0},
        {"context_length": True},
        {"batch_size": 0},
        {"batch_size": "2"},
        {"num_beams": 0},
        {"encoder_length": 0},
        {"prompt_length": 0},
        {"prompt_length": 17},
        {"cache": "paged"},
        {"training": True},
    ],
    ids=str,
)
def test_counts_that_are_none(wrong: dict[str, Any]) -> None:
    (name,) = wrong
    with pytest.raises(InvalidConfigError) as told:
        planned(built("llama"), **wrong)
    assert any(
        f"workload.{name}" in str(problem) or "prompt" in str(problem) for problem in told.value.problems
    )


def test_a_context_beyond_the_models_own_is_a_notice() -> None:
    plan = planned(built("llama"), context_length=4096)
    assert plan.demands is not None
    assert "a context of 4096 tokens is beyond the 2048" in plan.demands.words


def test_an_encoder_keeps_nothing() -> None:
    config = BertConfig(
        vocab_size=64, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48
    )
    plan = planned(BertModel(config))
    assert plan.devices[0].cache_bytes == 0
    assert plan.devices[0].activation_bytes > 0

"""Which classes may run in stages: those whose stages compute what the whole does, tried on tiny models of them."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
import transformers as tf
from torch import nn

import planner
from planner.pipelines import comparing
from planner.pipelines.comparing import compare_stages, require_equal_stages
from planner.pipelines.known import KnownClasses
from planner.pipelines.layers import find_layers


def on_meta(cls: Any, **values: Any) -> Any:
    with torch.device("meta"):
        return cls(cls.config_class(**values))


def test_a_class_is_compared_at_its_own_configuration_made_tiny() -> None:
    model = on_meta(tf.LlamaForCausalLM, num_hidden_layers=40, hidden_size=4096, num_key_value_heads=8)
    roles = compare_stages(model, find_layers(model))
    assert roles.before == {"model.embed_tokens"}
    assert roles.after == {"model.norm", "lm_head"}
    assert not roles.between


def test_what_is_called_after_the_layers_is_seen_and_not_read_off_the_order_of_registration() -> None:
    model = on_meta(tf.OPTForCausalLM, num_hidden_layers=3, word_embed_proj_dim=512)
    names = [name for name, _ in model.model.decoder.named_children()]
    assert names.index("final_layer_norm") < names.index("layers")
    roles = compare_stages(model, find_layers(model))
    inside = {"embed_tokens", "embed_positions", "project_in"}
    assert roles.before == {f"model.decoder.{name}" for name in inside}
    assert roles.after == {"model.decoder.final_layer_norm", "model.decoder.project_out", "lm_head"}


class ResidualFromTheFirst(tf.LlamaModel):
    """Whose last layer adds what entered the first."""

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        layers: Any = self.layers
        layers[0].register_forward_pre_hook(self.remember)
        layers[-1].register_forward_hook(self.add)

    def remember(self, _layer: nn.Module, args: Any) -> None:
        self.entered = args[0]

    def add(self, _layer: nn.Module, _args: Any, made: Any) -> Any:
        entered = getattr(self, "entered", None)
        return made if entered is None else made + entered


class Remembering(tf.LlamaForCausalLM):
    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.model = ResidualFromTheFirst(config)
        self.post_init()


def test_a_class_whose_stages_compute_something_else_is_refused_with_the_cut_and_the_difference() -> None:
    model = on_meta(Remembering, num_hidden_layers=4)
    with pytest.raises(
        planner.PipelineError, match=r"Remembering .* 1 \+ 3 \+ 2 layers .* other logits"
    ) as caught:
        require_equal_stages(model, find_layers(model))
    assert "planner.dispatch" in caught.value.message


@pytest.mark.parametrize(
    ("cls", "said"),
    [
        (
            tf.Gemma3ForConditionalGeneration,
            "'model.vision_tower.encoder.layers' of .*'model.language_model.layers' of",
        ),
        (tf.T5ForConditionalGeneration, "an encoder and a decoder"),
        (tf.LlamaForSequenceClassification, "no head that gives the next token"),
        (tf.LlamaModel, "no head that gives the next token"),
        (tf.XLMWithLMHeadModel, "'transformer.attentions' of 12"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_what_has_no_one_list_of_layers_and_a_head_is_refused_by_what_was_found(cls: Any, said: str) -> None:
    model = on_meta(cls)
    with pytest.raises(planner.InvalidTreeError, match=said):
        find_layers(model)


def test_a_tower_that_no_text_goes_through_is_refused() -> None:
    model = on_meta(tf.GotOcr2ForConditionalGeneration)
    with pytest.raises(planner.PipelineError, match=re.escape("'model.vision_tower' is a model of its own")):
        require_equal_stages(model, find_layers(model))


def test_classes_that_have_passed_are_not_compared_again(monkeypatch: pytest.MonkeyPatch) -> None:
    known = KnownClasses(tf.__version__, KnownClasses.shipped().roles)
    assert {"LlamaForCausalLM", "GPT2LMHeadModel", "OPTForCausalLM", "MambaForCausalLM"} <= known.roles.keys()
    monkeypatch.setattr(KnownClasses, "shipped", lambda: known)
    monkeypatch.setattr(comparing, "compare_stages", lambda *_: pytest.fail("it was compared"))
    model = on_meta(tf.LlamaForCausalLM, num_hidden_layers=2)
    assert require_equal_stages(model, find_layers(model)) == known.roles["LlamaForCausalLM"]


def test_a_list_of_another_version_counts_for_nothing() -> None:
    model = on_meta(tf.LlamaForCausalLM, num_hidden_layers=2)
    roles = KnownClasses.shipped().roles
    assert KnownClasses(tf.__version__, roles).roles_of(model) is not None
    assert KnownClasses("5.22.0", roles).roles_of(model) is None


def test_what_a_class_has_besides_is_compared() -> None:
    """The table was written for a configuration without the projections."""
    model = on_meta(tf.OPTForCausalLM, num_hidden_layers=2, word_embed_proj_dim=512)
    assert "model.decoder.project_in" in require_equal_stages(model, find_layers(model)).before


def test_comparing_leaves_torchs_random_numbers_as_they_were() -> None:
    model = on_meta(tf.GPT2LMHeadModel, n_layer=3)
    before = torch.random.get_rng_state()
    compare_stages(model, find_layers(model))
    assert torch.equal(torch.random.get_rng_state(), before)


@pytest.mark.parametrize("cls", [tf.Gemma3nForCausalLM, tf.Gemma4UnifiedForCausalLM])
def test_layers_that_read_the_caches_of_others_are_refused(cls: Any) -> None:
    """Of the second class as its configuration is by default, nothing is shared, and it has passed."""
    model = on_meta(cls, num_kv_shared_layers=10)
    with pytest.raises(planner.PipelineError, match="10 of its layers read the caches of others"):
        require_equal_stages(model, find_layers(model))


def test_comparing_goes_by_no_default_of_torch() -> None:
    model = on_meta(tf.GPT2LMHeadModel, n_layer=3)
    layers = find_layers(model)
    wanted = compare_stages(model, layers)
    torch.set_default_dtype(torch.bfloat16)
    try:
        with torch.device("meta"), torch.inference_mode():
            assert compare_stages(model, layers) == wanted
    finally:
        torch.set_default_dtype(torch.float32)

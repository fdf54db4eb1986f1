"""Real model classes over two virtual accelerators and the CPU, by accelerate's dispatch, equal one accelerator's answer.

This is what the rig must be good for; our own dispatch is held to the same in tests of its own.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from accelerate import dispatch_model
from torch import nn
from transformers import (
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
)

WORDS = 64
LAYERS = 4
SIZES = {
    "vocab_size": WORDS,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
SPECIAL = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}


def llama() -> nn.Module:
    return LlamaForCausalLM(LlamaConfig(**SIZES, **SPECIAL))


def mixtral() -> nn.Module:
    model = MixtralForCausalLM(MixtralConfig(**SIZES, **SPECIAL, num_local_experts=4))
    model.set_experts_implementation(
        "eager"
    )  # the default needs an operator that only real accelerators have
    return model


def gemma() -> nn.Module:
    return Gemma3ForCausalLM(Gemma3TextConfig(**SIZES, **SPECIAL, head_dim=8, sliding_window=4))


def gpt2() -> nn.Module:
    sizes = {"n_embd": 32, "n_layer": LAYERS, "n_head": 4, "n_positions": 32}
    return GPT2LMHeadModel(GPT2Config(vocab_size=WORDS, **sizes, **SPECIAL))


def t5() -> nn.Module:
    sizes = {"d_model": 32, "d_ff": 48, "d_kv": 8, "num_layers": LAYERS, "num_heads": 4}
    return T5ForConditionalGeneration(
        T5Config(vocab_size=WORDS, **sizes, pad_token_id=0, eos_token_id=1, decoder_start_token_id=0)
    )


# What surrounds the layers, and the layers themselves. Tied heads stay with the embeddings.
DECODER = (["model.embed_tokens", "model.rotary_emb", "model.norm", "lm_head"], ["model.layers"])
MODELS: dict[str, tuple[Callable[[], nn.Module], tuple[list[str], list[str]]]] = {
    "llama": (llama, DECODER),
    "mixtral": (mixtral, DECODER),
    "gemma": (gemma, DECODER),
    "gpt2": (
        gpt2,
        (["transformer.wte", "transformer.wpe", "transformer.ln_f", "lm_head"], ["transformer.h"]),
    ),
    "t5": (
        t5,
        (
            [
                "shared",
                "encoder.embed_tokens",
                "encoder.final_layer_norm",
                "decoder.embed_tokens",
                "decoder.final_layer_norm",
                "lm_head",
            ],
            ["encoder.block", "decoder.block"],
        ),
    ),
}
OVER_DEVICES = (0, 1, 1, 0)
OFFLOADED = (0, "cpu", 1, "cpu")


def device_map(outer: list[str], lists: list[str], layers: tuple[int | str, ...]) -> dict[str, int | str]:
    """Each layer where `layers` says, everything else on the first device."""
    placed: dict[str, int | str] = dict.fromkeys(outer, 0)
    placed.update({f"{name}.{number}": device for name in lists for number, device in enumerate(layers)})
    return placed


def built(name: str) -> nn.Module:
    torch.manual_seed(0)
    return MODELS[name][0]().eval()


def inputs(name: str) -> dict[str, torch.Tensor]:
    ids = torch.arange(3, 13)[None].to(0)
    return {"input_ids": ids, "decoder_input_ids": ids[:, :4]} if name == "t5" else {"input_ids": ids}


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Small models are faster so, and a busy machine cannot change the order of sums."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("layers", [OVER_DEVICES, OFFLOADED], ids=["two_devices", "offloaded"])
@pytest.mark.parametrize("name", MODELS)
@torch.no_grad()
def test_answers_are_equal_bit_for_bit(name: str, layers: tuple[int | str, ...]) -> None:
    plain = built(name).to(0)
    spread = dispatch_model(
        built(name), device_map(*MODELS[name][1], layers), skip_keys=plain._skip_keys_device_placement
    )
    devices = {parameter.device for parameter in spread.parameters()}
    assert devices == {torch.device(0), torch.device(1)} | (
        {torch.device("meta")} if "cpu" in layers else set()
    )
    expected, found = plain(**inputs(name)).logits, spread(**inputs(name)).logits
    assert found.device == expected.device and found.equal(expected)
    options: dict[str, Any] = {"max_new_tokens": 5, "do_sample": False, "use_cache": True}
    prompt = inputs(name)["input_ids"]
    assert spread.generate(prompt, **options).equal(plain.generate(prompt, **options))


@pytest.mark.parametrize("name", MODELS)
def test_gradients_are_equal(name: str) -> None:
    """Bit for bit, but for T5: each device has a thread of its own, so the order of sums of more than two is open."""
    plain = built(name).to(0)
    spread = dispatch_model(
        built(name), device_map(*MODELS[name][1], OVER_DEVICES), skip_keys=plain._skip_keys_device_placement
    )
    for model in (plain, spread):
        model(**inputs(name)).logits.square().mean().backward()
    expected, found = dict(plain.named_parameters()), dict(spread.named_parameters())
    assert expected.keys() == found.keys()
    assert {parameter.grad.device.index for parameter in found.values()} == {0, 1}
    tolerance = 1e-5 if name == "t5" else 0.0
    for key, parameter in expected.items():
        torch.testing.assert_close(
            found[key].grad.cpu(), parameter.grad.cpu(), rtol=tolerance, atol=tolerance * 1e-2, msg=key
        )


def test_traffic_and_peaks_of_an_offloaded_model(virtual_accelerators: Any) -> None:
    """Each forward fetches each offloaded layer once, and keeps none."""
    model = built("llama")
    layer_bytes = sum(p.nbytes for p in model.model.layers[1].parameters())
    spread = dispatch_model(copy.deepcopy(model), device_map(*DECODER, OFFLOADED))
    ids = inputs("llama")["input_ids"]
    used_bytes = [virtual_accelerators.used_bytes(index) for index in (0, 1)]
    virtual_accelerators.reset()
    with torch.no_grad():
        spread(ids, use_cache=False)
    assert [virtual_accelerators.used_bytes(index) for index in (0, 1)] == used_bytes
    assert 2 * layer_bytes <= virtual_accelerators.traffic().to_device_bytes < 2 * layer_bytes + 4096

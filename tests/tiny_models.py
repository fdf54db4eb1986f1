"""Real transformers classes, a few thousand parameters each, for tests that run them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import (
    CLIPVisionConfig,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    LlavaConfig,
    LlavaForConditionalGeneration,
    MixtralConfig,
    MixtralForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
)

__all__ = ["TINY", "Tiny", "built", "mapped"]

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


@dataclass(frozen=True)
class Tiny:
    """A model class: how it is made, what surrounds its layers, and the lists of layers."""

    make: Callable[[], nn.Module]
    outer: tuple[str, ...]
    lists: tuple[str, ...]

    def inputs(self, device: Any) -> dict[str, torch.Tensor]:
        """Arguments of a forward."""
        ids = torch.arange(3, 13)[None]
        given = {"input_ids": ids}
        if self.make is t5:
            given["decoder_input_ids"] = ids[:, :4]
        if self.make is llava:
            given["input_ids"] = torch.cat([torch.full((1, 4), WORDS - 1), ids], dim=1)
            given["pixel_values"] = torch.linspace(0, 1, 3 * 8 * 8).reshape(1, 3, 8, 8)
        return {name: tensor.to(device) for name, tensor in given.items()}


def llama() -> nn.Module:
    return LlamaForCausalLM(LlamaConfig(**SIZES, **SPECIAL))


def mixtral() -> nn.Module:
    return MixtralForCausalLM(MixtralConfig(**SIZES, **SPECIAL, num_local_experts=4))


def mixtral_eager() -> nn.Module:
    model: Any = mixtral()
    model.set_experts_implementation("eager")
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


def llava() -> nn.Module:
    """A picture of four patches before the words; its token is the last word."""
    eyes = CLIPVisionConfig(
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=LAYERS,
        num_attention_heads=2,
        image_size=8,
        patch_size=4,
    )
    return LlavaForConditionalGeneration(
        LlavaConfig(
            vision_config=eyes,
            text_config=LlamaConfig(**SIZES, **SPECIAL),
            image_token_index=WORDS - 1,
            vision_feature_select_strategy="default",
            vision_feature_layer=-1,
        )
    )


# Tied heads stay with the embeddings.
DECODER = ("model.embed_tokens", "model.rotary_emb", "model.norm", "lm_head")
TINY: dict[str, Tiny] = {
    "llama": Tiny(llama, DECODER, ("model.layers",)),
    "mixtral": Tiny(mixtral, DECODER, ("model.layers",)),
    "mixtral_eager": Tiny(mixtral_eager, DECODER, ("model.layers",)),
    "gemma": Tiny(gemma, DECODER, ("model.layers",)),
    "gpt2": Tiny(
        gpt2, ("transformer.wte", "transformer.wpe", "transformer.ln_f", "lm_head"), ("transformer.h",)
    ),
    "t5": Tiny(
        t5,
        (
            "shared",
            "encoder.embed_tokens",
            "encoder.final_layer_norm",
            "decoder.embed_tokens",
            "decoder.final_layer_norm",
            "lm_head",
        ),
        ("encoder.block", "decoder.block"),
    ),
    "llava": Tiny(
        llava,
        (
            "model.vision_tower.embeddings",
            "model.vision_tower.pre_layrnorm",
            "model.vision_tower.post_layernorm",
            "model.multi_modal_projector",
            "model.language_model.embed_tokens",
            "model.language_model.rotary_emb",
            "model.language_model.norm",
            "lm_head",
        ),
        ("model.vision_tower.encoder.layers", "model.language_model.layers"),
    ),
}


def built(name: str, **config: Any) -> nn.Module:
    """The same weights each time, ready for inference."""
    torch.manual_seed(0)
    model = TINY[name].make().eval()
    for key, value in config.items():
        setattr(model.config, key, value)
    return model


def mapped(name: str, layers: tuple[int | str, ...], outer: int | str = 0) -> dict[str, int | str]:
    """Each layer where `layers` says, everything else together."""
    tiny = TINY[name]
    placed: dict[str, int | str] = dict.fromkeys(tiny.outer, outer)
    placed.update({f"{path}.{number}": device for path in tiny.lists for number, device in enumerate(layers)})
    return placed

"""Small models of real classes, with inputs and device maps, for tests of dispatching."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import transformers
from torch import nn

__all__ = ["LAYERS", "SMALL_MODELS", "Device", "SmallModel"]

Device = int | str

WORDS = 64
LAYERS = 4
IMAGE_WORD = WORDS - 1
SIZES = {
    "vocab_size": WORDS,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
}
SPECIAL = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
DECODER = {**SIZES, **SPECIAL, "num_key_value_heads": 2}


@dataclass(frozen=True, slots=True)
class SmallModel:
    """A class of models, small.

    Args:
        make: makes one, with random weights.
        outer: names of the modules around the layers.
        layers: names of the lists that have `LAYERS` layers each.
    """

    make: Callable[[], nn.Module]
    outer: tuple[str, ...]
    layers: tuple[str, ...]

    def build(self) -> nn.Module:
        """On the CPU, in evaluation mode, always with the same weights; the state of the generator stays as it is."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return self.make().eval()

    def inputs(self, device: Device) -> dict[str, torch.Tensor]:
        """Keyword arguments of forward."""
        ids = torch.arange(3, 13)[None]
        found = {"input_ids": ids}
        if "encoder.block" in self.layers:
            found["decoder_input_ids"] = ids[:, :4]
        if any("vision" in name for name in self.outer):
            ids[:, 1:5] = IMAGE_WORD  # one for each patch
            found["pixel_values"] = torch.linspace(-1, 1, 3 * 8 * 8).view(1, 3, 8, 8)
        return {name: tensor.to(device) for name, tensor in found.items()}

    def device_map(self, layers: tuple[Device, ...], outer: Device = 0) -> dict[str, Device]:
        """Each layer where `layers` says, what is around them on one device."""
        placed: dict[str, Device] = dict.fromkeys(self.outer, outer)
        for name in self.layers:
            placed.update({f"{name}.{number}": device for number, device in enumerate(layers)})
        return placed


def llama() -> nn.Module:
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**DECODER))


def mixtral() -> nn.Module:
    return transformers.MixtralForCausalLM(transformers.MixtralConfig(**DECODER, num_local_experts=4))


def mixtral_eager() -> nn.Module:
    model = mixtral()
    model.set_experts_implementation("eager")
    return model


def gemma() -> nn.Module:
    config = transformers.Gemma3TextConfig(**DECODER, head_dim=8, sliding_window=4)
    return transformers.Gemma3ForCausalLM(config)


def gpt2() -> nn.Module:
    sizes = {"vocab_size": WORDS, "n_embd": 32, "n_layer": LAYERS, "n_head": 4, "n_positions": 32}
    return transformers.GPT2LMHeadModel(transformers.GPT2Config(**sizes, **SPECIAL))


def t5() -> nn.Module:
    sizes = {"vocab_size": WORDS, "d_model": 32, "d_ff": 48, "d_kv": 8, "num_layers": LAYERS, "num_heads": 4}
    special = {"pad_token_id": 0, "eos_token_id": 1, "decoder_start_token_id": 0}
    return transformers.T5ForConditionalGeneration(transformers.T5Config(**sizes, **special))


def llava() -> nn.Module:
    """A vision tower with a convolution, a projector, and a Llama."""
    vision = transformers.CLIPVisionConfig(**{**SIZES, "num_hidden_layers": 2}, image_size=8, patch_size=4)
    config = transformers.LlavaConfig(
        vision_config=vision,
        text_config=transformers.LlamaConfig(**DECODER),
        image_token_id=IMAGE_WORD,
        vision_feature_layer=-1,
    )
    return transformers.LlavaForConditionalGeneration(config)


def decoder(make: Callable[[], nn.Module], inside: str = "model", *beside: str) -> SmallModel:
    """A model whose decoder is called as Llama's."""
    outer = tuple(f"{inside}.{name}" for name in ("embed_tokens", "rotary_emb", "norm"))
    return SmallModel(make, (*beside, *outer, "lm_head"), (f"{inside}.layers",))


# Tied heads stay with the embeddings, for both are around the layers.
SMALL_MODELS: dict[str, SmallModel] = {
    "llama": decoder(llama),
    "mixtral": decoder(mixtral),
    "mixtral_eager": decoder(mixtral_eager),
    "gemma": decoder(gemma),
    "gpt2": SmallModel(
        gpt2,
        ("transformer.wte", "transformer.wpe", "transformer.ln_f", "lm_head"),
        ("transformer.h",),
    ),
    "t5": SmallModel(
        t5,
        (
            "shared",
            *(
                f"{part}.{name}"
                for part in ("encoder", "decoder")
                for name in ("embed_tokens", "final_layer_norm")
            ),
            "lm_head",
        ),
        ("encoder.block", "decoder.block"),
    ),
    "llava": decoder(llava, "model.language_model", "model.vision_tower", "model.multi_modal_projector"),
}

"""Transformers classes small enough to run: default configs shrunk by the names of their fields, random weights, inputs.

    python benches/tiny_zoo.py BertModel        # its config, its inputs, and how it was shrunk

Nothing here is made for one class: a field is shrunk by what its name says, and what a class still refuses is tried with
less shrinking. Inputs follow the signature of ``forward``; the first that the class accepts are taken.
"""

from __future__ import annotations

import inspect
import math
import re
import sys
from collections.abc import Iterator
from typing import Any

import torch
import transformers
from torch import nn
from transformers.models.auto import modeling_auto

import model_zoo

__all__ = ["NotRunnableError", "build", "inputs", "names"]

WORDS, TOKENS, WIDTH, HEADS, LAYERS = 128, 10, 64, 4, 3
MOST_PARAMETERS = 60_000_000
# Heads that are taken first, where an architecture has several.
HEADS_FIRST = [*model_zoo.KINDS.values(), "MODEL_FOR_SPEECH_SEQ_2_SEQ_MAPPING_NAMES"]
# By the name of a field: the value that it gets if it is larger. The first rule that matches counts.
RULES: tuple[tuple[str, int], ...] = (
    (r"vocab_size$|^n_words$", WORDS),
    (r"(^|_)(layers?|n_layer|depth|blocks|num_hidden_groups)$", LAYERS),
    (r"(experts_per_tok|experts_per_token|topk?|top_k|k_routed|num_selects?|moe_k)$", 2),
    (r"^(n_group|topk_group|num_expert_group)$", 1),
    (r"experts$|num_experts$", 4),
    (r"(key_value|kv)_heads$", 2),
    (r"(heads?|n_head)$", HEADS),
    (r"(d_head|mamba_head_dim)$", 2 * WIDTH // HEADS),
    (r"(head_dim|d_kv|head_size|rotary_dim|kv_channels)$|_rank$", WIDTH // HEADS),
    (r"(intermediate|ffn|ff|inner|mlp|feedforward|feed_forward)(_hidden)?(_dim|_size)?$|^d_ff$", 2 * WIDTH),
    (r"(hidden_size|hidden_dim|d_model|n_embd|embed_dim|embedding_size|model_dim|projection_dim|^dim|width)$", WIDTH),
)  # fmt: skip
FEW = re.compile("|".join(pattern for pattern, size in RULES[:5]))


class NotRunnableError(Exception):
    """A class that cannot be built, or does not run, with why."""


def names() -> list[str]:
    """For each architecture its base class and one class with a head, each once."""
    tables = [name for name in vars(modeling_auto) if re.fullmatch(r"MODEL_FOR_.*_MAPPING_NAMES", name)]
    tables = [*HEADS_FIRST, *(name for name in tables if name not in HEADS_FIRST)]
    found: dict[str, None] = {}
    for architecture in vars(modeling_auto)["CONFIG_MAPPING_NAMES"]:
        chosen = [getattr(modeling_auto, table).get(architecture) for table in tables]
        for value in (modeling_auto.MODEL_MAPPING_NAMES.get(architecture), next(filter(None, chosen), None)):
            found.update(dict.fromkeys([value] if isinstance(value, str) else value or ()))
    return sorted(name for name in found if hasattr(transformers, name))


# ---- Configs


def shrunk(config_class: Any, given: dict[str, Any], level: int, ids: dict[int, int]) -> dict[str, Any]:
    """Arguments that make a small config. Level 0 shrinks all, 1 leaves the widths.

    Args:
        config_class: its class.
        given: arguments that it does not go without.
        level: how much is shrunk.
        ids: numbers of special words that were too large, and what they became; filled.
    """
    default = config_class(**given)
    chosen = dict(given)
    inside = getattr(config_class, "sub_configs", {})
    for key, parameter in inspect.signature(config_class.__init__).parameters.items():
        value = vars(default).get(key)
        if key in given or key in ("self", "kwargs"):
            continue
        if key in inside or hasattr(value, "to_dict"):
            if value is not None:
                chosen[key] = {"model_type": value.model_type, **shrunk(type(value), {}, level, ids)}
        elif level == 0 and isinstance(value, dict) and "mrope_section" in value:
            chosen[key] = {**value, "mrope_section": [2, 3, 3]}
        elif parameter.default is not None and type(value) in (int, list, tuple):
            small = _small(key, value, level, ids, vars(default).get("num_attention_heads"))
            if small != value:
                chosen[key] = small
    patch = getattr(default, "patch_size", None)
    if level == 0 and isinstance(getattr(default, "image_size", None), int):
        chosen["image_size"] = 2 * patch if isinstance(patch, int) and patch > 4 else 64
    return chosen


def _small(key: str, value: Any, level: int, ids: dict[int, int], heads: Any) -> Any:
    if isinstance(value, list | tuple):
        if key in ("depths", "num_layers") and all(isinstance(item, int) for item in value):
            return type(value)(min(item, 2) for item in value)
        return value
    if re.search(r"_(token_id|token_index|id)$", key) and value >= WORDS:
        return ids.setdefault(value, WORDS - 1 - len(ids))
    for pattern, size in RULES:
        if re.search(pattern, key):
            size = HEADS if size == 2 and value == heads else size  # as many for keys as for queries
            return min(value, size) if level == 0 or FEW.search(key) else value
    return value


def build(name: str, level: int) -> Any:
    """A model of this class with random weights, on the CPU, ready for inference. Raises whatever its class raises."""
    cls = getattr(transformers, name)
    config = cls.config_class(**shrunk(cls.config_class, dict(model_zoo.MISSING.get(name, {})), level, {}))
    with torch.device("meta"):
        count = sum(parameter.numel() for parameter in cls(config).parameters())
    if count > MOST_PARAMETERS:
        raise NotRunnableError(f"too large: {count} parameters")
    torch.manual_seed(0)
    model = cls(config).eval()
    if model._can_set_experts_implementation():
        model.set_experts_implementation("eager")  # the default needs an operator of real accelerators
    stir(model)
    return model


@torch.no_grad()
def stir(model: nn.Module) -> None:
    """No weight stays zero, one or uninitialised: else a gate would hide a wrong layer."""
    for tensor in model.parameters():
        if tensor.is_floating_point():
            torch.nan_to_num_(tensor, 0.0, 0.0, 0.0).clamp_(-2, 2).add_(torch.randn_like(tensor) * 0.02)


# ---- Inputs


def inputs(model: Any) -> Iterator[dict[str, torch.Tensor]]:
    """What the model may run with, the richest first. Several shapes where a name does not say which."""
    takes = inspect.signature(model.forward).parameters
    needed = {key for key, parameter in takes.items() if parameter.default is parameter.empty}
    main = model.main_input_name
    for variant in range(3):
        made = {key: value for key, value in _made(model, variant).items() if key in takes}
        yield made
        yield {key: value for key, value in made.items() if key in needed | {main, "decoder_input_ids"}}
    yield {key: value for key, value in made.items() if key in ("input_ids", "attention_mask")}
    try:
        yield {key: value for key, value in model.dummy_inputs.items() if key in takes}
    except Exception:
        return


def with_pictures(given: dict[str, torch.Tensor], model: Any, message: str) -> dict[str, torch.Tensor] | None:
    """The same with as many words for pictures as the model's complaint asks for; None if that is not what it says."""
    found = re.search(r"features.*?(\d+)", message.partition("tokens")[2]) or re.search(
        r"features.*?(\d+)", message
    )
    kind = "audio" if "udio" in message else "image"
    keys = (f"{kind}_token_id", f"{kind}_token_index")
    word = next((word for key in keys if (word := getattr(model.config, key, None)) is not None), None)
    if found is None or word is None or "input_ids" not in given:
        return None
    count = int(found[1])
    if count > 4096:
        return None
    ids = torch.cat([torch.full((1, count), word), torch.arange(3, 3 + TOKENS)[None]], dim=1)
    longer = {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "mm_token_type_ids": (ids == word).long(),
    }
    return {**given, **{key: value for key, value in longer.items() if key in given}}


def _made(model: Any, variant: int) -> dict[str, torch.Tensor]:
    config = model.config
    parts = [
        config,
        *(getattr(config, key) for key in config.sub_configs if getattr(config, key, None) is not None),
    ]

    def size(*keys: str, default: int) -> int:
        found = (getattr(part, key, None) for key in keys for part in parts)
        return next((value for value in found if type(value) is int and value > 0), default)

    def noise(*shape: int) -> torch.Tensor:
        return torch.linspace(-1, 1, math.prod(shape)).sin().reshape(shape)

    ids = torch.arange(3, 3 + TOKENS)[None]
    books = len(
        getattr(config, "delay_pattern", None) or ()
    )  # of Dia's sounds, whose words are of several numbers
    sides = next((s for part in parts if (s := getattr(part, "image_size", None))), 64)
    high, wide = sides[:2] if isinstance(sides, list | tuple) else (sides, sides)
    patch = size("patch_size", "spatial_patch_size", default=16)
    colours, frames = (
        size("num_channels", "in_channels", "in_chans", default=3),
        size("num_frames", default=2),
    )
    picture = [(1, colours, high, wide), (1, frames, colours, high, wide), (1, colours, 64, 64)][variant]
    if {"image_grid_thw", "grid_thw"} & set(inspect.signature(model.forward).parameters):
        picture = (16, colours * patch**2 * size("temporal_patch_size", default=1))
    mels = size(
        "num_mel_bins", "input_feat_per_channel", "num_mel_channels", "feature_size", "input_dim", default=80
    )
    length = 2 * size("max_source_positions", default=32)
    sound = [(1, mels, length), (1, 64, mels), (1, mels, 64)][variant]
    wave = [(1, 4000), (1, 1, 4000), (1, size("max_length", default=64), mels)][variant]
    context = size("context_length", default=32)
    history = context + max([0, *(getattr(config, "lags_sequence", None) or [])])
    return {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids) if "input_" in model.main_input_name else torch.ones(1, 64),
        "decoder_input_ids": ids[:, :4] if not books else ids[:, :4, None].expand(1, 4, books),
        "pixel_values": noise(*picture),
        "image_grid_thw": torch.tensor([[1, 4, 4]]),
        "grid_thw": torch.tensor([[1, 4, 4]]),
        "hidden_states": noise(*picture),
        "mm_token_type_ids": torch.zeros_like(ids),
        "input_features": noise(*sound),
        "input_values": noise(*wave),
        "bbox": torch.arange(4).expand(1, TOKENS, 4),
        "past_values": noise(1, history, *([size("num_input_channels", default=1)] if variant else [])),
        "past_time_features": noise(1, history, size("num_time_features", default=1)),
        "past_observed_mask": torch.ones(1, history),
    }  # fmt: skip


if __name__ == "__main__":
    transformers.logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    made = build(sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else 0)
    print(made.config, {key: tuple(value.shape) for key, value in next(inputs(made)).items()})
    print(sum(parameter.numel() for parameter in made.parameters()), "parameters")

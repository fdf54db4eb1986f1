"""Small models of transformers classes, run for a prompt and two steps, and the storage of the caches that they keep."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import transformers
from transformers.models.auto import modeling_auto

import model_zoo
import tiny_zoo
from planner.memory.cache_parts import Phase
from planner.memory.encoders import UNLESS_DECODERS

BATCH, PROMPT, STEPS, ENCODED = 2, 24, 2, 20
STATIC_TOKENS = 40
WINDOW, CHUNK = 16, 12
CACHE_KEYS = ("past_key_values", "cache_params", "state", "mems", "past_buckets_states")
# Beside the kinds that the other sweeps have.
MORE_KINDS = ("MODEL_FOR_SPEECH_SEQ_2_SEQ_MAPPING_NAMES", "MODEL_FOR_TEXT_TO_WAVEFORM_MAPPING_NAMES")


# What shrinking by name alone gets wrong, and what makes the first few layers have every kind that a class has.
GIVEN: dict[str, dict[str, Any]] = {
    "BltForCausalLM": {
        "encoder_hash_byte_group_vocab": 64,
        "encoder_hash_byte_group_size": [3],
        "patching_mode": "space",
    },
    "BambaForCausalLM": {
        "attn_layer_indices": [1],
        "mamba_n_heads": 4,
        "mamba_d_head": 32,
        "mamba_n_groups": 2,
        "hidden_size": 64,
    },
    "ChameleonForConditionalGeneration": {"vocabulary_map": {"<image>": 5}},
    "DbrxForCausalLM": {"attn_config": {"kv_n_heads": 2, "rope_theta": 10000.0, "clip_qkv": 8}},
    "DeepseekV2ForCausalLM": {"num_experts_per_tok": 2, "n_group": 1, "topk_group": 1},
    "Dots1ForCausalLM": {"n_routed_experts": 4, "n_shared_experts": 1, "num_experts_per_tok": 2},
    "FalconH1ForCausalLM": {"mamba_d_ssm": 128, "mamba_n_heads": 4, "mamba_d_head": 32, "mamba_n_groups": 2},
    "GPTNeoForCausalLM": {"num_layers": 4, "attention_types": [[["global", "local"], 2]]},
    "FlaubertWithLMHeadModel": {"emb_dim": 64, "n_heads": 4, "n_layers": 3},
    "Gemma3nForCausalLM": {
        "num_hidden_layers": 4,
        "num_kv_shared_layers": 2,
        "layer_types": ["sliding_attention", "full_attention", "sliding_attention", "full_attention"],
        "vocab_size_per_layer_input": 128,
        "hidden_size_per_layer_input": 16,
    },
    "Gemma4ForCausalLM": {
        "vocab_size_per_layer_input": 128,
        "hidden_size_per_layer_input": 16,
        "num_kv_shared_layers": 0,
        "global_head_dim": 32,
    },
    "Emu3ForConditionalGeneration": {"vocabulary_map": {"<image>": 5}},
    "Glm5NextForConditionalGeneration": {"text_config": {"index_topk": 64}},
    "GraniteMoeHybridForCausalLM": {
        "mamba_n_heads": 4,
        "mamba_d_head": 32,
        "mamba_n_groups": 2,
        "num_hidden_layers": 3,
        "layer_types": ["mamba", "attention", "mamba"],
        "hidden_size": 64,
    },
    "JambaForCausalLM": {"attn_layer_period": 2, "attn_layer_offset": 1},
    "Mamba2ForCausalLM": {"num_heads": 4, "head_dim": 32, "n_groups": 2, "hidden_size": 64},
    "NemotronForCausalLM": {"num_key_value_heads": 2},
    "NemotronHForCausalLM": {"n_groups": 2, "mamba_num_heads": 4, "mamba_head_dim": 32},
    "XmodForCausalLM": {"default_language": "en_XX", "is_decoder": True},
    "Qwen4ExpForCausalLM": {
        "indexer_n_heads": 4,
        "indexer_kv_heads": 1,
        "indexer_head_dim": 16,
        "indexer_budget": 32,
        "indexer_compress_ratio": 8,
        "ple_embed_dim": 64,
        "ngram_vocab_size_base": 64,
        "split_ngram_parts": 1,
    },
    "XLMWithLMHeadModel": {"emb_dim": 64, "n_heads": 4, "n_layers": 3},
    "Zamba2ForCausalLM": {
        "num_hidden_layers": 3,
        "layers_block_type": ["mamba", "hybrid", "mamba"],
        "mamba_ngroups": 2,
        "n_mamba_heads": 4,
        "mamba_headdim": 32,
    },
    "xLSTMForCausalLM": {
        "hidden_size": 64,
        "embedding_dim": 64,
        "num_heads": 4,
        "num_blocks": 3,
        "qk_dim_factor": 1.0,
    },
}
WHOLE = ("CpmAntForCausalLM",)  # take all words at each step


def names() -> list[str]:
    """Classes whose models are generated from, each once, sorted."""
    found = set(model_zoo.names())
    for table in MORE_KINDS:
        for value in getattr(modeling_auto, table).values():
            named = [value] if isinstance(value, str) else value
            known = (name for name in named if hasattr(transformers, name))
            found.update(name for name in known if getattr(transformers, name).can_generate())
    return sorted(found)


class NotMeasuredError(Exception):
    """A class whose cache cannot be had, with why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """What one cache held.

    Args:
        phase: after which forward: "prefill", or the first or second "decode".
        tokens: those that it has seen of each sequence; of a static one, those it is made for.
        storage_bytes: every storage once.
        looked_at_bytes: what its tensors show of that.
        encoder_tokens: those that an encoder has seen, or made of a picture.
    """

    phase: Phase
    tokens: int
    storage_bytes: int
    looked_at_bytes: int
    encoder_tokens: int


def tensors(value: Any, seen: set[int] | None = None) -> Iterator[torch.Tensor]:
    """Every tensor inside a cache, wherever it is kept."""
    seen = set() if seen is None else seen
    if id(value) in seen:
        return
    seen.add(id(value))
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from tensors(item, seen)
    elif isinstance(value, list | tuple | set):
        for item in value:
            yield from tensors(item, seen)
    elif hasattr(value, "__dict__") and not isinstance(value, type) and not hasattr(value, "model_type"):
        yield from tensors(vars(value), seen)


def storage_bytes(cache: Any) -> int:
    """Bytes of a cache's storages, each once."""
    return sum({t.untyped_storage()._cdata: t.untyped_storage().nbytes() for t in tensors(cache)}.values())


def looked_at_bytes(cache: Any) -> int:
    """Bytes of a cache's tensors, as they are looked at."""
    return sum(t.numel() * t.element_size() for t in tensors(cache))


def shorten_windows(config: Any, depth: int = 0) -> None:
    """Windows shorter than the prompt, here and in the configurations inside."""
    for key, value in list(vars(config).items()):
        if hasattr(value, "to_dict") and hasattr(value, "model_type") and depth < 4:
            shorten_windows(value, depth + 1)
        elif re.fullmatch(r"sliding_window(_size)?|window_size|attention_window_size", key):
            if type(value) is int and value > WINDOW:
                setattr(config, key, WINDOW)
        elif key == "attention_chunk_size" and type(value) is int:
            setattr(config, key, CHUNK)


def mix_layers(config: Any, depth: int = 0) -> None:
    """Layers of every kind that the class has by default, where the first few are not, here and inside."""
    for value in list(vars(config).values()):
        if hasattr(value, "to_dict") and hasattr(value, "model_type") and depth < 4:
            mix_layers(value, depth + 1)
    types = getattr(config, "layer_types", None)
    if isinstance(types, list) and types:
        kinds = list(dict.fromkeys(getattr(type(config)(), "layer_types", None) or ()))
        if set(kinds) - set(types):
            config.layer_types = [kinds[number % len(kinds)] for number in range(len(types))]


def given_for(name: str) -> dict[str, Any]:
    """Arguments that a class's configuration does not go without here."""
    is_told = getattr(transformers, name).config_class.model_type in UNLESS_DECODERS
    told = {"is_decoder": True} if is_told and not name.endswith("ForMaskedLM") else {}
    return {**told, **model_zoo.MISSING.get(name, {}), **GIVEN.get(name, {})}


def mend_sections(config: Any, depth: int = 0) -> None:
    """Sections of rotations that add up to the width of the shrunk heads, here and inside."""
    for value in list(vars(config).values()):
        if hasattr(value, "to_dict") and hasattr(value, "model_type") and depth < 4:
            mend_sections(value, depth + 1)
    ropes = getattr(config, "rope_parameters", None)
    heads = vars(config).get("num_attention_heads")
    if depth and isinstance(ropes, dict) and isinstance(heads, int) and "rope_theta" in ropes:
        width = getattr(config, "head_dim", None) or config.hidden_size // heads
        half = int(width * (ropes.get("partial_rotary_factor") or 1)) // 2
        ropes["mrope_section"] = [half - 2 * (half * 3 // 8), half * 3 // 8, half * 3 // 8]


def small_config(config_class: Any, given: dict[str, Any], level: int) -> Any:
    """A configuration shrunk by the names of its values, with these against that, here and inside."""
    inner = {key: value for key, value in given.items() if key in getattr(config_class, "sub_configs", {})}
    outer = {key: value for key, value in given.items() if key not in inner}
    small = tiny_zoo.shrunk(config_class, outer, level, {})
    return config_class(**{**small, **{key: {**small.get(key, {}), **value} for key, value in inner.items()}})


def build(name: str) -> Any:
    """A model of this class with random weights and short windows."""
    errors = []
    for level in (0, 1):
        try:
            cls = getattr(transformers, name)
            config = small_config(cls.config_class, given_for(name), level)
            shorten_windows(config)
            mix_layers(config)
            mend_sections(config)
            with torch.device("meta"):
                count = sum(parameter.numel() for parameter in cls(config).parameters())
            if count > tiny_zoo.MOST_PARAMETERS:
                raise NotMeasuredError(f"too large: {count} parameters")
            torch.manual_seed(0)
            model = cls(config).eval()
            if model._can_set_experts_implementation():
                model.set_experts_implementation("eager")  # the default needs an operator of accelerators
            if hasattr(model, "set_default_language"):
                model.set_default_language("en_XX")
            return model
        except Exception as error:
            errors.append(error)
    raise errors[0]


def words(model: Any, count: int) -> torch.Tensor:
    """Ordinary words of a small vocabulary."""
    return (3 + torch.arange(count) % 20)[None].expand(BATCH, count).contiguous()


def like(ids: torch.Tensor, count: int) -> torch.Tensor:
    """So many words for each row of a model's inputs, and for each of its channels."""
    made = (3 + torch.arange(count) % 20)[None].expand(len(ids), count)
    for size in ids.shape[2:]:
        made = made[..., None].expand(*made.shape, size)
    return made.contiguous()


def givens(model: Any, dtype: torch.dtype) -> Iterator[dict[str, Any]]:
    """Inputs to try, the plainest first."""
    ids = words(model, PROMPT)
    takes = inspect.signature(model.forward).parameters
    if model.config.is_encoder_decoder:
        yield {"input_ids": words(model, ENCODED), "decoder_input_ids": ids}
        channels = getattr(model.config.get_text_config(decoder=True), "num_channels", None)
        if isinstance(channels, int):
            yield {
                "input_ids": words(model, ENCODED),
                "decoder_input_ids": like(ids[..., None].expand(-1, -1, channels), PROMPT),
            }
    yield {"input_ids": ids}
    yield {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    books = getattr(model.config.get_text_config(decoder=True), "num_codebooks", None)
    if isinstance(books, int):  # a row for each book of each sequence
        many = ids.repeat(books, 1)
        yield {"input_ids": many}
        yield {"input_ids": words(model, ENCODED), "decoder_input_ids": many}
    for made in tiny_zoo.inputs(model):
        given = {}
        for key, value in made.items():
            if key not in takes:
                continue
            value = value.to(dtype) if value.is_floating_point() else value
            given[key] = (
                value.expand(BATCH, *value.shape[1:]).contiguous() if value.shape[:1] == (1,) else value
            )
        if "decoder_input_ids" in given:
            given["decoder_input_ids"] = ids
        elif "input_ids" in given:
            given["input_ids"] = ids
            if "attention_mask" in given:
                given["attention_mask"] = torch.ones_like(ids)
            if "mm_token_type_ids" in given:
                given["mm_token_type_ids"] = torch.zeros_like(ids)
        yield given


def static_cache(model: Any, encoder_tokens: int) -> Any:
    """A static cache for this model, and for so many tokens of its encoder where it has one."""
    config = model.config.get_text_config(decoder=True)
    try:
        cache = transformers.StaticCache(config=config, max_cache_len=STATIC_TOKENS)
    except Exception as error:  # whatever transformers raises where there is none for a layer
        raise NotMeasuredError("takes no static cache") from error
    if not model.config.is_encoder_decoder:
        return cache
    return transformers.EncoderDecoderCache(
        cache, transformers.StaticCache(config=config, max_cache_len=encoder_tokens)
    )


def find_cache(out: Any) -> tuple[str, Any]:
    """The cache that a forward gave back, and under which name."""
    for key in CACHE_KEYS:
        value = out.get(key) if hasattr(out, "get") else None
        if value is not None:
            return key, value
    raise NotMeasuredError("keeps no cache")


def measure(model: Any, dtype: torch.dtype, kind: str) -> list[Measured]:
    """A prefill and two steps. Raises if the class does not run so."""
    problems = []
    for given in givens(model, dtype):
        try:
            return run_real(model, given, kind)
        except NotMeasuredError:
            raise
        except Exception as error:
            problems.append(error)
    raise NotMeasuredError(f"{type(problems[0]).__name__}: {str(problems[0])[:100]}")


@contextmanager
def looking_at(model: Any) -> Iterator[list[int]]:
    """How many tokens of an encoder the parts of a model are given, in the order of their calls."""
    found: list[int] = []

    def look(_module: Any, _arguments: Any, given: dict[str, Any]) -> None:
        states = given.get("encoder_hidden_states")
        if isinstance(states, torch.Tensor) and states.ndim == 3:
            found.append(states.shape[1])

    hooks = [part.register_forward_pre_hook(look, with_kwargs=True) for part in model.modules()]
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()


@torch.no_grad()
def run_real(model: Any, given: dict[str, Any], kind: str) -> list[Measured]:
    """A prefill and two steps with these inputs. Raises whatever the class raises."""
    takes = inspect.signature(model.forward).parameters
    more: dict[str, Any] = {"use_cache": True} if "use_cache" in takes or "kwargs" in takes else {}
    with looking_at(model) as encoded_tokens:
        out = model(**given, **more)
    taken = "cache_params" if "cache_params" in takes else "past_key_values"
    if kind == "static":
        more[taken] = static_cache(model, max(encoded_tokens, default=ENCODED))
        out = model(**given, **more)
    key, cache = find_cache(out)
    if kind == "static" and cache is not more[taken]:
        raise NotMeasuredError("takes no static cache")
    word = "decoder_input_ids" if "decoder_input_ids" in given else "input_ids"
    tokens = given[word].shape[1]
    encoded = out.get("encoder_last_hidden_state") if word == "decoder_input_ids" else None
    seen = 0 if encoded is None else encoded.shape[1]
    if encoded_tokens and model.config.is_encoder_decoder:
        seen = encoded_tokens[0]  # which may be fewer than its encoder makes
    rows = [_row("prefill", kind, tokens, cache, seen)]
    for step in range(1, STEPS + 1):
        again = {key: cache, **({"use_cache": True} if "use_cache" in more else {})}
        again[word] = like(given[word], tokens + step if type(model).__name__ in WHOLE else 1)
        if encoded is not None:
            again["encoder_outputs"] = transformers.modeling_outputs.BaseModelOutput(
                last_hidden_state=encoded
            )
            again["encoder_outputs"].router_logits = None  # of mixtures
        if "attention_mask" in given and word == "input_ids":
            again["attention_mask"] = torch.ones((BATCH, tokens + step), dtype=torch.long)
        key, cache = find_cache(model(**again))
        rows.append(_row("decode", kind, tokens + step, cache, seen))
    return rows


def _row(phase: Phase, kind: str, tokens: int, cache: Any, encoder_tokens: int) -> Measured:
    return Measured(
        phase=phase,
        tokens=STATIC_TOKENS if kind == "static" else tokens,
        storage_bytes=storage_bytes(cache),
        looked_at_bytes=looked_at_bytes(cache),
        encoder_tokens=encoder_tokens,
    )

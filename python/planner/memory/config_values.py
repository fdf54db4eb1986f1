"""Values of a configuration under the names that classes have for them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

from planner.errors import UnknownMemoryError

Config: TypeAlias = Mapping[str, Any]

# Where a model of several parts says what its decoder is, in the order in which transformers looks.
DECODERS: Final = (
    *("decoder", "generator", "text_config"),
    *("language_config", "llm_config", "thinker_config", "decoder_config", "llm", "text_decoder_config"),
)
_WIDTHS: Final = ("hidden_size", "d_model", "n_embd", "embed_dim", "dim", "emb_dim")
_HEADS: Final = (
    *(
        "decoder_attention_heads",
        "num_decoder_attention_heads",
        "decoder_num_attention_heads",
        "num_attention_heads",
        "n_head",
    ),
    *("n_heads", "attention_heads", "num_heads", "encoder_attention_heads"),
)
_KEY_HEADS: Final = (
    *("decoder_num_key_value_heads", "num_key_value_heads", "num_kv_heads", "n_kv_heads"),
    "multi_query_group_num",
)
_HEAD_WIDTHS: Final = (
    *("attention_head_dim", "head_dim", "d_kv", "d_head", "kv_channels", "dim_head", "head_size"),
    "attention_head_size",
)
_DEPTHS: Final = (
    *(
        "decoder_layers",
        "num_decoder_layers",
        "decoder_num_hidden_layers",
        "num_hidden_layers",
        "n_layer",
        "num_layers",
        "n_layers",
    ),
    "layers",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class CachedHeads:
    """What attention keeps of one token.

    Args:
        count: heads that keys and values have.
        key_width: elements of a key.
        value_width: elements of a value.
    """

    count: int
    key_width: int
    value_width: int


def model_type(config: Config) -> str:
    """The type of a model, as an answer to questions names it."""
    return str(config.get("model_type") or "")


def decoder_config(config: Config) -> Config:
    """The part of a configuration that says what is cached: the decoder's of a model of several parts.

    Example:
        >>> decoder_config({"model_type": "llava", "text_config": {"model_type": "llama"}})["model_type"]
        'llama'
    """
    for _ in range(4):
        inner = (config.get(key) for key in DECODERS)
        found = next((each for each in inner if isinstance(each, Mapping) and each), None)
        if found is None:
            return config
        config = found
    return config


def first_of(config: Config, *names: str) -> Any:
    """The first of these that says something; None where none does."""
    return next((config[name] for name in names if config.get(name) is not None), None)


def needed(config: Config, *names: str) -> int:
    """A count under the first of these names that says something.

    Raises:
        UnknownMemoryError: none does.
    """
    found = first_of(config, *names)
    if isinstance(found, list | tuple) and found:
        found = found[0]
    if type(found) is not int or found < 0:
        raise UnknownMemoryError(
            f"the configuration of {model_type(config) or 'the model'} does not say {names[0]}",
            model_type=model_type(config),
            unknown=names[0],
        )
    return found


def depth(config: Config) -> int:
    """How many layers a decoder has."""
    blocks = config.get("layers_block_type")
    return len(blocks) if isinstance(blocks, list) else needed(config, *_DEPTHS)


def width(config: Config) -> int:
    """How many elements a token has between layers."""
    return needed(config, *_WIDTHS)


def query_heads(config: Config) -> int:
    """How many heads ask."""
    return needed(config, *_HEADS)


def plain_heads(config: Config) -> CachedHeads:
    """The heads of an ordinary attention, by the names that classes have for them.

    Raises:
        UnknownMemoryError: the configuration leaves out what is needed, or its heads have no elements.
    """
    asking = query_heads(config)
    if asking < 1:
        raise UnknownMemoryError(
            f"the configuration of {model_type(config) or 'the model'} has no attention heads",
            model_type=model_type(config),
            unknown="num_attention_heads",
        )
    head = first_of(config, *_HEAD_WIDTHS)
    each = head if type(head) is int else width(config) // asking
    if each < 1:
        raise UnknownMemoryError(
            f"the configuration of {model_type(config) or 'the model'} has attention heads of {each} elements",
            model_type=model_type(config),
            unknown="head_dim",
        )
    count = needed(config, *_KEY_HEADS) if first_of(config, *_KEY_HEADS) is not None else asking
    return CachedHeads(count=count, key_width=each, value_width=each)

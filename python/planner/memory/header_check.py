"""Whether weights have the heads that a cache is computed with."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Final

from planner.errors import PlannerError
from planner.memory.attention_heads import cached_heads
from planner.memory.config_values import Config, decoder_config
from planner.memory.layer_types import layer_types

# Of a decoder's own attention; those that look at an encoder or a picture keep what the encoder has.
_PROJECTION: Final = re.compile(r"(?:.*\.)?layers\.(\d+)\.(?:self_attn|attention|attn)\.([kv])_proj\.weight")
_OTHER_PARTS: Final = re.compile(r"(?:^|\.)(?:vision|visual|audio|encoder|image|speech|mtp)[\w]*\.")


def head_notes(config: Config, shapes: Mapping[str, Sequence[int]]) -> tuple[str, ...]:
    """What to say where weights have other heads than the configuration.

    Args:
        config: what ``config.json`` holds, with what it leaves out filled in.
        shapes: of tensors that are stored as they are computed with, by name; packed ones must not be among them.

    Returns:
        A note for each of keys and values that some layer has otherwise; none where nothing can be compared.

    Example:
        >>> config = {"num_hidden_layers": 1, "num_attention_heads": 4, "hidden_size": 64}
        >>> head_notes(config, {"model.layers.0.self_attn.k_proj.weight": [32, 64]})[0][:60]
        'model.layers.0.self_attn.k_proj.weight has 32 rows, and the '
    """
    try:
        found = dict.fromkeys(note for note in _differences(decoder_config(config), shapes))
    except PlannerError:
        return ()  # whoever asks for the cache hears of it
    return tuple(found)


def _differences(config: Config, shapes: Mapping[str, Sequence[int]]) -> Iterator[str]:
    types = layer_types(config)
    own = config.get("per_layer_config") or {}
    told: set[str] = set()
    for name, shape in shapes.items():
        match = _PROJECTION.fullmatch(name)
        if match is None or _OTHER_PARTS.search(name) or len(shape) != 2:
            continue
        index, which = int(match[1]), match[2]
        if index >= len(types) or not types[index].endswith("_attention") or which in told:
            continue
        heads = cached_heads({**config, **(own.get(str(index)) or {})}, types[index])
        width = heads.key_width if which == "k" else heads.value_width
        if types[index] != "linear_attention" and shape[0] != heads.count * width:
            told.add(which)
            yield (
                f"{name} has {shape[0]} rows, and the configuration says {heads.count} heads of {width}: "
                "the cache is computed from the configuration"
            )

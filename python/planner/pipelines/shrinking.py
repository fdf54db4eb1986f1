"""A configuration made tiny: the same choices, small numbers."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any, Final

__all__ = ["TINY_LAYERS", "WORDS", "tiny_configurations"]

TINY_LAYERS: Final = 6
WORDS: Final = 128
_WIDTH, _HEADS, _FEWER_HEADS, _WINDOW = 64, 4, 2, 4
_HEAD = _WIDTH // _HEADS
_PAIRS = _HEAD // 2
# By the name of a value: what it becomes if it is larger. The first rule that matches counts.
_FEW: Final = (
    (r"vocab_size$|^n_words$", WORDS),
    (r"^(first_k_dense_replace|num_dense_layers|moe_layer_start_index|n_dense_layers)$", 1),
    (r"(experts_per_tok|experts_per_token|topk?|top_k|k_routed|num_selects?|moe_k)$", 2),
    (r"^num_kv_shared_layers$", 2),
    (r"^vocab_size_per_layer_input$", WORDS),
    (r"n_groups$", 2),
    (r"^(n_group|topk_group|num_expert_group)$", 1),
    (r"experts$|num_experts$", 4),
    (r"^(sliding_window|window_size|attention_chunk_size|local_attention|chunk_size)$", _WINDOW),
)
_NARROW: Final = (
    (r"(key_value|kv)_heads$", _FEWER_HEADS),
    (r"^qk_head_dim$", 2 * _HEAD),
    (r"^mamba_d_ssm$", 2 * _WIDTH),
    (r"(d_head|mamba_head_dim)$", 2 * _WIDTH // _HEADS),
    (r"(heads?|n_head)$", _HEADS),
    (r"(head_dim|d_kv|head_size|rotary_dim|kv_channels)$|_rank$", _HEAD),
    (r"(intermediate|ffn|ff|inner|mlp|feedforward|feed_forward)(_hidden)?(_dim|_size)?$|^d_ff$", 2 * _WIDTH),
    (r"(hidden_size|hidden_dim|d_model|n_embd|embed_dim|embedding_size|model_dim|projection_dim|^dim|width)$", _WIDTH),
)  # fmt: skip
_LAYERS: Final = re.compile(r"(\w+_)?(n_layers?|layers)")
_NUMBERS: Final = re.compile(r"(indices|idxs|layer_ids|only_layers|attention_layers|_layers)$")
_SPECIAL_WORD: Final = re.compile(r"_(token_id|token_index|id)$")
_FACTORS: Final = ("short_factor", "long_factor")  # one for each pair of a head's channels
_ROPE: Final = ("rope_parameters", "rope_scaling")


def tiny_configurations(config: Any, total: int) -> Iterator[dict[str, Any]]:
    """What configurations of the same class with few layers would say, the smallest first; its values may not go together.

    Args:
        config: of the model.
        total: how many layers it has.
    """
    said = config.to_dict()
    for is_narrow, has_rope in ((True, True), (True, False), (False, True)):
        yield _Shrinking(total, is_narrow=is_narrow, has_rope=has_rope).shrunk(said)


class _Shrinking:
    """One way of shrinking.

    Args:
        total: how many layers the model has.
        is_narrow: whether widths are shrunk, too.
        has_rope: whether scaled rotary positions stay, whose numbers may depend on widths.
    """

    def __init__(self, total: int, *, is_narrow: bool, has_rope: bool) -> None:
        self._total, self._has_rope, self._is_narrow = total, has_rope, is_narrow
        self._rules = (*_FEW, *_NARROW) if is_narrow else _FEW
        self._words: dict[int, int] = {}

    def shrunk(self, said: Mapping[str, Any]) -> dict[str, Any]:
        """All that a configuration says, and those inside it."""
        chosen = self._chosen(said)
        return {key: self._value(key, value, said, chosen) for key, value in said.items()}

    def _chosen(self, said: Mapping[str, Any]) -> list[int]:
        """Numbers of layers that stay: the first of each kind, then the first of all; of fewer layers, all of them over again."""
        if self._total < TINY_LAYERS:
            return [number % self._total for number in range(TINY_LAYERS)]
        lists = [value for value in said.values() if self._is_of_layers(value)]
        numbers = [value for key, value in said.items() if self._are_numbers(key, value)]
        kinds: dict[str, int] = {}
        for number in range(self._total):
            kind = [value[number] for value in lists], [number in value for value in numbers]
            kinds.setdefault(repr(kind), number)
        first = sorted(kinds.values())[:TINY_LAYERS]
        rest = [number for number in range(self._total) if number not in first]
        return sorted((first + rest)[:TINY_LAYERS])

    def _is_of_layers(self, value: Any) -> bool:
        return isinstance(value, list | tuple) and len(value) == self._total

    def _are_numbers(self, key: str, value: Any) -> bool:
        """Whether a value lists some of the layers by their numbers."""
        is_list = isinstance(value, list | tuple) and bool(value) and _NUMBERS.search(key) is not None
        return is_list and all(type(number) is int and 0 <= number < self._total for number in value)

    def _value(self, key: str, value: Any, around: Mapping[str, Any], chosen: list[int]) -> Any:
        if isinstance(value, Mapping):
            return self._mapping(key, value, chosen)
        if self._is_of_layers(value) and not key.endswith(("token_id", "architectures")):
            return [self._value(key, value[number], around, chosen) for number in chosen]
        if self._are_numbers(key, value):
            return [at for at, number in enumerate(chosen) if number in value]
        if key in _FACTORS and self._is_narrow:
            return list(value)[:_PAIRS]
        return self._number(key, value, around) if type(value) is int else value

    def _mapping(self, key: str, value: Mapping[str, Any], chosen: list[int]) -> dict[str, Any]:
        if key in _ROPE and not self._has_rope:
            return _plain_rope(value)
        if key == "per_layer_config":
            by_number = {int(name): said for name, said in value.items()}
            return {str(at): by_number[number] for at, number in enumerate(chosen) if number in by_number}
        return self.shrunk(value)

    def _number(self, key: str, value: int, around: Mapping[str, Any]) -> int:
        if value in (self._total, 2 * self._total) and _LAYERS.fullmatch(key):
            return value // self._total * TINY_LAYERS  # some count two for each
        if _SPECIAL_WORD.search(key) and value >= WORDS:
            return self._words.setdefault(value, WORDS - 1 - len(self._words))
        expand = around.get("expand" if key == "head_dim" else "mamba_expand")
        if self._is_narrow and key in ("head_dim", "mamba_d_head") and type(expand) is int:
            return expand * _WIDTH // _HEADS  # heads of a state, as wide as what is expanded
        size = next((size for pattern, size in self._rules if re.search(pattern, key)), value)
        is_per_head = size == _FEWER_HEADS and value == around.get("num_attention_heads")
        return min(value, _HEADS if is_per_head else size)


def _plain_rope(said: Mapping[str, Any]) -> dict[str, Any]:
    """Rotary positions without scaling, of each kind of layer where they differ."""
    if all(isinstance(value, Mapping) for value in said.values()):
        return {kind: _plain_rope(value) for kind, value in said.items()}
    kept = {key: value for key, value in said.items() if key in ("rope_theta", "partial_rotary_factor")}
    return {"rope_type": "default", **kept}

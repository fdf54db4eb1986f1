"""Every transformers class of a kind that can be built offline: default config, few layers, on the meta device.

python benches/model_zoo.py          # what can be built, and what cannot and why
"""

from __future__ import annotations

import sys
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import torch
import transformers
from transformers.models.auto import modeling_auto

KINDS = {
    "causal": "MODEL_FOR_CAUSAL_LM_MAPPING_NAMES",
    "masked": "MODEL_FOR_MASKED_LM_MAPPING_NAMES",
    "seq2seq": "MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES",
    "image-text": "MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES",
}
MOST_LAYERS = 3
MOST_EXPERTS = 4
LAYERS = (
    "num_hidden_layers",
    "num_layers",
    "n_layer",
    "n_layers",
    "encoder_layers",
    "decoder_layers",
    "num_decoder_layers",
    "num_encoder_layers",
    "depth",
    "depths",
    "num_hidden_groups",
    "num_stages",
)
EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")
# What a default config lacks, though its class needs it.
MISSING: dict[str, dict[str, Any]] = {
    "EsmForMaskedLM": {"vocab_size": 33, "pad_token_id": 1},
    "HunYuanDenseV1ForCausalLM": {"head_dim": 128},
    "HunYuanMoEV1ForCausalLM": {"head_dim": 128, "moe_topk": 1, "num_shared_expert": 1, "num_experts": 2},
    "HunYuanVLForConditionalGeneration": {"text_config": {"head_dim": 128}},
    "Lfm2MoeForCausalLM": {"layer_types": ["conv", "full_attention", "conv"], "num_hidden_layers": 3},
    "MinistralForCausalLM": {"head_dim": 128},
    "NemotronForCausalLM": {"num_key_value_heads": 8},
    "ReformerModelWithLMHead": {"is_decoder": True},
}
PER_LAYER = (
    "layer_types",
    "layers_block_type",
    "mlp_layer_types",
    "block_types",
    "attention_types",
    "attn_layer_indices",
)
# What a configuration says that changes which modules there are: a model of the class with the other answer has them, too.
OTHERWISE: dict[str, Callable[[Any], Any]] = {
    "is_gated_act": lambda said: not said,  # T5's feed_forward_proj
    "q_lora_rank": lambda said: None if said else 64,
    "word_embed_proj_dim": lambda _: 64,
    "is_moe": lambda said: not said,
}


def names(kinds: tuple[str, ...] = tuple(KINDS)) -> list[str]:
    """Class names of these kinds, each once, sorted."""
    found: set[str] = set()
    for kind in kinds:
        for value in getattr(modeling_auto, KINDS[kind]).values():
            found.update([value] if isinstance(value, str) else value)
    return sorted(name for name in found if hasattr(transformers, name))


def build(name: str, *, tie: bool = True) -> Any:
    """A model of this class on the meta device, tied unless not wanted. Raises whatever its class raises."""
    cls = getattr(transformers, name)
    errors = []
    for shrink in (True, False):
        config = cls.config_class(**MISSING.get(name, {}))
        if shrink:
            shrink_config(config)
        try:
            with torch.device("meta"), warnings.catch_warnings(action="ignore"):
                model = cls(config)
        except Exception as error:
            errors.append(error)
            continue
        if tie:
            model.tie_weights()
        return model
    raise errors[0]


def variants(name: str) -> Iterator[Any]:
    """Models of this class with other modules inside than its default configuration makes."""
    cls = getattr(transformers, name)
    for key, other in OTHERWISE.items():
        config = cls.config_class(**MISSING.get(name, {}))
        shrink_config(config)
        if not _answer_otherwise(config, key, other):
            continue
        try:
            with torch.device("meta"), warnings.catch_warnings(action="ignore"):
                yield cls(config)
        except Exception:
            continue  # a configuration that the class refuses is nobody's


def _answer_otherwise(config: Any, key: str, other: Callable[[Any], Any], depth: int = 0) -> bool:
    """Whether a configuration, or one inside it, has this to say."""
    found = hasattr(config, key)
    if found:
        _set(config, key, other(getattr(config, key)))
    for value in list(vars(config).values()):
        if hasattr(value, "to_dict") and hasattr(value, "model_type") and depth < 4:
            found = _answer_otherwise(value, key, other, depth + 1) or found
    return found


def shrink_config(config: Any, depth: int = 0) -> None:
    """A few layers and experts, here and in the configs inside."""
    for key, value in list(vars(config).items()):
        if hasattr(value, "to_dict") and hasattr(value, "model_type") and depth < 4:
            shrink_config(value, depth + 1)
        elif key in LAYERS and isinstance(value, int):
            _set(config, key, min(value, MOST_LAYERS))
        elif key in EXPERTS and isinstance(value, int):
            _set(config, key, min(value, MOST_EXPERTS))
    layers = getattr(config, "num_hidden_layers", None)
    for key in PER_LAYER:
        value = getattr(config, key, None)
        if isinstance(value, list) and isinstance(layers, int):
            _set(config, key, value[:layers])


def _set(config: Any, key: str, value: Any) -> None:
    try:
        setattr(config, key, value)
    except Exception:
        return  # a config that computes it keeps what it computes


def no_split_classes(model: Any) -> list[str]:
    """The model's own no-split classes, sorted so that runs are the same."""
    return sorted(getattr(model, "_no_split_modules", None) or ())


def true_bytes(model: Any) -> int:
    """Bytes of the model's tensors, each once."""
    tensors = {id(t): t for t in (*model.parameters(), *model.buffers())}
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())


def budgets(model: Any) -> Iterator[dict[int | str, int]]:
    """Thirty budgets: shares of one, two and unlike accelerators, tight and wide, with and without room on the cpu."""
    total = true_bytes(model)
    for share in (0.0, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.5):
        yield {0: int(total * share), "cpu": total * 10}
        yield {0: int(total * share * 0.6), 1: int(total * share * 0.5), "cpu": total * 10}
    yield {0: total // 5, 1: total // 2, 2: total // 5, "cpu": total // 4}
    yield {0: 0, 2: total // 2, 5: total}
    yield {"cpu": total // 2}
    yield {0: total // 4, 1: total // 4, 2: total // 4, 3: total // 4, "cpu": 0}


def main() -> None:
    """Prints what can be built."""
    transformers.logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    failed: Counter[str] = Counter()
    started = time.perf_counter()
    for name in names():
        try:
            model = build(name)
        except Exception as error:
            failed[name] += 1
            print(f"{name}: {type(error).__name__}: {str(error)[:100]}")
            continue
        count = sum(1 for _ in model.named_modules())
        print(f"{name}: {count} modules, {true_bytes(model) / 2**30:.2f} GiB")
    total = len(names())
    print(f"{total - len(failed)} of {total} built in {time.perf_counter() - started:.0f} s", file=sys.stderr)


if __name__ == "__main__":
    main()

"""Facts about a model from its Hugging Face ``config.json``: declared rules for each known architecture."""

from __future__ import annotations

import enum
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final, Protocol

from planner.config.layer import Layer, Node, SourceError, from_python
from planner.config.problem import Origin, Problem, Rank, UserSource
from planner.config.sources import FilePath, json_tree


class HasToDict(Protocol):
    """A live ``model.config``; transformers itself is not needed."""

    def to_dict(self) -> dict[str, object]:
        """All values by name."""


_SIZES: Final = {
    "num_hidden_layers": ("num_hidden_layers",),
    "hidden_size": ("hidden_size",),
    "num_attention_heads": ("num_attention_heads",),
    "num_key_value_heads": ("num_key_value_heads",),
    "head_dim": ("head_dim",),
    "max_position_embeddings": ("max_position_embeddings",),
}


@dataclass(frozen=True, kw_only=True)
class Family:
    """How one ``model_type`` spells its facts.

    Args:
        names: by fact, the keys that mean it (a class's own name and its alias); they must agree if both are there.
        fallbacks: by fact, the key whose value the class takes if the fact is absent.
        defaults: what the class has if a file leaves it out, for facts that are left out or would be computed wrongly.
        text: for a model of several parts, the type of its ``text_config`` if that has none.
        ignored: keys that have nothing to do with our facts.
    """

    names: Mapping[str, tuple[str, ...]] = field(default_factory=lambda: _SIZES)
    fallbacks: Mapping[str, str] = field(default_factory=dict)
    defaults: Mapping[str, object] = field(default_factory=dict)
    text: str = ""
    ignored: str = ""


_CHOSEN: Final = ("num_experts_per_tok",)
_MIXTURE: Final = {
    **_SIZES,
    "num_experts": ("num_experts", "num_local_experts"),
    "num_experts_per_tok": _CHOSEN,
}

_EVERYWHERE: Final = """
    _name_or_path architectures attn_implementation bos_token_id chunk_size_feed_forward eos_token_id id2label
    initializer_range is_encoder_decoder label2id output_attentions output_hidden_states pad_token_id problem_type
    return_dict tie_word_embeddings torchscript transformers_version use_cache vocab_size
"""
_DECODER: Final = """
    attention_bias attention_dropout hidden_act intermediate_size mlp_bias pretraining_tp rms_norm_eps rope_parameters
    rope_scaling rope_theta sliding_window
"""
_MOE: Final = """
    output_router_logits router_aux_loss_coef moe_intermediate_size
    norm_topk_prob
"""

_FAMILIES: Final[Mapping[str, Family]] = {
    "llama": Family(
        fallbacks={"num_key_value_heads": "num_attention_heads"},
        ignored=_DECODER,
    ),
    "mixtral": Family(
        names=_MIXTURE,
        ignored=f"{_DECODER} {_MOE} router_jitter_noise",
    ),
    "qwen3_moe": Family(
        names=_MIXTURE,
        ignored=f"{_DECODER} {_MOE} decoder_sparse_step mlp_only_layers use_sliding_window max_window_layers",
    ),
    "deepseek_v3": Family(
        # The class overwrites head_dim with the rotary part of a head.
        names={
            **_MIXTURE,
            "head_dim": ("qk_rope_head_dim",),
            "num_experts": ("n_routed_experts", "num_experts", "num_local_experts"),
        },
        defaults={"head_dim": 64},
        ignored=f"""{_DECODER} {_MOE} first_k_dense_replace head_dim kv_lora_rank n_group
            n_shared_experts num_mtp_layers num_nextn_predict_layers q_lora_rank qk_head_dim qk_nope_head_dim
            rope_interleave routed_scaling_factor topk_group v_head_dim aux_loss_alpha ep_size moe_layer_freq
            scoring_func seq_aux topk_method auto_map""",
    ),
    "gemma3_text": Family(
        defaults={"head_dim": 256},
        ignored=f"""{_DECODER} _sliding_window_pattern sliding_window_pattern attn_logit_softcapping cache_implementation
            final_logit_softcapping hidden_activation layer_types query_pre_attn_scalar rope_local_base_freq
            use_bidirectional_attention""",
    ),
    "gemma3": Family(
        text="gemma3_text",
        ignored="boi_token_index eoi_token_index image_token_index mm_tokens_per_image vision_config",
    ),
    "llava": Family(
        text="llama",
        ignored="""image_seq_length image_token_index multimodal_projector_bias projector_hidden_act vision_config
            vision_feature_layer vision_feature_select_strategy ignore_index""",
    ),
    "gpt2": Family(
        names={
            "num_hidden_layers": ("n_layer", "num_hidden_layers"),
            "hidden_size": ("n_embd", "hidden_size"),
            "num_attention_heads": ("n_head", "num_attention_heads"),
            "max_position_embeddings": ("n_positions", "max_position_embeddings"),
        },
        ignored="""activation_function add_cross_attention attn_pdrop embd_pdrop layer_norm_epsilon n_ctx n_inner
            reorder_and_upcast_attn resid_pdrop scale_attn_by_inverse_layer_idx scale_attn_weights summary_activation
            summary_first_dropout summary_proj_to_labels summary_type summary_use_proj task_specific_params""",
    ),
    "t5": Family(
        names={
            "num_hidden_layers": ("num_layers", "num_hidden_layers"),
            "hidden_size": ("d_model", "hidden_size"),
            "num_attention_heads": ("num_heads", "num_attention_heads"),
            "head_dim": ("d_kv", "head_dim"),
        },
        defaults={"head_dim": 64},
        ignored="""classifier_dropout d_ff decoder_start_token_id dense_act_fn dropout_rate feed_forward_proj
            initializer_factor is_decoder is_gated_act layer_norm_epsilon n_positions num_decoder_layers
            relative_attention_max_distance relative_attention_num_buckets scale_decoder_outputs task_specific_params""",
    ),
}
"""What is known, by ``model_type``. Source: the configuration classes of transformers 5.23."""

_TOP: Final = (
    "model_type",
    "dtype",
    "torch_dtype",
    "quantization_config",
    "text_config",
)

# Keys that a fact may come from; a configuration holds hundreds of others.
_READ: Final = frozenset(
    (
        *_TOP,
        "quant_method",
        *(key for family in _FAMILIES.values() for keys in family.names.values() for key in keys),
        *(key for family in _FAMILIES.values() for key in family.fallbacks.values()),
    )
)


def unlisted_keys(model_type: str, keys: Iterable[str]) -> tuple[str, ...]:
    """The keys of a ``config.json`` that are neither translated nor ignored on purpose; for the tests of the rules.

    Example:
        >>> unlisted_keys("gpt2", ["n_layer", "vocab_size", "new_thing"])
        ('new_thing',)
    """
    family = _FAMILIES[model_type]
    known = {
        *_TOP,
        *_EVERYWHERE.split(),
        *family.ignored.split(),
        *(key for keys in family.names.values() for key in keys),
    }
    return tuple(key for key in keys if key not in known)


def import_config(source: FilePath | HasToDict) -> Layer:
    """The imported layer of a model: facts below ``model``, and nothing else.

    Args:
        source: a ``config.json``, the folder that holds it, or a live ``model.config``.

    Returns:
        A layer for ``Stack.imported``; each value with its line, its key and the raw value. Of an unknown
        ``model_type`` only what every configuration spells in the same way. A file that cannot be read, and two keys
        that contradict each other, are problems of the layer.

    Guarantee:
        A fact is what transformers' class for this ``model_type`` has, or is left out.

    Source:
        The configuration classes of transformers 5.23, models/*/configuration_*.py.
    """
    empty = Node(Origin(Rank.IMPORTED, "import"), {})
    if not isinstance(source, (str, os.PathLike)):
        return import_values(source.to_dict(), f"live {type(source).__name__}")
    path = os.path.join(source, "config.json") if os.path.isdir(source) else source
    try:
        root = json_tree(path, Rank.IMPORTED) or empty
        if not isinstance(root.content, dict):
            raise SourceError("the file must hold a mapping")
    except SourceError as error:
        return Layer(Rank.IMPORTED, UserSource.FILE, empty, (Problem((), f"{source}: {error}"),))
    return _layer(root)


def import_values(values: Mapping[str, object], where: str) -> Layer:
    """The same of a configuration that is read already; its lines are not known.

    Args:
        values: what ``config.json`` holds.
        where: what origins call it.
    """
    origin = Origin(Rank.IMPORTED, where)
    root = {key: values[key] for key in _READ & values.keys()}
    for key in ("text_config", "quantization_config"):
        inner = root.get(key)
        if isinstance(inner, Mapping):
            root[key] = {name: inner[name] for name in _READ & inner.keys()}
    try:
        return _layer(from_python(root, origin)[0])
    except SourceError as error:
        return Layer(Rank.IMPORTED, UserSource.FILE, Node(origin, {}), (Problem((), f"{where}: {error}"),))


def import_facts(facts: Mapping[str, object], where: str) -> Layer:
    """The same of facts that a file says by whatever names, translated already.

    Args:
        facts: values by the names that ``Model`` has for them.
        where: what origins call the file.
    """
    origin = Origin(Rank.IMPORTED, where)
    return _below_model(origin, {name: from_python(value, origin)[0] for name, value in facts.items()}, [])


def _layer(root: Node) -> Layer:
    problems: list[Problem] = []
    return _below_model(root.origin, dict(_facts(root, problems)), problems)


def _below_model(origin: Origin, facts: Mapping[object, Node], problems: Iterable[Problem]) -> Layer:
    tree = Node(origin, {"model": Node(origin, facts, partial=True)}, partial=True)
    return Layer(Rank.IMPORTED, UserSource.FILE, tree, tuple(problems))


def _facts(root: Node, problems: list[Problem]) -> Iterator[tuple[str, Node]]:
    top = _children(root)
    for fact, name in (("model_type", "model_type"), ("dtype", "torch_dtype"), ("dtype", "dtype")):
        yield from _fact(fact, name, top)
    yield from _fact(
        "quant_method", "quant_method", _children(top.get("quantization_config")), "quantization_config."
    )
    family = _FAMILIES.get(_text(top.get("model_type")))
    if family is None:
        return
    if family.text:
        inner = _children(top.get("text_config"))
        model_type = _text(inner.get("model_type")) or family.text
        if model_type in _FAMILIES:
            yield from _sizes(_FAMILIES[model_type], model_type, root.origin, inner, problems, "text_config.")
    else:
        yield from _sizes(family, _text(top["model_type"]), root.origin, top, problems, "")


def _sizes(
    family: Family,
    model_type: str,
    origin: Origin,
    keys: Mapping[object, Node],
    problems: list[Problem],
    prefix: str,
) -> Iterator[tuple[str, Node]]:
    for fact, names in family.names.items():
        found = [node for name in names for _, node in _fact(fact, name, keys, prefix)]
        if any(node.content != found[0].content for node in found):
            values = tuple(node.sourced(("model", fact)) for node in found)
            problems.append(Problem(("model", fact), "two keys of the file disagree", values))
        if found:
            yield fact, found[0]
        elif fact in family.fallbacks:
            yield from _fact(fact, family.fallbacks[fact], keys, prefix)
        elif fact in family.defaults:
            yield fact, _by_class(origin, model_type, fact, family.defaults[fact])


def _fact(fact: str, name: str, keys: Mapping[object, Node], prefix: str = "") -> Iterator[tuple[str, Node]]:
    """One fact, if its key is there; null means that it is not set."""
    node = keys.get(name)
    if node is not None and node.content is not None:
        content = node.content.value if isinstance(node.content, enum.Enum) else node.content
        origin = Origin(Rank.IMPORTED, node.origin.where, f"from {prefix}{name} = {node.plain()!r}")
        yield fact, Node(origin, content)


def _by_class(origin: Origin, model_type: str, fact: str, value: object) -> Node:
    note = f"{fact} = {value!r} by the class of model_type {model_type!r} in transformers"
    return Node(Origin(Rank.IMPORTED, origin.where, note), value)


def _children(node: Node | None) -> Mapping[object, Node]:
    return node.content if node is not None and isinstance(node.content, dict) else {}


def _text(node: Node | None) -> str:
    return node.content if node is not None and isinstance(node.content, str) else ""

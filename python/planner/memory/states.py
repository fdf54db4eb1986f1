"""What layers keep that have no keys for each token: convolutions' inputs and recurrent states."""

from __future__ import annotations

from planner.errors import UnknownMemoryError
from planner.memory.cache_parts import CachePart
from planner.memory.config_values import CachedHeads, Config, first_of, model_type, needed, width


def state_parts(config: Config) -> tuple[CachePart, ...]:
    """The states of a layer, by the values that a configuration has for them.

    Raises:
        UnknownMemoryError: it has none that are known.
    """
    kind = model_type(config)
    if first_of(config, "linear_num_value_heads") is not None:
        return _gated_delta(config)
    if first_of(config, "linear_head_dim") is not None and first_of(config, "linear_num_heads") is not None:
        return _kimi_delta(config)
    if first_of(config, "conv_L_cache") is not None:
        return (_once(width(config) * needed(config, "conv_L_cache")),)
    if kind == "falcon_h1":
        return _falcon_h1(config)
    if kind in ("mamba", "falcon_mamba"):
        inner = first_of(config, "intermediate_size") or int(
            (first_of(config, "expand") or 2) * width(config)
        )
        return _mamba_1(config, inner)
    if first_of(config, *_GROUPS) is not None and first_of(config, *_HEADS) is not None:
        return _mamba_2(config)
    if first_of(config, *_STATES) is not None and first_of(config, *_KERNELS) is not None:
        return _mamba_1(config, int((first_of(config, "mamba_expand", "expand") or 2) * width(config)))
    raise UnknownMemoryError(
        f"what a layer of linear attention keeps in a model of type {kind} is not known: "
        "a recording tells it, where torch and transformers are installed",
        model_type=kind,
        unknown="linear_attention",
    )


def hybrid_states(config: Config, heads: CachedHeads) -> tuple[CachePart, ...]:
    """The states of a layer that has keys and values, too."""
    if model_type(config).startswith("inkling"):
        kernel = needed(config, "conv_kernel_size")
        widths = (
            heads.count * heads.key_width,
            heads.count * heads.value_width,
            width(config),
            width(config),
        )
        return tuple(_once(each * kernel, "float32") for each in widths)
    if model_type(config) == "zaya":
        kernel = needed(config, "cca_time0") + needed(config, "cca_time1") - 2
        asked = needed(config, "num_attention_heads") * heads.key_width
        kept = heads.count * heads.key_width
        return (_once((asked + kept) * kernel), _once(kept // 2))
    return state_parts(config)


_STATES = ("mamba_d_state", "ssm_state_size", "state_size")
_KERNELS = ("mamba_d_conv", "conv_kernel", "conv_kernel_size")
_GROUPS = ("mamba_n_groups", "mamba_ngroups", "n_groups")
_HEADS = ("mamba_n_heads", "mamba_num_heads", "n_mamba_heads", "num_heads")
_HEAD_WIDTHS = ("mamba_d_head", "mamba_head_dim", "mamba_headdim", "head_dim")


def _once(elements: int, dtype: str | None = None) -> CachePart:
    return CachePart(elements=elements, extent="once", dtype=dtype)


def _gated_delta(config: Config) -> tuple[CachePart, ...]:
    """Qwen3-Next and its like."""
    heads, key_width = needed(config, "linear_num_value_heads"), needed(config, "linear_key_head_dim")
    value_width = needed(config, "linear_value_head_dim")
    keys = needed(config, "linear_num_key_heads") * key_width
    kernel = needed(config, "linear_conv_kernel_dim")
    return (
        _once((2 * keys + heads * value_width) * kernel),
        _once(heads * key_width * value_width, "float32"),
    )


def _kimi_delta(config: Config) -> tuple[CachePart, ...]:
    """Kimi's delta attention: queries, keys and values of one width."""
    heads, head = needed(config, "linear_num_heads"), needed(config, "linear_head_dim")
    kernel = needed(config, "linear_conv_kernel_dim")
    return (_once(3 * heads * head * kernel), _once(heads * head * head, "float32"))


def _falcon_h1(config: Config) -> tuple[CachePart, ...]:
    state, groups = needed(config, "mamba_d_state"), needed(config, "mamba_n_groups")
    inner = first_of(config, "mamba_d_ssm") or int(config["mamba_expand"] * width(config))
    heads = needed(config, "mamba_n_heads")
    head = config.get("mamba_d_head")
    head = head if type(head) is int else inner // heads
    return (
        _once((inner + 2 * groups * state) * needed(config, "mamba_d_conv")),
        _once(heads * head * state, "float32"),
    )


def _mamba_1(config: Config, inner: int) -> tuple[CachePart, ...]:
    state, kernel = needed(config, *_STATES), needed(config, *_KERNELS)
    return (_once(inner * kernel), _once(inner * state, "float32"))


def _mamba_2(config: Config) -> tuple[CachePart, ...]:
    state, kernel = needed(config, *_STATES), needed(config, *_KERNELS)
    groups, heads = needed(config, *_GROUPS), needed(config, *_HEADS)
    head = first_of(config, *_HEAD_WIDTHS)
    inner = (
        heads * head
        if type(head) is int
        else int((first_of(config, "mamba_expand", "expand") or 2) * width(config))
    )
    return (_once((inner + 2 * groups * state) * kernel), _once(inner * state, "float32"))

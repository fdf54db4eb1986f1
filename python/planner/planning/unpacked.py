"""What kernels unpack of quantised weights while a block runs."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Final

from planner.checkpoint.opened import Opened
from planner.checkpoint.stored_format import packed_bits
from planner.choices import Phase
from planner.errors import UnknownMemoryError
from planner.memory.cache_parts import ITEM_BYTES, item_bytes
from planner.memory.demands import BlockDemand, Demands
from planner.model.formats import Format, format_named
from planner.model.in_format import Weights
from planner.model.layout import Layout
from planner.names import nearest_key
from planner.planning.demands import dtype_of
from planner.units import exact_bytes

# Whose kernels multiply what is packed: FP8Linear, FbgemmFp8Linear and Mxfp4GptOssExperts in transformers 5.23, integrations.
_MULTIPLIED_PACKED: Final = ("fp8", "fbgemm_fp8", "mxfp4")


def with_unpacked(
    by_phase: Mapping[Phase, Demands],
    opened: Opened,
    names: Sequence[str],
    *,
    into: str | None,
    dtype: str | None,
) -> Mapping[Phase, Demands]:
    """Demands with what kernels unpack: at most all packed weights of a block, as long as it runs.

    Args:
        by_phase: what blocks need, as if nothing was packed.
        opened: the model.
        names: of its blocks.
        into: a quantiser's format that it will be loaded in, or an element type; None for what it is.
        dtype: what the model computes in, by torch's name; None for what its configuration says.

    Returns:
        The same where nothing is packed.

    Raises:
        UnknownMemoryError: it is quantised, and how many bits an element has is not known. Fields: ``model_type``, ``unknown``.
    """
    converted = None if into is None else format_named(into)
    if converted is None and not opened.quantization:
        return by_phase
    dtype = dtype or dtype_of(opened.configuration)
    method = _method_of(opened) if converted is None else converted.name
    if method in _MULTIPLIED_PACKED:
        note = f"kernels of {method} multiply packed weights; what they pack of their inputs for that is not counted"
        return {phase: _with(demands, {}, note) for phase, demands in by_phase.items()}
    if converted is None:
        wide = _computed_in(opened, dtype)
        weights, shown = _packed_bytes(opened, item_bytes(wide)), opened.format()
    else:
        wide, weights, shown = dtype, _wide_bytes(opened, converted), converted.name
    unpacked = _by_block(weights, names)
    most = exact_bytes(max(unpacked.values(), default=0))
    note = f"weights in {shown} are counted as unpacked while their block runs, at most {most}"
    if item_bytes(wide) > item_bytes(dtype):
        note += f"; their kernels compute in {wide}, and copies of activations for that are not counted"
    return {phase: _with(demands, unpacked, note) for phase, demands in by_phase.items()}


def _computed_in(opened: Opened, dtype: str) -> str:
    """What kernels unpack to: bitsandbytes' may compute in another type than the model."""
    wanted = (
        opened.quantization.get("bnb_4bit_compute_dtype") if opened.quantization.get("load_in_4bit") else None
    )
    said = str(wanted or dtype).removeprefix("torch.")
    return max(dtype, said if said in ITEM_BYTES else dtype, key=item_bytes)


def _method_of(opened: Opened) -> str:
    said = opened.quantization.get("quant_method")
    return str(getattr(said, "value", said) or "quantised")


def _packed_bytes(opened: Opened, each_bytes: int) -> dict[str, int]:
    """By packed tensor, bytes of its elements once they are unpacked.

    Raises:
        UnknownMemoryError: how many bits an element has is not said, or nothing that is packed is found.
    """
    bits = packed_bits(opened.quantization)
    tree = opened.stored or opened.tree
    # Of a quantised model, what a cast leaves alone is packed.
    one, other = (Layout(tree, dtype=into).stored_sizes() for into in ("float32", "float64"))
    modules = dict(tree.columns.module_classes()).keys() | {""}
    packed = {
        name: size for name, size in one.items() if name not in modules and size and other[name] == size
    }
    if bits is None or not packed:
        method = _method_of(opened)
        why = "how many bits it packs an element into" if bits is None else "which weights it packed"
        raise UnknownMemoryError(
            f"workload: {opened.name} is quantised by {method}, and its configuration does not say {why}, so that what its kernels "
            "unpack is not known; plan the model before it was quantised, or leave workload out",
            model_type=str(opened.configuration.get("model_type") or ""),
            unknown=method,
        )
    return {name: int(size * 8) // bits * each_bytes for name, size in packed.items()}


def _wide_bytes(opened: Opened, converted: Format) -> dict[str, int]:
    """By weight that a format converts, the bytes that it has before that."""
    sizes = Layout(opened.tree, sizes=opened.sizes(None, {}), tied=opened.tied).stored_sizes()
    return {name: int(sizes[name]) for name in Weights(opened.tree).converted(converted)}


def _by_block(weights: Mapping[str, int], names: Sequence[str]) -> dict[str, int]:
    blocks = frozenset(names)
    found: defaultdict[str, int] = defaultdict(int)
    for weight, size in weights.items():
        block = nearest_key(weight, blocks)
        if block is not None:
            found[block] += size
    return dict(found)


def _with(demands: Demands, more: Mapping[str, int], note: str) -> Demands:
    """The same with bytes more that blocks need at once, and a note more."""
    blocks = dict(demands.blocks)
    for name, size in more.items():
        known = blocks.get(name, BlockDemand())
        blocks[name] = replace(known, needs_bytes=known.needs_bytes + size)
    return replace(demands, blocks=blocks, notes=(*demands.notes, note))

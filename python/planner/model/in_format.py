"""A model as a quantiser would write it: which weights it converts, and how large they become."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from functools import cache, cached_property
from typing import Any, Final

from planner.errors import InvalidInputError
from planner.model.formats import Format, Kind, format_named
from planner.model.layout import Layout
from planner.model.tree import ModuleTree

# What `get_output_embeddings` returns, by the names that transformers 5.23 has for it.
_HEADS: Final = (
    *("lm_head", "lm_heads", "embed_out", "output", "output_projection", "output_layer", "proj_out"),
    *("lm_head.decoder", "cls.predictions.decoder"),
)
# Keys of `_keep_in_fp32_modules` of transformers 5.23 that mean linear modules, where a module is of such a class.
_KEPT: Final = (
    (re.compile(r"(M|UM)?T5Dense\w*|UdopDense\w*|Pop2PianoDense\w*"), ("wo",)),
    (re.compile(r"Blip2QFormerModel"), ("qformer",)),
    (re.compile(r"(GlmMoeDsa|DeepseekV32|AXK2|MistralLarge4)\w*Indexer"), ("indexer.weights_proj",)),
    (
        re.compile(r"DeepseekV4\w*Compressor"),
        (
            *("self_attn.compressor.kv_proj", "self_attn.compressor.gate_proj"),
            *("self_attn.compressor.indexer.kv_proj", "self_attn.compressor.indexer.gate_proj"),
            "self_attn.compressor.indexer.scorer.weights_proj",
        ),
    ),
)
# Of a block, what gptqmodel 7.7 leaves out (models/definitions: the modules marked "!"); and towers that it does not quantise.
_ROUTERS: Final = ("gate", "router", "shared_expert_gate")
_TOWERS: Final = re.compile(
    r"(^|\.)(visual|vision_tower|vision_model|vision_encoder|audio_tower|audio_model)(\.|$)"
)
_NUMBERED: Final = re.compile(r"\.[0-9]+\.")


class Weights:
    """The weights of a model that quantisers convert, found when they are first asked for.

    Args:
        tree: the model.
    """

    def __init__(self, tree: ModuleTree) -> None:
        self._tree = tree

    def converted(self, into: Format) -> dict[str, int]:
        """Bits of the weights that a format converts, by name; none where its quantiser refuses the model."""
        if into.name == "fp8" and self._has_biased_experts:
            return {}
        stored_bits = cache(into.stored_bits)  # layers are alike
        return {
            name: stored_bits(self._elements[name], kind)
            for name, kind in self._kinds.items()
            if kind in into.converts
            and into.takes(self._elements[name], self._widths.get(name, 0))
            and (not into.is_of_blocks or _is_in_block(name))
        }

    def refusal(self, into: Format) -> str:
        """Why a format converts nothing of this model."""
        if into.name == "fp8" and self._has_biased_experts:
            return "its quantiser takes no experts with biases, as this model has; try mxfp4"
        if into.needs and any(kind in into.converts for kind in self._kinds.values()):
            return f"{into.quantiser} converts weights with {into.needs} only, and this model has none"
        return (
            f"{into.quantiser} converts {into.shown_kinds}, and this model has none beside its embeddings and head, or no config.json "
            "says what its modules are; an element type such as float16 needs neither"
        )

    @cached_property
    def _elements(self) -> dict[str, int]:
        """Elements of floating-point tensors by name, each tensor under its first one; parameters come before buffers."""
        # What a cast to 64 bits makes twice as large as one to 32 is cast, and so floating-point.
        half, whole = (Layout(self._tree, dtype=dtype).stored_sizes() for dtype in ("float32", "float64"))
        buffers = Layout(self._tree).stored_sizes("buffers")
        modules = self._classes.keys() | {""}
        return {
            name: int(size) // 4
            for name, size in half.items()
            if name not in modules and name not in buffers and size and whole[name] == 2 * size
        }

    @cached_property
    def _widths(self) -> dict[str, int]:
        return dict(self._tree.columns.widths())

    @cached_property
    def _classes(self) -> dict[str, str]:
        return dict(self._tree.columns.module_classes())

    @cached_property
    def _kinds(self) -> dict[str, Kind]:
        """By name, the weights that some quantiser converts."""
        derived = set(self._tree.columns.derived_classes(["Linear"])[0])
        tied = {name.removesuffix(".weight") for group in Layout(self._tree).tied_groups() for name in group}
        endings = tuple(self._kept())
        kept = tied.union(endings)
        last_parts = {name.rpartition(".")[2] for name in kept}
        found: dict[str, Kind] = {}
        for name in self._elements:
            module, _, local = name.rpartition(".")
            kind = self._kind(module, local, derived)
            if kind is None or module.endswith(endings):
                continue
            # Most names have not even one part in common with what is kept.
            if last_parts.isdisjoint(module.split(".")) or not _is_named(module, kept):
                found[name] = kind
        return found

    def _kind(self, module: str, local: str, derived: Collection[str]) -> Kind | None:
        owner = self._classes.get(module, "")
        if local == "weight":
            if owner == "Linear":
                return "linear"
            if owner in derived:
                return "derived"
            if owner == "Conv1D":
                return "conv1d"
        around, _, last = module.rpartition(".")
        if last != "experts" or local.endswith("bias"):
            return None
        return "gpt_oss_experts" if self._classes.get(around) == "GptOssMLP" else "experts"

    def _kept(self) -> Iterator[str]:
        """Modules that quantisers leave alone beside what is tied: the last one, the head, and what must stay in 32 bits.

        Source: ``get_keys_to_not_convert``, transformers 5.23, quantizers/base.py.
        """
        yield from (name.removesuffix(".weight") for name in list(self._elements)[-1:])
        yield from (name for name in _HEADS if self._classes.get(name) in ("Linear", "ModuleList"))
        owners = set(self._classes.values())
        for classes, keys in _KEPT:
            if any(map(classes.fullmatch, owners)):
                yield from keys

    @cached_property
    def _has_biased_experts(self) -> bool:
        parts = (name.rpartition(".") for name in self._elements)
        return any(
            module.rpartition(".")[2] == "experts" and local.endswith("bias") for module, _, local in parts
        )


def _is_named(module: str, kept: Collection[str]) -> bool:
    """Whether a key is a module, one around it, or the end of its name; with endings that cut a part of a name, the rule of
    ``should_convert_module``, transformers 5.23, quantizers/quantizers_utils.py."""
    dots = [place for place, letter in enumerate(module) if letter == "."]
    starts, ends = (module[:dot] for dot in dots), (module[dot + 1 :] for dot in dots)
    return any(name in kept for name in (module, *starts, *ends))


def _is_in_block(name: str) -> bool:
    is_router = name.split(".")[-2] in _ROUTERS
    return _NUMBERED.search(name) is not None and not is_router and _TOWERS.search(name) is None


def layout_as(
    tree: ModuleTree,
    dtype: str | None,
    *,
    sizes: Mapping[str, int] | None = None,
    special_dtypes: Mapping[str, Any] | None = None,
    tied: Sequence[Sequence[str]] | None = None,
    no_split: Iterable[str] = (),
    containers: Iterable[str] = (),
) -> Layout:
    """A model as it will be loaded.

    Args:
        tree: the model.
        dtype: an element type, or a quantiser's format: then what the quantiser keeps wide stays as it is.
        sizes: bits of single tensors by name; of those that are converted, the format's count.
        special_dtypes: element types of single tensors, which are not converted.
        tied, no_split, containers: as of :class:`Layout`.

    Raises:
        InvalidInputError: the format converts nothing of this model, and as :class:`Layout` raises it.

    Cost: O(modules + tensors), a few times over for a format.

    Example:
        >>> from torch import nn
        >>> model = nn.Sequential(nn.Linear(64, 64, bias=False), nn.Linear(64, 64, bias=False))
        >>> [layout_as(ModuleTree.from_module(model), dtype).stored_sizes()["0"] for dtype in ("bfloat16", "nf4")]
        [8192, 2448]
    """
    into = None if dtype is None else format_named(dtype)
    if into is not None:
        weights = Weights(tree)
        converted = weights.converted(into)
        if not converted:
            raise InvalidInputError(
                f"dtype {into.name} changes nothing of this model: {weights.refusal(into)}"
            )
        special = special_dtypes or {}
        changed = {name: bits for name, bits in converted.items() if name not in special}
        sizes, dtype = {**(sizes or {}), **changed}, None
    return Layout(
        tree,
        no_split=no_split,
        dtype=dtype,
        special_dtypes=special_dtypes,
        sizes=sizes,
        tied=tied,
        containers=containers,
    )

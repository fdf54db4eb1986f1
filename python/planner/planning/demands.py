"""What the blocks of a model need with a workload: where every number about running memory enters planning."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

from planner.checkpoint.cache_config import completed_config
from planner.checkpoint.opened import Opened
from planner.choices import Phase
from planner.errors import InvalidInputError, PlannerError, UnknownMemoryError
from planner.memory.activations import Activations, ForwardSizes, activations
from planner.memory.cache_layers import LayerCache, has_encoder, layer_caches
from planner.memory.demands import BlockDemand, Demands
from planner.settings.dtypes import FLOATS
from planner.settings.workload import Workload

_PHASES: Final[tuple[Phase, ...]] = ("prefill", "decode")
_BIASED: Final = "relative_attention_num_buckets"  # of classes like T5
_NUMBERED: Final = re.compile(r"(?:^|(?P<list>.*?)\.)(?P<number>\d+)(?:\.|$)")


def demands_of(
    opened: Opened, workload: Workload, blocks: Sequence[str], dtype: str | None, notes: Sequence[str] = ()
) -> dict[Phase, Demands]:
    """What blocks need in each phase of a workload, by formulas.

    Args:
        opened: the model, with its configuration.
        workload: what it will be run on.
        blocks: names of what is placed, in the order of execution.
        dtype: what it computes in, if that is known.
        notes: why it was not recorded, where that is worth knowing.

    Raises:
        InvalidInputError: a model without a configuration, or whose layers are not found among its blocks.
        UnknownMemoryError: a kind of layer or a number that is not known.
    """
    config = completed_config(opened.configuration)
    if not config:
        raise InvalidInputError(
            f"workload: {opened.name or 'the model'} has no configuration, so that nothing is known of its cache; plan the model "
            "itself or its checkpoint, or leave workload out"
        )
    found: dict[Phase, Demands] = {}
    for phase in _PHASES:
        try:
            demands = _by_formula(config, workload, blocks, dtype or dtype_of(config), phase)
        except PlannerError:
            raise
        except (TypeError, ValueError, LookupError, AttributeError, ArithmeticError) as error:
            # Somewhere in it is a word where a number should be, or the like; files may say anything.
            raise UnknownMemoryError(
                f"workload: the configuration of {opened.name or 'the model'} makes no sense ({error}), so that nothing is known of "
                "what running takes; correct its config.json, or leave workload out",
                model_type=str(config.get("model_type") or ""),
                unknown=str(error),
            ) from error
        found[phase] = replace(demands, notes=(*demands.notes, *notes))
    return found


def dtype_of(config: Mapping[str, Any]) -> str:
    """What a configuration says that the model computes in."""
    for part in (config, *(config.get(key) for key in ("text_config", "decoder", "thinker_config"))):
        said = str(part.get("dtype") or part.get("torch_dtype") or "") if isinstance(part, Mapping) else ""
        if said.removeprefix("torch.") in FLOATS:
            return said.removeprefix("torch.")
    return "float32"


def _by_formula(
    config: Mapping[str, Any], workload: Workload, blocks: Sequence[str], dtype: str, phase: Phase
) -> Demands:
    is_prefill = phase == "prefill"
    if _BIASED in config:
        # Its attention adds a bias by distance to all scores, so it computes them, whatever kernel is asked for.
        workload = replace(workload, attention_kernel="math")
    tokens = workload.prompt_tokens if is_prefill else workload.context_length
    sizes = ForwardSizes(rows=workload.rows, new_tokens=tokens if is_prefill else 1, seen_tokens=tokens)
    caches = layer_caches(
        config,
        phase=phase,
        batch_size=workload.rows,
        tokens=workload.context_length if workload.cache == "static" else tokens,
        encoder_tokens=workload.encoder_tokens if has_encoder(config) else 0,
        dtype=workload.cache_dtype or dtype,
        cache=workload.cache,
    )
    needs = activations(config, workload, sizes, dtype)
    encoder = activations(
        config,
        workload,
        ForwardSizes(
            rows=workload.rows, new_tokens=workload.encoder_tokens, seen_tokens=workload.encoder_tokens
        ),
        dtype,
    )
    found = _by_block(blocks, caches, needs, encoder if is_prefill else None, workload)
    shared_bytes = needs.shared_bytes
    if _BIASED in config:
        lengths = (workload.encoder_tokens, workload.prompt_tokens)
        pairs = max(lengths) ** 2 if is_prefill else max(workload.context_length, *lengths)
        # A bias for itself and one for the encoder, each in wide floats with the mask in it.
        shared_bytes += (
            2
            * 4
            * workload.rows
            * int(config.get("num_heads") or config.get("num_attention_heads") or 1)
            * pairs
        )
    return Demands(blocks=found, shared_bytes=shared_bytes, method="formula")


def _by_block(
    blocks: Sequence[str],
    caches: Sequence[LayerCache],
    needs: Activations,
    encoder: Activations | None,
    workload: Workload,
) -> dict[str, BlockDemand]:
    """Demands by block: a layer's cache belongs to the block that attends."""
    layers = _layers(blocks, len(caches)) if caches else []
    cache_of = dict(zip(map(_attending, layers), caches, strict=True))
    of_layers = {name for layer in layers for name in layer}
    found: dict[str, BlockDemand] = {}
    # Of what rests on the cpu, the next layer is brought while one is filled; after the last, it is the first.
    ahead_bytes = max((cache.bytes for cache in caches if _rests(cache, workload)), default=0)
    for position, name in enumerate(blocks):
        cache = cache_of.get(name)
        rests = cache is not None and _rests(cache, workload)
        cache_bytes = 0 if cache is None or rests else cache.bytes
        other = needs if encoder is None or name in of_layers else encoder
        # Growing a cache makes the new one before the old one goes.
        copied = cache.bytes if cache is not None and workload.cache != "static" else 0
        copied += ahead_bytes + (cache.bytes if cache is not None and rests else 0)
        most = max(needs.layer_bytes, other.layer_bytes) if _NUMBERED.match(name) else needs.plain_bytes
        if position == 0:
            most = max(most, needs.first_bytes)
        if position == len(blocks) - 1:
            most = max(most, needs.last_bytes)
        found[name] = BlockDemand(
            cache_bytes=cache_bytes,
            needs_bytes=most + copied,
            resting_bytes=cache.resting_bytes if cache is not None and rests else 0,
        )
    return found


def _rests(cache: LayerCache, workload: Workload) -> bool:
    """Whether a layer's cache is brought to the cpu: on its device it is in what is needed at once."""
    return workload.cache == "offloaded" and cache.is_offloadable


def _layers(blocks: Sequence[str], count: int) -> list[list[str]]:
    """The blocks of each layer that has a cache.

    Raises:
        InvalidInputError: there is no list of so many layers.
    """
    lists: dict[str, dict[int, list[str]]] = defaultdict(lambda: defaultdict(list))
    for name in blocks:
        met = _NUMBERED.match(name)
        if met is not None:
            lists[met["list"] or ""][int(met["number"])].append(name)
    fitting = [prefix for prefix, members in lists.items() if len(members) == count]
    if not fitting:
        known = ", ".join(f"{prefix} ({len(members)})" for prefix, members in lists.items()) or "none"
        raise InvalidInputError(
            f"workload: {count} layers have a cache, and no list of the model has so many members: {known}"
        )
    best = max(
        fitting, key=lambda prefix: ("decoder" in prefix, "language" in prefix, "visual" not in prefix)
    )
    return [lists[best][number] for number in sorted(lists[best])]


def _attending(layer: Sequence[str]) -> str:
    """Of the parts of a layer, the one that attends."""
    return next(
        (name for name in layer if "attn" in name or "attention" in name or "mixer" in name), layer[0]
    )

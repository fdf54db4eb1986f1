"""Rooms for a workload: by recordings where there are any, else by formulas."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Final

from planner.checkpoint.cache_config import completed_config
from planner.checkpoint.opened import Opened
from planner.choices import Phase
from planner.errors import InvalidInputError, UnknownMemoryError
from planner.memory.cache_layers import has_encoder, layer_caches
from planner.memory.demands import BlockDemand, Demands
from planner.memory.tape import RunBytes
from planner.model.blocks import Blocks
from planner.names import listed
from planner.planning.demands import demands_of
from planner.planning.recorded import Recordable, Recorded, recordable, recorded
from planner.planning.running import RunningRooms
from planner.planning.unpacked import with_unpacked
from planner.settings.workload import Workload
from planner.units import format_bytes

# Inputs that add nothing to what the lengths of a workload say.
_WORDS: Final = frozenset(
    ("input_ids", "inputs_embeds", "attention_mask", "position_ids", "token_type_ids", "decoder_input_ids")
)

__all__ = ["RunModel", "formula_rooms", "recordable_for", "recorded_rooms", "rooms_for"]


@dataclass(frozen=True, slots=True, kw_only=True)
class RunModel:
    """A model as it will run.

    Args:
        opened: the model.
        loaded_as: its floating-point type, where one was asked for.
        packed_as: the quantiser's format that it will be loaded in, where one was asked for.
        dtype: what it computes in by itself, if that is known.
        special_dtypes: by tensor, against `loaded_as`.
        longest_tokens: the context that it was made for, if that is known.
    """

    opened: Opened
    loaded_as: str | None
    packed_as: str | None
    dtype: str | None
    special_dtypes: Mapping[str, str]
    longest_tokens: int | None


def rooms_for(model: RunModel, workload: Workload, blocks: Blocks) -> RunningRooms:
    """What a workload asks for beside weights.

    Args:
        model: as it will be loaded.
        workload: what it will be run on.
        blocks: what is placed.

    Raises:
        InvalidInputError: inputs that its forward does not take, no configuration, or a cache that does not run with the model.
        UnknownMemoryError: a kind of layer or a number that is not known, of a model that is not recorded either; says at which operator
            of which block. Or how a quantiser packs.

    Cost: see :func:`planner.planning.recorded.recorded`.
    """
    _require_static(model, workload)
    _require_no_encoder(model, workload)
    found = recorded(
        model.opened,
        workload,
        blocks.names,
        fingerprint=blocks.layout.columns.fingerprint(),
        dtype=model.loaded_as,
        special_dtypes=model.special_dtypes,
    )
    if not found.runs:
        return formula_rooms(model, workload, blocks, note=found.note)
    return recorded_rooms(model, workload, blocks, found)


def recorded_rooms(model: RunModel, workload: Workload, blocks: Blocks, found: Recorded) -> RunningRooms:
    """The same by what recordings tell, of which there are some. Args, Raises: as of :func:`rooms_for`."""
    if model.packed_as is not None or model.opened.quantization:
        # No replay tells the peaks of these: a tape knows nothing of what kernels unpack.
        return _rooms(model, workload, blocks, found.by_phase(), main_needs_bytes=found.main_needs_bytes)
    return _rooms(
        model,
        workload,
        blocks,
        {"prefill": found.demands()},
        found.runs,
        main_needs_bytes=found.main_needs_bytes,
    )


def recordable_for(model: RunModel, blocks: Blocks) -> Recordable | None:
    """The model to record, where one is at hand. Raises RecordingError."""
    return recordable(
        model.opened,
        blocks.names,
        fingerprint=blocks.layout.columns.fingerprint(),
        dtype=model.loaded_as,
        special_dtypes=model.special_dtypes,
    )


def formula_rooms(model: RunModel, workload: Workload, blocks: Blocks, *, note: str = "") -> RunningRooms:
    """The same by formulas. Args, Raises: as :func:`rooms_for`; ``note``: why it was not recorded."""
    dtype = model.loaded_as or model.dtype
    try:
        notes = (*((note,) if note else ()), *_uncounted(workload))
        by_phase = demands_of(model.opened, workload, blocks.names, dtype, notes)
    except (InvalidInputError, UnknownMemoryError) as error:
        if not note:
            raise
        raise type(error)(f"{error.message}; and {note}", **error.fields) from error
    # Of the first block, formulas know what is needed where the inputs lie, and nothing less.
    main_needs_bytes = max(
        next(iter(demands.blocks.values()), BlockDemand()).needs_bytes for demands in by_phase.values()
    )
    return _rooms(model, workload, blocks, by_phase, main_needs_bytes=main_needs_bytes)


def _uncounted(workload: Workload) -> tuple[str, ...]:
    """A note of inputs that formulas do not know: pictures, sound."""
    names = [name for name in workload.inputs if name not in _WORDS]
    return (f"what the model makes of {listed(map(repr, names))} is not counted",) if names else ()


def _require_static(model: RunModel, workload: Workload) -> None:
    """Raises InvalidInputError where a static cache is asked of a class whose layers have none.

    Where the configuration does not tell, a recording does.
    """
    config = completed_config(model.opened.configuration)
    if workload.cache != "static" or not config:
        return
    with suppress(UnknownMemoryError):
        layer_caches(
            config,
            phase="prefill",
            batch_size=workload.rows,
            tokens=workload.context_length,
            encoder_tokens=workload.encoder_tokens if has_encoder(config) else 0,
            dtype="float32",
            cache="static",
        )


def _require_no_encoder(model: RunModel, workload: Workload) -> None:
    """Raises InvalidInputError where an offloaded cache is asked of a model with an encoder."""
    if workload.cache == "offloaded" and has_encoder(completed_config(model.opened.configuration)):
        raise InvalidInputError(
            "cache='offloaded' does not run with an encoder: transformers reads what the encoder has seen where it rests, on the cpu, "
            "and not where attention runs; cache='dynamic' and cache='static' do",
            cache=workload.cache,
        )


def _rooms(
    model: RunModel,
    workload: Workload,
    blocks: Blocks,
    by_phase: Mapping[Phase, Demands],
    runs: tuple[RunBytes, ...] = (),
    *,
    main_needs_bytes: int,
) -> RunningRooms:
    by_phase = with_unpacked(
        by_phase, model.opened, blocks.names, into=model.packed_as, dtype=model.loaded_as or model.dtype
    )
    beside = model.opened.head_notes()
    resting_bytes = max(each.resting_bytes for each in by_phase.values())
    if resting_bytes:
        beside = (
            *beside,
            f"{format_bytes(resting_bytes)} of the cache rest on the cpu, pinned on CUDA devices",
        )
    longest = model.longest_tokens
    if longest is not None and workload.context_length > longest:
        beyond = f"a context of {workload.context_length} tokens is beyond the {longest} that the model was made for"
        beside = (*beside, beyond)
    if beside:
        by_phase = {phase: replace(each, notes=(*each.notes, *beside)) for phase, each in by_phase.items()}
    return RunningRooms(
        by_phase=by_phase, margin=workload.allocator_margin, runs=runs, main_needs_bytes=main_needs_bytes
    )

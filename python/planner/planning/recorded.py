"""Recordings for a plan: of the live model, or of one that transformers builds without weights."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from planner.checkpoint.building import without_quantization
from planner.checkpoint.opened import Opened
from planner.choices import Phase
from planner.errors import InvalidInputError, RecordingError
from planner.memory.demands import Demands
from planner.memory.tape import PHASE, Tape
from planner.memory.vectors import demands_of
from planner.settings.workload import Workload

__all__ = ["Recorded", "recorded"]


@dataclass(frozen=True, kw_only=True)
class Recorded:
    """What recordings tell.

    Args:
        tapes: the recordings; none where nothing was recorded.
        main_needs_bytes: what the model's caller needs beside it where its inputs lie; in the demands of the first block.
        note: why there are none, or what was assumed, where that is worth knowing.
    """

    tapes: tuple[Tape, ...] = ()
    main_needs_bytes: int = 0
    note: str = ""

    def demands(self) -> Demands:
        """What blocks need. Cost: O(events)."""
        found = demands_of(self.tapes, main_needs_bytes=self.main_needs_bytes)
        return replace(found, notes=(*found.notes, self.note)) if self.note else found

    def by_phase(self) -> dict[Phase, Demands]:
        """The same for each phase by itself. Cost: O(events)."""
        phases: tuple[Phase, ...] = ("prefill", "decode")
        return {
            phase: replace(self, tapes=tuple(_of_phase(tape, phase) for tape in self.tapes)).demands()
            for phase in phases
        }


def recorded(
    opened: Opened,
    workload: Workload,
    blocks: Sequence[str],
    *,
    fingerprint: str,
    dtype: str | None = None,
    special_dtypes: Mapping[str, str] | None = None,
) -> Recorded:
    """Records a model under its workload, where a recording is at hand.

    That is a live model; or files whose class transformers has, where it is loaded already: planning loads neither it nor torch.

    Args:
        opened: the model.
        workload: what it will be run on.
        blocks: names of what is placed.
        fingerprint: a digest of its modules and sizes.
        dtype, special_dtypes: what it will be loaded as.

    Raises:
        InvalidInputError: ``workload.inputs`` that its forward does not take.

    Cost: see :func:`planner.memory.recording.workloads.record`; recordings are kept in this process.
    """
    # Quantised modules run on accelerators alone, and are recorded as those that they stand for.
    model = opened.live() if opened.live is not None and not opened.quantization else None
    try:
        if model is None:
            model = _skeleton(opened)
        if model is None:
            return Recorded()
        return _of(model, opened, workload, blocks, fingerprint, dtype, special_dtypes or {})
    except RecordingError as error:
        return Recorded(note=error.message)
    except InvalidInputError as error:
        if workload.inputs:
            raise
        return Recorded(note=error.message)


def _of(
    model: Any,
    opened: Opened,
    workload: Workload,
    blocks: Sequence[str],
    fingerprint: str,
    dtype: str | None,
    special_dtypes: Mapping[str, str],
) -> Recorded:
    from planner.memory.recording.converted import converted
    from planner.memory.recording.kept import state_of
    from planner.memory.recording.workloads import generation_bytes, record

    made = converted(model, dtype, special_dtypes)
    said = (
        fingerprint,
        type(model).__qualname__,
        # A skeleton is all of its class and configuration; of a live model, attributes may say otherwise.
        state_of(model) if _is_live(model, opened) else "",
        json.dumps(dict(opened.configuration), sort_keys=True, default=repr),
        f"{dtype} {sorted(special_dtypes.items())}",
    )
    # A recording that is kept is of the classes; what was put in the place of a forward is recorded each time.
    key = None if _is_changed(made) else "\n".join(said)
    tapes = record(made, blocks, workload, fingerprint=key)
    masks = (
        f"values of masks are taken for those of prompts with{'' if workload.is_padded else 'out'} padding"
    )
    return Recorded(
        tapes=tapes,
        main_needs_bytes=generation_bytes(made, workload) if workload.logits == "last" else 0,
        note=masks if any(tape.assumed for tape in tapes) else "",
    )


def _is_live(model: Any, opened: Opened) -> bool:
    return opened.live is not None and opened.live() is model


def _of_phase(tape: Tape, phase: Phase) -> Tape:
    """The tape with the forwards of one phase as its phases; what was before is there, and is not told."""
    told = tuple(event for event in tape.events if event[0] != PHASE or event[1].startswith(phase))
    return replace(tape, events=told)


def _is_changed(model: Any) -> bool:
    """Whether some module has a forward of its own, or hooks, as what is dispatched has."""
    return "hf_device_map" in vars(model) or any(
        "forward" in vars(module) or module._forward_hooks or module._forward_pre_hooks
        for module in model.modules()
    )


def _skeleton(opened: Opened) -> Any:
    """The model of a configuration without weights, where transformers is loaded; None where it is not.

    Raises:
        RecordingError: transformers does not build it.
    """
    name = _class_name(opened)
    if name is None or "transformers" not in sys.modules or "torch" not in sys.modules:
        return None
    from planner.checkpoint.describe import meta_model

    try:
        return meta_model(name, without_quantization(opened.configuration), "")
    except ValueError as error:
        raise RecordingError(f"{name} is not recorded: {error}", block="", operator="") from error


def _class_name(opened: Opened) -> str | None:
    """The class of a model in files, or of a live one that is quantised."""
    live = None if opened.live is None else opened.live()
    if live is not None:
        return type(live).__name__
    named = opened.configuration.get("architectures")
    if opened.kind == "module" or not (isinstance(named, list) and named):
        return None
    return named[0] if isinstance(named[0], str) else None

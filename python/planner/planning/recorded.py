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
from planner.memory.tape import RunBytes, Tape
from planner.memory.vectors import demands_of
from planner.settings.workload import Workload

__all__ = ["Recordable", "Recorded", "note_of", "recordable", "recorded"]


@dataclass(frozen=True, kw_only=True)
class Recorded:
    """What recordings tell.

    Args:
        runs: what was recorded; none where nothing was.
        main_needs_bytes: what the model's caller needs beside it where its inputs lie; in the demands of the first block.
        note: why there are none, or what was assumed, where that is worth knowing.
    """

    runs: tuple[RunBytes, ...] = ()
    main_needs_bytes: int = 0
    note: str = ""

    def demands(self, kind: str = "") -> Demands:
        """What blocks need, in phases whose names begin with ``kind``. Cost: O(events)."""
        found = demands_of(self.runs, main_needs_bytes=self.main_needs_bytes, kind=kind)
        return replace(found, notes=(*found.notes, self.note)) if self.note else found

    def by_phase(self) -> dict[Phase, Demands]:
        """The same for each phase by itself. Cost: O(events)."""
        phases: tuple[Phase, ...] = ("prefill", "decode")
        return {phase: self.demands(phase) for phase in phases}


@dataclass(frozen=True, slots=True)
class Recordable:
    """A model that can be recorded: a live one, or one that transformers has built without weights.

    Args:
        model: in the types that it will be loaded in.
        blocks: names of what is placed.
        fingerprint: under which recordings are kept; None where each is made anew.
    """

    model: Any
    blocks: tuple[str, ...]
    fingerprint: str | None

    def tapes(self, workload: Workload) -> tuple[Tape, ...]:
        """Recordings of a workload. Raises RecordingError, InvalidInputError."""
        from planner.memory.recording.workloads import record

        return record(self.model, self.blocks, workload, fingerprint=self.fingerprint)

    def told(self, tapes: Sequence[Tape], workload: Workload) -> Recorded:
        """What recordings of a workload tell."""
        from planner.memory.recording.workloads import generation_bytes

        beside = generation_bytes(self.model, workload)
        return Recorded(
            runs=tuple(tape.run for tape in tapes), main_needs_bytes=beside, note=note_of(tapes, workload)
        )


def note_of(tapes: Sequence[Tape], workload: Workload) -> str:
    """What was assumed in recordings."""
    if not any(tape.assumed for tape in tapes):
        return ""
    return f"values of masks are taken for those of prompts with{'' if workload.is_padded else 'out'} padding"


def recordable(
    opened: Opened,
    blocks: Sequence[str],
    *,
    fingerprint: str,
    dtype: str | None = None,
    special_dtypes: Mapping[str, str] | None = None,
) -> Recordable | None:
    """A model to record, where one is at hand.

    That is a live model; or files whose class transformers has, where it is loaded already: planning loads neither it nor torch.

    Args:
        opened: the model.
        blocks: names of what is placed.
        fingerprint: a digest of its modules and sizes.
        dtype, special_dtypes: what it will be loaded as.

    Raises:
        RecordingError: transformers does not build it.
    """
    # Quantised modules run on accelerators alone, and are recorded as those that they stand for.
    model = opened.live() if opened.live is not None and not opened.quantization else None
    if model is None:
        model = _skeleton(opened)
    if model is None:
        return None
    from planner.memory.recording.converted import converted
    from planner.memory.recording.kept import state_of

    special = special_dtypes or {}
    made = converted(model, dtype, special)
    said = (
        fingerprint,
        type(model).__qualname__,
        # A skeleton is all of its class and configuration; of a live model, attributes may say otherwise.
        state_of(model) if _is_live(model, opened) else "",
        json.dumps(dict(opened.configuration), sort_keys=True, default=repr),
        f"{dtype} {sorted(special.items())}",
    )
    # A recording that is kept is of the classes; what was put in the place of a forward is recorded each time.
    return Recordable(made, tuple(blocks), None if _is_changed(made) else "\n".join(said))


def recorded(
    opened: Opened,
    workload: Workload,
    blocks: Sequence[str],
    *,
    fingerprint: str,
    dtype: str | None = None,
    special_dtypes: Mapping[str, str] | None = None,
) -> Recorded:
    """Records a model under its workload, where one is at hand.

    Args:
        opened, blocks, fingerprint, dtype, special_dtypes: as of :func:`recordable`.
        workload: what it will be run on.

    Raises:
        InvalidInputError: ``workload.inputs`` that its forward does not take.

    Cost: see :func:`planner.memory.recording.workloads.record`; recordings are kept in this process.
    """
    try:
        model = recordable(
            opened, blocks, fingerprint=fingerprint, dtype=dtype, special_dtypes=special_dtypes
        )
        return Recorded() if model is None else model.told(model.tapes(workload), workload)
    except RecordingError as error:
        return Recorded(note=error.message)
    except InvalidInputError as error:
        if workload.inputs:
            raise
        return Recorded(note=error.message)


def _is_live(model: Any, opened: Opened) -> bool:
    return opened.live is not None and opened.live() is model


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

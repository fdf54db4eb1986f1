"""A model and settings, understood once: what every strategy plans."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any

from planner.checkpoint.source import Opened
from planner.choices import FilesAsDisk, ShareCounting
from planner.config import Resolved
from planner.devices.budgets import DeviceBudget, device_budgets
from planner.devices.keys import DeviceKey
from planner.errors import InfeasibleError
from planner.known_names import KnownNames
from planner.memory.demands import Demands
from planner.model.blocks import Blocks
from planner.model.constraints import Constraints
from planner.model.globs import matched_names, require_names
from planner.model.layout import Layout
from planner.model.parts import stateless_parts
from planner.planning.block_bytes import block_bytes
from planner.planning.computers import memory_of_computers, require_computers
from planner.planning.engines import require_runs, with_both_ends
from planner.planning.formats import SmallerFormats, loaded_as
from planner.planning.told_settings import provenance, setting_values
from planner.planning.understanding import no_split_classes, settings_stack, understood
from planner.plans.parts import (
    Account,
    PredictedPeaks,
    Reason,
    Shortfall,
    Source,
    doubts,
)
from planner.settings.dtypes import FLOATS
from planner.settings.schema import Settings

if TYPE_CHECKING:
    from planner.planning.rooms import RunModel
    from planner.planning.running import RunningRooms


@dataclass(frozen=True)
class Problem:
    """What is to be planned.

    Args:
        resolved: the settings.
        opened: the model.
        layout: the model with no-split classes, dtypes and ties.
        containers: modules that only hold others; never blocks.
        smaller: formats in which the model would be smaller.
        budgets: bytes by device; empty for what is detected.
        has_own_budgets: the budgets are one row of many, in place of what the settings say.
        files_as_disk: when the disk is there without a limit, because it is the files that the model is loaded from: never,
            where no budgets are said, or wherever none is said of the disk.
        known_rooms: what was found for the workload, by blocks; the same for all budgets.
    """

    resolved: Resolved[Settings]
    opened: Opened
    layout: Layout
    containers: tuple[str, ...]
    smaller: SmallerFormats
    budgets: Mapping[DeviceKey, int]
    has_own_budgets: bool = False
    files_as_disk: FilesAsDisk = "never"
    shares: ShareCounting = "in_needs"
    known_rooms: dict[tuple[str, ...], RunningRooms] = field(default_factory=dict, compare=False, repr=False)

    @classmethod
    def of(
        cls,
        source: Any,
        config: Any,
        settings: Mapping[str, Any],
        checkpoint: str | os.PathLike[str] | None,
        *,
        remote: bool = False,
    ) -> Problem:
        """The problem that the arguments of `plan()` mean. Raises what :func:`planner.planning.plan` raises."""
        resolved, opened = understood(source, checkpoint, settings_stack(config, settings), remote=remote)
        chosen = resolved.config
        if chosen.engine is not None:
            require_runs(chosen)
            opened = with_both_ends(opened, chosen.engine)
        classes, containers = no_split_classes(opened.tree, chosen.no_split_module_classes)
        layout, opened = loaded_as(
            opened,
            chosen.dtype,
            special_dtypes=chosen.special_dtypes,
            no_split=classes,
            containers=containers,
        )
        require_names(layout, "special_dtypes", list(chosen.special_dtypes))
        require_names(layout, "no_split_modules", list(chosen.no_split_modules))
        matched_names(layout, "keep_together", [name for group in chosen.keep_together for name in group])
        smaller = SmallerFormats(opened, chosen.special_dtypes, layout)
        problem = cls(resolved, opened, layout, tuple(containers), smaller, chosen.max_memory or {})
        problem.constraints.require_devices()  # slips are told before torch is imported to find devices
        return problem

    def with_budgets(self, row: Mapping[DeviceKey, int]) -> Problem:
        """The same problem for one row of many budgets."""
        return replace(self, budgets=row, has_own_budgets=True)

    @property
    def settings(self) -> Settings:
        """The values of the settings."""
        return self.resolved.config

    @cached_property
    def device_budgets(self) -> tuple[DeviceBudget, ...]:
        """Devices with budgets, in order of preference; free memory is asked for here."""
        known = {} if self.budgets else memory_of_computers(self.settings)
        found = device_budgets(self.budgets, self.settings.headroom, self.settings.offload_folder, known)
        require_computers(found, self.settings)
        if not self._has_files_as_disk:
            return found
        whole_bytes = -(-self.layout.columns.total_bits // 8)
        origin = "detected: the checkpoint's own files"
        files = DeviceBudget(device="disk", budget_bytes=whole_bytes, headroom=0, origin=origin)
        return (*(budget for budget in found if budget.device != "disk"), files)

    @property
    def _has_files_as_disk(self) -> bool:
        if self.files_as_disk == "unless_named":
            return "disk" not in self.budgets
        return self.files_as_disk == "without_budgets" and not self.budgets

    @property
    def _own_budgets(self) -> Mapping[DeviceKey, int] | None:
        """Those of one row of many; None where the settings say them."""
        return self.budgets if self.has_own_budgets else None

    @cached_property
    def constraints(self) -> Constraints:
        """What is wanted of single modules. Raises InvalidConstraintError."""
        chosen = self.settings
        return Constraints.of(
            self.layout, pin=chosen.pin, forbid=chosen.forbid, keep_together=chosen.keep_together
        )

    def blocks(
        self, split: Sequence[str] = (), *, in_parts: bool | None = None, parts: Sequence[str] | None = None
    ) -> Blocks:
        """The model in blocks.

        Args:
            split: blocks that are taken apart.
            in_parts: whether what keeps nothing is a block of its own; None for what the settings say.
            parts: what of blocks is a block of its own, where that is known.
        """
        if parts is not None:
            return self._blocks(split, parts)
        whole = self._blocks(split)
        if not (self.settings.granularity == "part" if in_parts is None else in_parts):
            return whole
        return self._blocks(split, stateless_parts(whole))

    def layers(self) -> Blocks:
        """The model in whole layers, whatever is cut of them."""
        return Blocks(self.layout, no_split=self.settings.no_split_modules, split=self.containers)

    def _blocks(self, split: Sequence[str], parts: Sequence[str] = ()) -> Blocks:
        return Blocks(
            self.layout,
            granularity="expert" if self.settings.granularity == "expert" else "block",
            no_split=self.settings.no_split_modules,
            split=(*self.containers, *split),
            apart=(*self.constraints.apart, *parts),
            keep_together=self.constraints.keep_together,
        )

    def running_rooms(self, blocks: Blocks) -> RunningRooms | None:
        """What the workload asks for beside weights; None without one. Raises InvalidInputError, UnknownMemoryError."""
        workload = self.settings.workload
        if workload is None:
            return None
        # Few plans have a workload, and none without one pays for this.
        from planner.planning.rooms import rooms_for

        if blocks.names not in self.known_rooms:
            self.known_rooms[blocks.names] = rooms_for(self.run_model(), workload, blocks)
        found = self.known_rooms[blocks.names]
        return found if found.shares == self.shares else replace(found, shares=self.shares)

    def run_model(self) -> RunModel:
        """The model as it will run. Raises InvalidInputError for one that is divided among processes."""
        from planner.planning.divided import require_undivided
        from planner.planning.rooms import RunModel

        require_undivided(self.opened)

        chosen = self.settings
        return RunModel(
            opened=self.opened,
            loaded_as=chosen.dtype if chosen.dtype in FLOATS else None,
            packed_as=None if chosen.dtype in FLOATS else chosen.dtype,
            dtype=chosen.model.dtype,
            special_dtypes=chosen.special_dtypes,
            longest_tokens=chosen.model.max_position_embeddings,
        )

    def account(
        self,
        blocks: Blocks,
        maps: tuple[Mapping[str, DeviceKey], Mapping[str, DeviceKey]],
        *,
        reasons: Callable[[], tuple[Reason, ...]],
        shortfall: Callable[[], Shortfall | None],
        minimum_bytes: Callable[[], Mapping[DeviceKey, int | None]],
        demands: Callable[[], Demands | None] = lambda: None,
        predicted_peaks: Callable[[], PredictedPeaks] = dict,
    ) -> Account:
        """The story of a plan of this problem, with its device map and execution map and what its strategy says of it."""
        return Account(
            source=partial(_source, blocks, self.opened, self.settings.dtype),
            names=partial(_names, self.opened),
            block_bytes=partial(block_bytes, blocks, *maps),
            reasons=reasons,
            shortfall=partial(self._shortfall, shortfall),
            minimum_bytes=minimum_bytes,
            settings=partial(setting_values, self.resolved, self._own_budgets),
            provenance=partial(provenance, self.resolved, self._own_budgets),
            demands=demands,
            predicted_peaks=predicted_peaks,
        )

    def noted(self, error: InfeasibleError) -> InfeasibleError:
        """The error with what is to be known of the sizes that it compares, and formats that are smaller."""
        fields = {**error.fields, "smaller_formats": self.smaller}
        return InfeasibleError("; ".join((error.message, *doubts(self.opened.notes))), **fields)

    def _shortfall(self, shortfall: Callable[[], Shortfall | None]) -> Shortfall | None:
        found = shortfall()
        return None if found is None else replace(found, smaller_formats=self.smaller)


def _source(blocks: Blocks, opened: Opened, dtype: object) -> Source:
    columns = blocks.layout.columns
    return Source(
        kind=opened.kind,
        fingerprint=columns.fingerprint(),
        blocks=blocks.block_count,
        total_bytes=-(-columns.total_bits // 8),
        notes=opened.notes,
        name=opened.name,
        format=opened.format(dtype),
        layers=opened.tree.columns.layer_count(),
    )


def _names(opened: Opened) -> KnownNames:
    return KnownNames.of(opened.tree.columns.name_kinds())

"""A model and settings, understood once: what every strategy plans."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any, Final

from planner.checkpoint.source import Opened, open_source
from planner.choices import FilesAsDisk, RankName
from planner.config import Resolved, Stack
from planner.config.problem import Origin, Rank, path_text
from planner.config.resolved_node import ResolvedNode
from planner.devices.budgets import DeviceBudget, device_budgets
from planner.devices.keys import DeviceKey
from planner.errors import InfeasibleError, InvalidConfigError
from planner.known_names import KnownNames
from planner.memory.demands import Demands
from planner.model.blocks import Blocks, expand_classes
from planner.model.constraints import Constraints
from planner.model.globs import matched_names, require_names
from planner.model.layout import Layout, repeated
from planner.model.parts import stateless_parts
from planner.model.tree import ModuleTree
from planner.planning.block_bytes import block_bytes
from planner.planning.formats import SmallerFormats, loaded_as
from planner.plans.parts import (
    Account,
    DevicePlan,
    DeviceUsage,
    PredictedPeaks,
    Reason,
    Setting,
    Shortfall,
    Source,
    doubts,
)
from planner.settings.dtypes import FLOATS
from planner.settings.schema import Settings
from planner.spelling import one_line, shown

if TYPE_CHECKING:
    from planner.planning.rooms import RunModel
    from planner.planning.running import RunningRooms

_RANK_NAMES: Final[Mapping[Rank, RankName]] = {
    Rank.DEFAULT: "default",
    Rank.COMPUTED: "computed",
    Rank.IMPORTED: "imported",
    Rank.USER: "user",
    Rank.DERIVED: "derived",
}

_CODE: Final = re.compile(r"(keyword arguments|import) at ")
_NO_FILES: Final = ("keyword arguments", "import", "environment", "command line argument", "live ")


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
        resolved, opened = _understood(source, checkpoint, settings_stack(config, settings), remote=remote)
        chosen = resolved.config
        classes, containers = _no_split_classes(opened.tree, chosen.no_split_module_classes)
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
        found = device_budgets(self.budgets, self.settings.headroom, self.settings.offload_folder)
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

    @cached_property
    def constraints(self) -> Constraints:
        """What is wanted of single modules. Raises InvalidConstraintError."""
        chosen = self.settings
        return Constraints.of(
            self.layout, pin=chosen.pin, forbid=chosen.forbid, keep_together=chosen.keep_together
        )

    def blocks(self, split: Sequence[str] = (), *, in_parts: bool | None = None) -> Blocks:
        """The model in blocks.

        Args:
            split: blocks that are taken apart.
            in_parts: whether what keeps nothing is a block of its own; None for what the settings say.
        """
        whole = self._blocks(split)
        if not (self.settings.granularity == "part" if in_parts is None else in_parts):
            return whole
        return self._blocks(split, stateless_parts(whole))

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
        return self.known_rooms[blocks.names]

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
            settings=self._setting_values,
            provenance=self._provenance,
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

    def _setting_values(self) -> dict[str, Setting]:
        found = {
            # A size is a number here, as all of a plan's bytes are; `written` gives it a unit, for files that people keep.
            _dotted(path): Setting(
                value=node.value if type(node.value) is int else node.written,
                rank=_RANK_NAMES[node.origin.rank],
            )
            for path, node in self._leaves()
        }
        if self.has_own_budgets:
            found.update(
                {f"max_memory.{key}": Setting(value=size, rank="user") for key, size in self.budgets.items()}
            )
        return dict(sorted(found.items()))

    def _provenance(self) -> dict[str, str]:
        return {_dotted(path): _said_by(node.origin) for path, node in self._leaves()}

    def _leaves(self) -> list[tuple[tuple[Any, ...], ResolvedNode]]:
        """The settings with one value each, without budgets that this problem replaces."""
        return [
            (path, node)
            for path, node in self.resolved.answers.items()
            if node.shape == "leaf" and not (self.has_own_budgets and path[0] == "max_memory")
        ]


def settings_stack(config: Any, settings: Mapping[str, Any]) -> Stack[Settings]:
    """The settings of one call: ``config``, with keywords on top."""
    stack: Stack[Settings] = Stack.of(Settings, config)
    return stack.set(**settings) if settings else stack


def _understood(
    source: Any, checkpoint: Any, stack: Stack[Settings], *, remote: bool
) -> tuple[Resolved[Settings], Opened]:
    """The settings with what the model says of itself, and the model.

    Wrong settings are said first, whatever is wrong with the model, and before any file of a model is read. A live model is
    opened first, so that its settings are resolved once: its facts stand below all that the user says, so settings that
    resolve with them resolve without them.
    """
    if checkpoint is not None or isinstance(source, str | os.PathLike):
        stack.resolve()
    try:
        opened = open_source(source, checkpoint, remote=remote)
    except Exception:
        stack.resolve()
        raise
    if opened.facts is None:
        return stack.resolve(), opened
    try:
        return stack.imported(opened.facts).resolve(), opened
    except InvalidConfigError as error:
        resolved = stack.resolve()
        note = f"the model's configuration makes no sense ({_first_problem(error)}); its facts are left out"
        return resolved, replace(opened, notes=(*opened.notes, note))


def _first_problem(error: InvalidConfigError) -> str:
    """What is wrong with which values, without the folder that they were read in."""
    problem = error.problems[0]
    values = [f"{path_text(each.path)} = {shown(each.value)}" for each in problem.words]
    return ", ".join((f"{path_text(problem.path)}: {problem.what}", *values))


def _said_by(origin: Origin) -> str:
    """Who said a value, without lines of code and folders: these differ where the same is planned."""
    note = f" ({origin.note})" if origin.note else ""
    rank = origin.rank.name.lower()
    if origin.rank not in (Rank.IMPORTED, Rank.USER):
        return one_line(f"{rank}{note}")
    code = _CODE.match(origin.where)
    where = code[1] if code else origin.where
    is_file = not where.startswith(_NO_FILES)
    return one_line(f"{rank} · {os.path.basename(where) if is_file else where}{note}")


def _no_split_classes(tree: ModuleTree, named: Sequence[str]) -> tuple[list[str], list[str]]:
    """The classes whose modules stay whole, and the modules that only hold others: of the user, of the model, or guessed."""
    classes = expand_classes(tree.columns, named)
    if classes:
        return classes, []
    if tree.no_split_classes:  # a model may name classes that it does not have
        return tree.columns.derived_classes(list(tree.no_split_classes))[0], []
    return repeated(tree)


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


def _dotted(path: tuple[Any, ...]) -> str:
    return ".".join(map(str, path))


def device_plan(
    budget: DeviceBudget, usage: DeviceUsage, reserved_bytes: int, buffer_bytes: int = 0
) -> DevicePlan:
    """A device as it stands in a plan, with what is kept free there for offloaded blocks, and what of these stays."""
    return DevicePlan(
        id=budget.device,
        kind=budget.kind,
        pool=budget.pool,
        budget_bytes=budget.budget_bytes,
        headroom_bytes=min(budget.headroom_bytes, budget.budget_bytes),
        used_bytes=usage.used_bytes,
        reserved_bytes=reserved_bytes,
        free_bytes=max(0, budget.capacity_bytes - usage.used_bytes - reserved_bytes - buffer_bytes),
        buffer_bytes=buffer_bytes,
        origin=budget.origin,
        name=budget.name,
    )


def offloaded_bytes(devices: Sequence[DevicePlan]) -> dict[str, int]:
    """Bytes by tier; where there is no accelerator, what lies on the cpu runs there."""
    on = {"cpu": 0, "disk": 0}
    has_accelerator = False
    for device in devices:
        if device.kind in on:
            on[device.kind] += device.used_bytes
        elif device.budget_bytes and device.budget_bytes > device.headroom_bytes:
            has_accelerator = True
    return {"cpu": on["cpu"] if has_accelerator else 0, "disk": on["disk"]}

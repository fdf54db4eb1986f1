"""`plan()`: from a model and settings to a plan."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from typing import TYPE_CHECKING, Any, Unpack

from planner.checkpoint.source import Opened, open_source
from planner.config import Resolved, Stack
from planner.config.answer import ResolvedNode
from planner.config.layer import Layer
from planner.devices.budgets import DeviceBudget, device_budgets
from planner.devices.keys import DeviceKey, main_device, offload_tiers
from planner.errors import InfeasibleError, InvalidConfigError, InvalidConstraintError, InvalidDevicesError
from planner.model.blocks import Blocks, Constraints, allowed_devices, expand_classes, require_names
from planner.model.layout import Layout, repeated
from planner.model.tree import ModuleTree
from planner.plans.plan import Account, Certificate, DevicePlan, Plan, Setting, Source, doubts
from planner.settings.keywords import PlanSettings
from planner.settings.schema import Auto, Settings, read_budget_row
from planner.spelling import shown
from planner.strategies.auto import AutoAnswer, AutoSearch, solve_in_parts
from planner.strategies.modes import ModeProblem
from planner.strategies.sequential import Outcome

if TYPE_CHECKING:
    from torch import nn

__all__ = ["plan", "plan_many", "resolve_settings"]


def plan(
    source: nn.Module | ModuleTree | Opened | str | os.PathLike[str],
    /,
    *,
    checkpoint: str | os.PathLike[str] | None = None,
    config: Any = None,
    **settings: Unpack[PlanSettings],
) -> Plan:
    """Where a model goes: by default, as little offloaded as can be.

    Args:
        source: a live model, one that was flattened before, or the path of a checkpoint: a folder, a safetensors file, an
            index, or a ``config.json`` alone. Of files, nothing but headers is read.
        checkpoint: for a live model, files whose tensors' sizes count instead of the model's own.
        config: a file, a mapping, a ``Stack`` or a ``Resolved`` that ``settings`` go on top of. Nothing else is read.
        settings: as in :class:`planner.settings.schema.Settings`: ``max_memory``, ``strategy``, ``mode``, ``pin``, …

    Returns:
        The plan, with reasons and a certificate.

    Raises:
        InvalidConfigError: settings that are wrong, all at once. Fields: ``problems``.
        InvalidConstraintError: names that the model does not have, or constraints that contradict each other. Fields:
            ``names``, ``suggestions``.
        InvalidTreeError, InvalidDevicesError: a model or budgets that cannot be planned.
        CheckpointError: files that are missing, malformed or hostile. Fields: ``file``, ``reason``.
        InfeasibleError: no plan within budgets and mode. Fields: ``block``, ``shortfall_bytes``, ``more_bytes``,
            ``best_partial``, ``is_proven``.

    Guarantee: every tensor has a home; shared tensors have one; on every device used + reserved + headroom is within the
        budget; with ``auto``, nothing is offloaded if any assignment at all is found to fit, and the certificate says
        whether the offloaded bytes are proven least. The same problem gives the same plan.

    Cost: O(modules + tensors) when blocks fit in order; else at most ``search_steps`` steps more.

    Example:
        >>> import torch
        >>> model = torch.nn.Sequential(*(torch.nn.Linear(10, 10, bias=False) for _ in range(4)))
        >>> dict(plan(model, max_memory={0: 800, 1: 800}).device_map)
        {'0': 0, '1': 0, '2': 1, '3': 1}
    """
    return _Request.of(source, config, settings, checkpoint).plan()


def plan_many(
    source: nn.Module | ModuleTree | Opened | str | os.PathLike[str],
    budgets: Iterable[Mapping[Any, Any]],
    /,
    *,
    checkpoint: str | os.PathLike[str] | None = None,
    config: Any = None,
    **settings: Unpack[PlanSettings],
) -> list[Plan | InfeasibleError]:
    """Plans one model for many budgets, in the order given.

    Args:
        source: as in :func:`plan`; flattened once.
        budgets: device to budget, in bytes or words, one mapping for each plan.
        checkpoint: as in :func:`plan`.
        config: as in :func:`plan`.
        settings: as in :func:`plan`, without ``max_memory``.

    Returns:
        A plan for each, or the error where there is none.

    Raises:
        As :func:`plan`, for anything but a budget that is too small.

    Cost: the searches run on all cores with the GIL released.
    """
    rows = _budget_rows(budgets)
    if not rows:
        return []
    request = _Request.of(source, config, {**settings, "max_memory": rows[0]}, checkpoint)
    return request.plan_many(rows)


def resolve_settings(
    config: Any, settings: Mapping[str, Any], facts: Layer | None = None
) -> Resolved[Settings]:
    """The settings of one request: what the model says of itself, ``config``, keywords."""
    stack: Stack[Settings] = Stack.of(Settings, config)
    if facts is not None:
        stack = stack.imported(facts)
    return (stack.set(**settings) if settings else stack).resolve()


def _with_facts(
    resolved: Resolved[Settings], config: Any, settings: Mapping[str, Any], opened: Opened
) -> tuple[Resolved[Settings], Opened]:
    """The settings with what the model says of itself. Facts that make no sense stop no plan: a note says so."""
    if opened.facts is None:
        return resolved, opened
    try:
        return resolve_settings(config, settings, opened.facts), opened
    except InvalidConfigError as error:
        note = f"the model's configuration makes no sense ({error.problems[0]}); its facts are left out"
        return resolved, replace(opened, notes=(*opened.notes, note))


@dataclass(frozen=True)
class _Request:
    """A model and settings, understood."""

    resolved: Resolved[Settings]
    opened: Opened
    layout: Layout
    containers: tuple[str, ...]  # never blocks
    explicit_no_split: bool
    budgets: Mapping[DeviceKey, int]
    has_own_budgets: bool = False  # one row of many, in place of what the settings say

    @classmethod
    def of(cls, source: Any, config: Any, settings: Mapping[str, Any], checkpoint: Any = None) -> _Request:
        resolved = resolve_settings(config, settings)
        resolved, opened = _with_facts(resolved, config, settings, open_source(source, checkpoint))
        said = resolved.config
        tree = opened.tree
        classes = expand_classes(tree.columns, said.no_split_module_classes)
        own = not classes and tree.no_split_classes
        if own:  # a model may name classes that it does not have
            classes, _ = tree.columns.derived_classes(list(tree.no_split_classes))
        containers: list[str] = []
        if not classes and not own:
            classes, containers = repeated(tree)
        layout = Layout(
            tree,
            no_split=classes,
            dtype=said.dtype,
            special_dtypes=dict(said.special_dtypes),
            sizes=opened.sizes(said.dtype, said.special_dtypes),
            containers=containers,
        )
        require_names(layout, "special_dtypes", list(said.special_dtypes))
        require_names(layout, "no_split_modules", list(said.no_split_modules))
        require_names(layout, "keep_together", [name for group in said.keep_together for name in group])
        budgets = said.max_memory or {}
        is_explicit = bool(said.no_split_module_classes)
        return cls(resolved, opened, layout, tuple(containers), is_explicit, budgets)

    @property
    def settings(self) -> Settings:
        return self.resolved.config

    def plan(self) -> Plan:
        device_budgets = self._device_budgets()
        try:
            if not isinstance(self.settings.strategy, Auto):
                return self._sequential(device_budgets)
            return self._automatic(self._blocks(), device_budgets)
        except InfeasibleError as error:
            raise self.noted(error) from error

    def noted(self, error: InfeasibleError) -> InfeasibleError:
        """The error with what is to be known of the sizes that it compares."""
        return InfeasibleError("; ".join((error.message, *doubts(self.opened.notes))), **error.fields)

    def plan_many(self, rows: Sequence[Mapping[DeviceKey, int]]) -> list[Plan | InfeasibleError]:
        requests = [replace(self, budgets=row, has_own_budgets=True) for row in rows]
        if not isinstance(self.settings.strategy, Auto) or self.settings.granularity == "module":
            return [_or_error(request) for request in requests]
        blocks = self._blocks()
        device_budgets = [request._device_budgets() for request in requests]
        homes = cache(partial(self._homes, blocks))  # by devices: rows may name different ones
        searches = [self._search(blocks, each, homes(_devices(each))) for each in device_budgets]
        groups: dict[tuple[tuple[int, int], ...], list[int]] = {}
        for number, search in enumerate(searches):
            groups.setdefault(search.homes, []).append(number)
        results: dict[int, Any] = {}
        for same, numbers in groups.items():
            budgets_rows = [searches[number].row() for number in numbers]
            found = blocks.columns.solve_many(budgets_rows, list(same), searches[0].options())
            results.update(zip(numbers, found, strict=True))
        return [
            _read_or_error(request, search, results[number])
            for number, (request, search) in enumerate(zip(requests, searches, strict=True))
        ]

    def _automatic(self, blocks: Blocks, device_budgets: tuple[DeviceBudget, ...]) -> Plan:
        if self.settings.granularity == "module" and not self.explicit_no_split:
            names = [name for unit in blocks.unit_names for name in unit]
            search, answer = solve_in_parts(
                names, lambda split: self._search(self._blocks(split) if split else blocks, device_budgets)
            )
            return self.answered(search, answer)
        search = self._search(blocks, device_budgets)
        return self.answered(search, search.solve())

    def _homes(self, blocks: Blocks, devices: tuple[DeviceKey, ...]) -> tuple[tuple[int, int], ...]:
        said = self.settings
        constraints = Constraints(pin=said.pin, forbid=said.forbid)
        return tuple(allowed_devices(blocks, constraints, devices, said.mode))

    def _search(
        self,
        blocks: Blocks,
        device_budgets: tuple[DeviceBudget, ...],
        homes: tuple[tuple[int, int], ...] | None = None,
    ) -> AutoSearch:
        said = self.settings
        assert isinstance(said.strategy, Auto)
        return AutoSearch(
            blocks=blocks,
            device_budgets=device_budgets,
            homes=self._homes(blocks, _devices(device_budgets)) if homes is None else homes,
            fill=said.strategy.fill,
            search_steps=said.strategy.search_steps,
            mode=said.mode,
            execute_offloaded=said.execute_offloaded,
            staging_blocks=said.staging_blocks,
        )

    def answered(self, search: AutoSearch, answer: AutoAnswer) -> Plan:
        devices = tuple(
            _device_plan(budget, used, reserved)
            for budget, (used, reserved) in zip(search.device_budgets, answer.usage_bytes, strict=True)
        )
        return Plan(
            devices=devices,
            device_map=answer.device_map,
            execution_map=answer.execution_map,
            offloaded_bytes=_offloaded(devices),
            certificate=answer.certificate,
            account=Account(
                source=partial(_source, search.blocks, self.opened),
                reasons=answer.reasons,
                shortfall=answer.shortfall,
                minimum_bytes={device.id: None for device in devices if _is_idle(device)},
                settings=self.setting_values,
                provenance=self.provenance,
            ),
        )

    def _device_budgets(self) -> tuple[DeviceBudget, ...]:
        said = self.settings
        return device_budgets(self.budgets, said.headroom, said.offload_folder)

    def _blocks(self, split: Sequence[str] = ()) -> Blocks:
        said = self.settings
        return Blocks(
            self.layout,
            granularity="expert" if said.granularity == "expert" else "block",
            no_split=said.no_split_modules,
            split=(*self.containers, *split),
            keep_together=said.keep_together,
        )

    def _sequential(self, device_budgets: tuple[DeviceBudget, ...]) -> Plan:
        strategy = self.settings.strategy
        assert not isinstance(strategy, Auto)
        for name in ("pin", "forbid", "keep_together", "no_split_modules"):
            if getattr(self.settings, name):
                raise InvalidConstraintError(
                    f"{name} needs strategy 'auto'; accelerate's strategies know no constraints",
                    names=(name,),
                    suggestions=(),
                )
        problem = ModeProblem(
            layout=self.layout, device_budgets=device_budgets, strategy=strategy, mode=self.settings.mode
        )
        return _sequential_plan(self, problem, problem.solve())

    def setting_values(self) -> dict[str, Setting]:
        found = {
            _dotted(path): Setting(value=answer.written, rank=answer.origin.rank.name.lower())
            for path, answer in self._leaves()
        }
        if self.has_own_budgets:
            found.update(
                {f"max_memory.{key}": Setting(value=size, rank="user") for key, size in self.budgets.items()}
            )
        return dict(sorted(found.items()))

    def provenance(self) -> dict[str, str]:
        return {_dotted(path): str(answer.origin) for path, answer in self._leaves()}

    def _leaves(self) -> list[tuple[tuple[Any, ...], ResolvedNode]]:
        """Answers to the settings, without budgets that this request replaces."""
        return [
            (path, answer)
            for path, answer in self.resolved.answers.items()
            if answer.shape == "leaf" and not (self.has_own_budgets and path[0] == "max_memory")
        ]


def _budget_rows(budgets: Any) -> list[dict[DeviceKey, int]]:
    """Budgets of many plans, each read as ``max_memory`` of one. Raises InvalidDevicesError, InvalidConfigError."""
    is_list = isinstance(budgets, Iterable) and not isinstance(budgets, str | Mapping)
    if not is_list or getattr(budgets, "ndim", 1) == 0:  # an array of one number has no rows
        raise InvalidDevicesError(
            f"plan_many needs a list of budgets such as [{{0: '80GiB'}}, {{0: '40GiB'}}], got {shown(budgets)}",
            device=None,
        )
    return [_budget_row(row, number) for number, row in enumerate(budgets)]


def _budget_row(row: Any, number: int) -> dict[DeviceKey, int]:
    try:
        return read_budget_row(row)
    except ValueError:
        pass  # the settings say what is wrong; reading through them each time would take as long as a plan
    try:
        return dict(resolve_settings(None, {"max_memory": row}).config.max_memory or {})
    except InvalidConfigError as error:
        raise InvalidConfigError(
            f"budgets {number} of plan_many: {error.message}", problems=error.problems
        ) from error


def _devices(device_budgets: tuple[DeviceBudget, ...]) -> tuple[DeviceKey, ...]:
    return tuple(budget.device for budget in device_budgets)


def _dotted(path: tuple[Any, ...]) -> str:
    return ".".join(map(str, path))


def _or_error(request: _Request) -> Plan | InfeasibleError:
    try:
        return request.plan()
    except InfeasibleError as error:
        return error


def _read_or_error(request: _Request, search: AutoSearch, result: Any) -> Plan | InfeasibleError:
    try:
        return request.answered(search, search.read(result))
    except InfeasibleError as error:
        return request.noted(error)


def _sequential_plan(request: _Request, problem: ModeProblem, outcome: Outcome) -> Plan:
    used = {usage.device: usage for usage in outcome.usage}
    devices = tuple(
        _device_plan(
            budget,
            usage.used_bytes,
            min(usage.reserved_bytes, budget.capacity_bytes - usage.used_bytes),
        )
        for budget in problem.device_budgets
        for usage in [used[budget.device]]  # more may be wanted than there is
    )
    if "disk" not in {device.id for device in devices} and used["disk"].used_bytes:
        disk = DevicePlan(
            id="disk", kind="disk", pool=None, budget_bytes=None, headroom_bytes=0, used_bytes=used["disk"].used_bytes,
            reserved_bytes=0, free_bytes=None, origin="accelerate's strategies use disk without being asked",
        )  # fmt: skip
        devices = (*devices, disk)
    offloaded = _offloaded(devices)
    total = sum(offloaded.values())
    device_map = outcome.device_map()
    return Plan(
        devices=devices,
        device_map=device_map,
        execution_map=_execution_map(device_map),
        offloaded_bytes=offloaded,
        certificate=Certificate(
            proven=total == 0,
            lower_bound_bytes=0,
            gap_bytes=total,
            returns=0,
            returns_lower_bound=0,
            steps=0,
            stage=str(request.resolved.answers["strategy", "type"].written),
        ),
        account=Account(
            source=partial(_source, request._blocks(), request.opened),
            reasons=lambda: outcome.reasons,
            shortfall=None,
            minimum_bytes=partial(problem.minimum_bytes, outcome),
            settings=request.setting_values,
            provenance=request.provenance,
        ),
    )


def _execution_map(device_map: Mapping[str, DeviceKey]) -> dict[str, DeviceKey]:
    """Where offloaded parts run: accelerate's strategies keep room for them on the first accelerator that holds anything."""
    main = main_device(device_map.values())
    # Without an accelerator, the cpu runs what is on disk, as it does wherever nothing is said.
    return {name: main for name, key in device_map.items() if main != "cpu" and key in offload_tiers(main)}


def _source(blocks: Blocks, opened: Opened) -> Source:
    columns = blocks.layout.columns
    return Source(
        kind=opened.kind,
        fingerprint=columns.fingerprint(),
        blocks=blocks.block_count,
        total_bytes=-(-columns.total_bits // 8),
        notes=opened.notes,
    )


def _device_plan(budget: DeviceBudget, used_bytes: int, reserved_bytes: int) -> DevicePlan:
    return DevicePlan(
        id=budget.device,
        kind=budget.kind,
        pool=budget.pool,
        budget_bytes=budget.budget_bytes,
        headroom_bytes=min(budget.headroom_bytes, budget.budget_bytes),
        used_bytes=used_bytes,
        reserved_bytes=reserved_bytes,
        free_bytes=max(0, budget.capacity_bytes - used_bytes - reserved_bytes),
        origin=budget.origin,
    )


def _is_idle(device: DevicePlan) -> bool:
    """Whether an accelerator holds no weights."""
    return device.kind == "accelerator" and device.used_bytes == 0


def _offloaded(devices: Sequence[DevicePlan]) -> dict[str, int]:
    """Bytes by tier; where there is no accelerator, what lies on the cpu runs there."""
    on = {"cpu": 0, "disk": 0}
    has_accelerator = False
    for device in devices:
        if device.kind in on:
            on[device.kind] += device.used_bytes
        elif device.budget_bytes and device.budget_bytes > device.headroom_bytes:
            has_accelerator = True
    return {"cpu": on["cpu"] if has_accelerator else 0, "disk": on["disk"]}

"""`planner check`: whether a device map is right for a model."""

from __future__ import annotations

from dataclasses import asdict
from functools import partial

import click

from planner.checker.check import check, is_valid
from planner.checker.described import DescribedModule, model_from_sizes
from planner.checker.equation import unequal_budgets
from planner.checkpoint.source import Opened
from planner.cli.arguments import example_option, json_option, model_argument, remote_option
from planner.cli.exits import NEGATIVE, OK
from planner.cli.files import read_device_map
from planner.cli.notes import noted, write_notes
from planner.cli.output import write, write_json
from planner.cli.parsing import FILE, Argument, Command
from planner.cli.settings import SettingsStack, remark_file, settings_of, takes_settings
from planner.cli.sources import open_model
from planner.cli.waiting import saying
from planner.memory.demands import Demands
from planner.planning.formats import loaded_as
from planner.planning.margins import margin_bytes
from planner.planning.needs import demands
from planner.plans.plan import Plan
from planner.plans.workload import workload_of
from planner.settings.schema import Settings


@click.command(cls=Command)
@model_argument
@click.argument(
    "device_map",
    cls=Argument,
    metavar="MAP",
    type=FILE,
    required=False,
    about="A plan, or a JSON object from names to devices; - is standard input.",
)
@example_option
@remote_option
@json_option
@takes_settings
@click.pass_context
def command(
    context: click.Context,
    model: str | None,
    device_map: str | None,
    example: str | None,
    remote: bool,
    as_json: bool,
) -> int:
    """List what is wrong with a device map.

    Exit code 1 if anything is. Every tensor must be covered, names of one tensor must share a device, classes named with --no-split must not be
    split. Budgets, element types and the workload are those of the options, else the plan's own; with --context, budgets must have room for
    running, too.
    """
    stack = settings_of(context)
    remark_file()
    if example is not None and device_map is None:
        model, device_map = None, model  # an example stands in the place of the model
    if device_map is None:
        raise click.UsageError("Missing argument 'MAP'." if model or example else "Missing argument 'MODEL'.")
    judged, own, made = read_device_map(device_map)
    settings = stack.imported(own).resolve().config
    opened = open_model(model, example, remote=remote)
    workload = settings.workload or (None if made is None else workload_of(made))
    running = _needs(opened, stack, settings, made)
    findings = check(
        _described(opened, settings),
        judged,
        dict(settings.max_memory or {}) or None,
        no_split_module_classes=settings.no_split_module_classes,
        running=running,
        execution_map=None if made is None else made.execution_map,
        margin=partial(margin_bytes, said=None if workload is None else workload.allocator_margin),
        offload_buffers=settings.offload_buffers,
    )
    findings = (*findings, *unequal_budgets(asdict(device) for device in (made.devices if made else ())))
    valid = is_valid(findings)
    if as_json:
        write_json({"valid": valid, "findings": findings, **noted(opened.notes)})
    else:
        for finding in findings:
            write(f"note: {finding}" if finding.is_note else str(finding))
        write_notes(opened.notes)
        budgets = "" if settings.max_memory else "; budgets were not judged, as -d named none"
        write(
            f"{'valid' if valid else 'not valid'}{'' if running is None else ', running included'}{budgets}"
        )
    return OK if valid else NEGATIVE


def _needs(opened: Opened, stack: SettingsStack, settings: Settings, made: Plan | None) -> Demands | None:
    """What running takes: as the options say, else as the plan does; None where neither has a workload."""
    if settings.workload is None:
        return None if made is None else made.demands
    with saying("planning"):
        return demands(opened, config=stack)


def _described(opened: Opened, settings: Settings) -> DescribedModule:
    """The model in plain words, since the checker shares nothing with the planner."""
    layout, _ = loaded_as(opened, settings.dtype, special_dtypes=settings.special_dtypes)
    sizes = layout.stored_sizes()
    _, tensors = opened.tree.uncovered([])
    buffers = layout.stored_sizes("buffers").keys() & set(tensors)
    return model_from_sizes(
        {name: int(sizes.get(name, 0)) for name in tensors},
        tied=layout.tied_groups(),
        classes=dict(opened.tree.columns.module_classes()),
        buffers=buffers,
        unsaved=buffers - set(opened.tree.uncovered([], "saved")[1]),
    )

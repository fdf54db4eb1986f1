"""What the arguments of a call mean: settings with what the model says of itself, and the model."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from planner.checkpoint.source import Opened, open_source
from planner.config import Resolved, Stack
from planner.config.problem import path_text
from planner.devices.machine import Machine
from planner.errors import InvalidConfigError
from planner.model.blocks import expand_classes
from planner.model.layout import repeated
from planner.model.tree import ModuleTree
from planner.settings.schema import Settings
from planner.spelling import shown

__all__ = ["no_split_classes", "settings_stack", "understood"]


def settings_stack(config: Any, settings: Mapping[str, Any]) -> Stack[Settings]:
    """The settings of one call: ``config``, with keywords on top."""
    if isinstance(config, Mapping):
        config = _with_machine(config)
    stack: Stack[Settings] = Stack.of(Settings, config)
    return stack.set(**_with_machine(settings)) if settings else stack


def _with_machine(settings: Mapping[str, Any]) -> Mapping[str, Any]:
    """A machine that was said as plain data, as its text: to the settings, a mapping is one of settings.

    Raises InvalidInputError: no machine.
    """
    said = settings.get("machine")
    if not isinstance(said, Mapping):
        return settings
    return {**settings, "machine": Machine.from_data(said)}


def understood(
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


def no_split_classes(tree: ModuleTree, named: Sequence[str]) -> tuple[list[str], list[str]]:
    """The classes whose modules stay whole, and the modules that only hold others: of the user, of the model, or guessed."""
    classes = expand_classes(tree.columns, named)
    if classes:
        return classes, []
    if tree.no_split_classes:  # a model may name classes that it does not have
        return tree.columns.derived_classes(list(tree.no_split_classes))[0], []
    return repeated(tree)

"""Files that commands read and write: plans, device maps, rows of budgets; all bounded, all with clear errors."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from planner.config.document import without_repetition
from planner.devices.keys import DeviceKey
from planner.devices.nodes import plan_device
from planner.errors import InvalidInputError
from planner.plans.plan import Plan
from planner.settings.schema import read_budget_row
from planner.settings.sizes import refuse_bare_number
from planner.spelling import shown

_MOST_CHARACTERS: Final = 1 << 26  # far beyond the plan of a hundred thousand modules

STANDARD_STREAM: Final = "-"
"""Instead of a file: standard input where something is read, standard output where it is written."""


def read_plan(path: str) -> Plan:
    """The plan in a file, or on standard input for "-".

    Raises:
        InvalidInputError: unreadable, larger than 64 Mi characters, or not a plan. Fields: ``file``.
    """
    return _plan(path, _read_text(path))


def read_device_map(path: str) -> tuple[Mapping[str, Any], dict[str, Any], Plan | None]:
    """A device map: that of a plan, or an object of names and devices; and what a plan says that it was made for.

    Returns:
        The map, and settings by name that decide how it is judged: budgets and element types; of a bare map, none; and
        the plan, if it is one.

    Raises:
        InvalidInputError: unreadable, or neither. Fields: ``file``.
    """
    text = _read_text(path)
    data = _read_json(path, text)
    if isinstance(data, dict) and "schema" in data:
        made = _plan(path, text)
        return made.device_map, _judged_by(made), made
    is_map = isinstance(data, dict) and all(isinstance(device, int | str) for device in data.values())
    if not is_map:
        raise InvalidInputError(
            f'{path}: expected a plan, or an object from names to devices such as {{"lm_head": 0}}',
            file=path,
        )
    return dict(data), {}, None


def _judged_by(made: Plan) -> dict[str, Any]:
    start = "special_dtypes."
    special = {
        name.removeprefix(start): each.value for name, each in made.settings.items() if name.startswith(start)
    }
    dtype = made.settings.get("dtype")
    budgets = {device.id: device.budget_bytes for device in made.devices if device.budget_bytes is not None}
    found = {"max_memory": budgets, "special_dtypes": special, "dtype": dtype.value if dtype else None}
    return {name: value for name, value in found.items() if value}


@dataclass(frozen=True, slots=True)
class BudgetRow:
    """One line of a fleet: what it is called, if it has a name, and its budgets in bytes."""

    name: str | None
    budgets: Mapping[DeviceKey, int]


def read_budget_rows(path: str) -> list[BudgetRow]:
    """Budgets, one JSON object in each line, each with a "name" if it wants; empty lines are skipped.

    Raises:
        InvalidInputError: no line at all, or one that holds no budgets. Fields: ``file``, ``line``.
    """
    rows = []
    for number, line in enumerate(_read_text(path).splitlines(), start=1):
        if line.strip():
            rows.append(_budget_row(path, number, line))
    if not rows:
        raise InvalidInputError(
            f'{path}: holds no budgets; write one JSON object a line, such as {{"0": "80GiB", "cpu": "200GiB"}}',
            file=path,
        )
    return rows


def _budget_row(path: str, number: int, line: str) -> BudgetRow:
    where = f"{path}, line {number}"
    data = _read_json(where, line)
    name = data.pop("name", None) if isinstance(data, dict) else None
    if name is not None and not isinstance(name, str):
        raise InvalidInputError(f"{where}: a name is text, got {shown(name)}", file=path, line=number)
    if not isinstance(data, dict) or not data:
        raise InvalidInputError(
            f'{where}: expected budgets such as {{"0": "80GiB", "cpu": "200GiB"}}', file=path, line=number
        )
    try:
        for size in data.values():
            refuse_bare_number(size)
        row = {plan_device(device): size for device, size in read_budget_row(data).items()}
    except ValueError as error:
        raise InvalidInputError(f"{where}: {error}", file=path, line=number) from error
    if len(row) < len(data):
        raise InvalidInputError(f"{where}: one device is named twice", file=path, line=number)
    return BudgetRow(name, row)


def _read_json(where: str, text: str) -> Any:
    try:
        return json.loads(text, object_pairs_hook=without_repetition)
    except (ValueError, RecursionError) as error:
        raise InvalidInputError(f"{where}: not JSON: {error}", file=where) from error


def _plan(path: str, text: str) -> Plan:
    try:
        return Plan.from_json(text)
    except InvalidInputError as error:
        raise InvalidInputError(f"{path}: {error.message}", file=path) from error


def _read_text(path: str) -> str:
    try:
        if path == STANDARD_STREAM:
            if sys.stdin is None:  # the process was started with it closed
                raise ValueError("standard input is closed")
            text = sys.stdin.read(_MOST_CHARACTERS + 1)
        else:
            with open(path, encoding="utf-8") as stream:
                text = stream.read(_MOST_CHARACTERS + 1)
    except OSError as error:
        raise InvalidInputError(f"{path}: cannot be read: {error.strerror}", file=path) from error
    except ValueError as error:  # no UTF-8, a path with a zero byte, or no stream
        raise InvalidInputError(f"{path}: cannot be read: {error}", file=path) from error
    if len(text) > _MOST_CHARACTERS:
        raise InvalidInputError(f"{path}: larger than {_MOST_CHARACTERS} characters", file=path)
    return text


def write_file(path: str, text: str) -> None:
    """Writes a whole file, or standard output for "-".

    Raises:
        InvalidInputError: the place cannot be written. Fields: ``file``.
    """
    if path == STANDARD_STREAM:
        sys.stdout.write(text)
        return
    try:
        with open(path, "w", encoding="utf-8", errors="backslashreplace") as stream:
            stream.write(text)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InvalidInputError(f"{path}: cannot be written: {reason}", file=path) from error

"""`planner explain` and `planner diff`: what they say of plan files, and of files that are none."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import planner
from command_line import Command, answer


def test_explain_says_what_the_library_says(command: Command, plan_file: Callable[..., str]) -> None:
    made = planner.Plan.from_json(Path(plan_file()).read_text())
    done = command("explain", "plan.json", "layers.2.mlp")
    assert (done.exit_code, done.stdout) == (0, planner.explain(made, "layers.2.mlp", style="shell") + "\n")


def test_explain_answers_in_fields(command: Command, plan_file: Callable[..., str]) -> None:
    plan_file()
    done = answer(command("explain", "plan.json", "layers.3.mlp", "--json"))
    made = planner.Plan.from_json(Path("plan.json").read_text())
    home = next(device for name, device in made.device_map.items() if "layers.3".startswith(name))
    assert (done["name"], done["device"]) == ("layers.3.mlp", home)
    assert [reason["name"] for reason in done["reasons"]] == ["layers.3"] * len(done["reasons"])
    assert done["text"] == planner.explain(made, "layers.3.mlp", style="shell")


def test_explain_reads_standard_input(command: Command, plan_file: Callable[..., str]) -> None:
    text = Path(plan_file()).read_text()
    assert command("explain", "-", "head", stdin=text).stdout.startswith("head lies ")


def test_explain_of_a_name_that_is_not_there_suggests_another(
    command: Command, plan_file: Callable[..., str]
) -> None:
    plan_file()
    done = command("explain", "plan.json", "haed")
    assert (done.exit_code, done.stdout) == (2, "")
    assert "'haed'" in done.stderr
    error = answer(command("explain", "plan.json", "haed", "--json"))["error"]
    assert (error["type"], error["exit_code"]) == ("InvalidConstraintError", 2)
    assert error["fields"]["suggestions"] == ["head"]


def test_diff_of_equal_plans_is_silent(command: Command, plan_file: Callable[..., str]) -> None:
    plan_file("a.json")
    plan_file("b.json")
    done = command("diff", "a.json", "b.json")
    assert (done.exit_code, done.output) == (0, "")
    assert answer(command("diff", "a.json", "b.json", "--json"))["differs"] is False


def test_diff_lists_what_lies_elsewhere(command: Command, plan_file: Callable[..., str]) -> None:
    plan_file("a.json", {0: 3500, 1: 2000, "cpu": 9999})
    plan_file("b.json", {0: 9999, "cpu": 9999})
    left, right = (planner.Plan.from_json(Path(name).read_text()) for name in ("a.json", "b.json"))
    done = command("diff", "a.json", "b.json")
    assert done.exit_code == 1
    assert done.stdout == f"{left.diff(right)}\n"
    data = answer(command("diff", "a.json", "b.json", "--json"))
    assert data["differs"] is True
    assert [(row["name"], row["left"], row["right"]) for row in data["moved"]] == [
        (found.name, found.left, found.right) for found in left.diff(right)
    ]
    assert [row["device"] for row in data["usage"]] == [0, 1]


def edited(path: str, **words: Any) -> str:
    """The plan of a file with some of its parts replaced."""
    return json.dumps({**json.loads(Path(path).read_text()), **words})


REASON = {"rule": "resident", "name": "head", "device": 0, "needed_bytes": 1, "available_bytes": 2}

BAD = {
    "empty": "",
    "no JSON": "{",
    "a list": "[]",
    "a number": "7",
    "nested": "[" * 100_000,
    "another schema": '{"schema": "planner.device_map"}',
    "a later version": '{"schema": "planner.plan", "version": 3}',
    "parts missing": '{"schema": "planner.plan", "version": 2}',
}
BAD_PARTS: dict[str, dict[str, Any]] = {
    "devices that are text": {"devices": "0"},
    "a device without bytes": {"devices": [{"id": "0"}]},
    "bytes that are text": {"offloaded_bytes": {"cpu": "1", "disk": 0}},
    "a map that is a list": {"device_map": [["head", 0]]},
    "a device that is none": {"device_map": {"head": "moon"}},
    "a reason without fields": {"reasons": [{}]},
    "a rule that nobody knows": {"reasons": [{**REASON, "rule": "whim"}]},
    "needed bytes that are a list": {"reasons": [{**REASON, "needed_bytes": []}]},
    "a shortfall of text": {"shortfall": "much"},
    "a shortfall without bytes": {"shortfall": {"name": "head", "more_bytes": {"0": None}}},
    "a certificate of nulls": {"certificate": None},
    "origins that are numbers": {"provenance": {"dtype": 7}},
}


@pytest.mark.parametrize("text", BAD.values(), ids=BAD)
def test_what_is_no_plan_is_bad_input(command: Command, text: str) -> None:
    Path("plan.json").write_text(text)
    done = command("explain", "plan.json", "head")
    assert (done.exit_code, done.stdout) == (2, "")
    assert done.stderr.startswith("planner: plan.json: ")


@pytest.mark.parametrize("words", BAD_PARTS.values(), ids=BAD_PARTS)
def test_a_plan_with_one_bad_part_is_bad_input(
    command: Command, plan_file: Callable[..., str], words: dict[str, Any]
) -> None:
    Path("plan.json").write_text(edited(plan_file(), **words))
    assert command("explain", "plan.json", "head").exit_code == 2


@pytest.mark.parametrize("name", ["absent.json", ".", "/dev/zero"])
def test_a_file_that_cannot_be_read_is_bad_input(command: Command, name: str) -> None:
    done = command("diff", name, name)
    assert done.exit_code == 2
    assert done.stderr.startswith(f"planner: {name}: ")
    assert done.stderr.count(f"{name}: ") == 1


def test_a_plan_that_is_not_utf8_is_bad_input(command: Command) -> None:
    Path("plan.json").write_bytes(b"\xff\xfe{}")
    assert command("explain", "plan.json", "head").exit_code == 2


def test_names_cannot_command_the_terminal(command: Command, plan_file: Callable[..., str]) -> None:
    Path("plan.json").write_text(edited(plan_file(), device_map={"": 0}))
    done = command("explain", "plan.json", "a\x1b[31mb")
    assert "\x1b" not in done.output
    assert "a\\x1b[31mb" in done.stderr

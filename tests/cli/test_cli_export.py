"""`planner export`: a plan's file in the words of an engine, for people and for programs."""

from __future__ import annotations

from pathlib import Path

import pytest
from torch import nn

import planner
from command_line import Command, answer
from planner import export
from planner.cli.export import ENGINES


def two_stages() -> planner.Plan:
    parts = {
        "embed": nn.Embedding(9, 8),
        "layers": nn.ModuleList(nn.Linear(8, 8) for _ in range(4)),
        "head": nn.Linear(8, 9),
    }
    return planner.plan(nn.ModuleDict(parts), max_memory={0: 1160, 1: 700})


def test_every_engine_of_the_package_is_one_of_the_command() -> None:
    assert sorted(ENGINES) == sorted(set(export.__all__) - {"Command"})


@pytest.mark.parametrize("engine", sorted(set(ENGINES) - {"llama_cpp"}))
def test_it_says_what_the_library_says(command: Command, engine: str) -> None:
    made = two_stages()
    Path("plan.json").write_text(made.to_json())
    wanted = ENGINES[engine](made)
    assert command("export", "plan.json", "--to", engine).stdout == f"{wanted.text}\n"
    found = answer(command("export", "plan.json", "--to", engine, "--json"))
    assert found == {
        "engine": engine,
        "line": wanted.line,
        "env": dict(wanted.env),
        "args": list(wanted.args),
        "files": dict(wanted.files),
        "notes": list(wanted.notes),
    }


def test_a_plan_that_an_engine_cannot_have_is_bad_input(command: Command) -> None:
    Path("plan.json").write_text(two_stages().to_json())
    done = command("export", "plan.json", "--to", "llama_cpp")
    assert done.exit_code == 2 and "engine='llama_cpp'" in done.stderr
    assert command("export", "plan.json", "--to", "vlm").exit_code == 2
    assert command("export", "plan.json").exit_code == 2

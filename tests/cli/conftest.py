"""A command line in this process, in a folder of its own and an environment without settings."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

import planner
from command_line import Command, Model, write_llama
from planner.cli.app import app


@pytest.fixture(autouse=True)
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Commands read `./planner.yaml` and `PLANNER_…`; each test has neither unless it says so."""
    monkeypatch.chdir(tmp_path)
    for name in os.environ:
        if name.upper().startswith("PLANNER_"):
            monkeypatch.delenv(name)
    return tmp_path


@pytest.fixture
def command() -> Command:
    """Runs `planner` with the arguments given; nothing that it raises may come out."""
    runner = CliRunner()

    def run(*arguments: object, stdin: str | None = None) -> Result:
        done = runner.invoke(app, [str(argument) for argument in arguments], input=stdin)
        assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
        assert done.exit_code != 70, done.stderr
        return done

    return run


@pytest.fixture
def llama(own_folder: Path) -> str:
    """A folder with a small Llama."""
    return write_llama(own_folder / "llama").name


@pytest.fixture
def plan_file(own_folder: Path) -> Callable[..., str]:
    """Writes the plan of a small model for some budgets and gives the file's name."""

    def write(name: str = "plan.json", budgets: Mapping[int | str, int] | None = None) -> str:
        made = planner.plan(Model(), max_memory=budgets or {0: 3500, "cpu": 9999})
        Path(name).write_text(made.to_json())
        return name

    return write

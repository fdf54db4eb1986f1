"""Every example in the documentation runs: Python blocks of the Markdown files, Examples of docstrings."""

from __future__ import annotations

import doctest
import importlib
import os
import pkgutil
import re
import subprocess
import sys
from pathlib import Path

import pytest

import planner
from planner.cli.synthetic import write_synthetic

ROOT = Path(__file__).parent.parent
MARKDOWN = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "benches").glob("*.md")])
MODULES = ["planner"] + [
    found.name
    for found in pkgutil.walk_packages(planner.__path__, "planner.")
    if not found.name.endswith(("._core", ".__main__"))
]
OPTIONS = doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS


def name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def blocks(path: Path, language: str) -> list[tuple[int, str]]:
    """The fenced blocks of one language: first line and text."""
    text = path.read_text()
    found = re.finditer(rf"^```{language}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    return [(text.count("\n", 0, match.start()) + 2, match.group(1)) for match in found]


@pytest.mark.parametrize("path", [path for path in MARKDOWN if blocks(path, "python")], ids=name)
def test_python_blocks_run(path: Path) -> None:
    """The blocks of one file run from top to bottom in one namespace."""
    namespace: dict[str, object] = {"__name__": "__docs__"}
    for line, text in blocks(path, "python"):
        exec(compile("\n" * (line - 1) + text, str(path), "exec"), namespace)


@pytest.mark.parametrize("path", [path for path in MARKDOWN if blocks(path, "pycon")], ids=name)
def test_interactive_blocks_print_what_they_say(path: Path) -> None:
    """The interactive sessions of one file, with their output."""
    text = "\n".join(text for _, text in blocks(path, "pycon"))
    parsed = doctest.DocTestParser().get_doctest(text, {}, name(path), str(path), 0)
    runner = doctest.DocTestRunner(optionflags=OPTIONS)
    runner.run(parsed)
    assert runner.summarize(verbose=False).failed == 0


def commands(path: Path) -> list[tuple[str, str]]:
    """Commands of the console blocks of one file, each with the output that it promises."""
    text = "\n".join(text for _, text in blocks(path, "console"))
    pieces = re.split(r"^\$ ", text, flags=re.MULTILINE)[1:]
    return [(line, output) for line, _, output in (piece.partition("\n") for piece in pieces)]


@pytest.mark.parametrize("path", [path for path in MARKDOWN if blocks(path, "console")], ids=name)
def test_commands_print_what_they_say(path: Path, tmp_path: Path) -> None:
    """The commands of one file, in one folder that holds a `llama`, with standard output and error together."""
    write_synthetic(tmp_path / "llama")
    scripts = str(Path(sys.executable).parent)
    environment = {key: value for key, value in os.environ.items() if not key.upper().startswith("PLANNER_")}
    environment["PATH"] = os.pathsep.join([scripts, environment.get("PATH", "")])
    wrong = []
    for command, output in commands(path):
        done = subprocess.run(
            ["bash", "-c", command],
            cwd=tmp_path,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=120,
        )
        if not doctest.OutputChecker().check_output(output, done.stdout, OPTIONS):
            wrong.append(f"$ {command}\n{done.stdout}")
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("module", MODULES)
def test_docstring_examples_hold(module: str) -> None:
    """Examples in docstrings print what they say."""
    assert doctest.testmod(importlib.import_module(module), optionflags=OPTIONS).failed == 0


def test_the_readme_has_an_example() -> None:
    """So that the tests above cannot pass on nothing."""
    assert blocks(ROOT / "README.md", "python") or blocks(ROOT / "README.md", "pycon")


@pytest.mark.parametrize("path", MARKDOWN, ids=name)
def test_relative_links_lead_somewhere(path: Path) -> None:
    """Links between files of the repository."""
    targets = re.findall(
        r"\]\(([^)#\s]+)[^)]*\)", re.sub(r"```.*?```", "", path.read_text(), flags=re.DOTALL)
    )
    missing = [target for target in targets if "://" not in target and not (path.parent / target).exists()]
    assert not missing

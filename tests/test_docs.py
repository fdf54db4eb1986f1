"""Every example in the documentation runs: Python blocks of the Markdown files, Examples of docstrings."""

from __future__ import annotations

import doctest
import importlib
import pkgutil
import re
from pathlib import Path

import pytest

import planner

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

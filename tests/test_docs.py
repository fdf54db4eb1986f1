"""Every example in the documentation runs: Python blocks of the Markdown files, Examples of docstrings."""

from __future__ import annotations

import doctest
import importlib
import importlib.util
import os
import pkgutil
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

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
# Of the reference, the examples run where they were written: in the docstrings.
RUNNING = [path for path in MARKDOWN if path.parent.name != "reference"]
OPTIONS = doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS


def name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def blocks(path: Path, language: str) -> list[tuple[int, str]]:
    """The fenced blocks of one language: first line and text."""
    text = path.read_text()
    found = re.finditer(rf"^```{language}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    return [(text.count("\n", 0, match.start()) + 2, match.group(1)) for match in found]


@pytest.mark.parametrize("path", [path for path in RUNNING if blocks(path, "python")], ids=name)
def test_python_blocks_run(path: Path) -> None:
    """The blocks of one file run from top to bottom in one namespace."""
    namespace: dict[str, object] = {"__name__": "__docs__"}
    for line, text in blocks(path, "python"):
        exec(compile("\n" * (line - 1) + text, str(path), "exec"), namespace)


@pytest.mark.parametrize("path", [path for path in RUNNING if blocks(path, "pycon")], ids=name)
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


@pytest.mark.parametrize("path", [path for path in RUNNING if blocks(path, "console")], ids=name)
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


def headings(path: Path) -> set[str]:
    """Anchors of a file, as GitHub makes them of its headings."""
    text = re.sub(r"```.*?```", "", path.read_text(), flags=re.DOTALL)
    found: dict[str, int] = {}
    anchors = set()
    for heading in re.findall(r"^#+ (.+)$", text, re.MULTILINE):
        anchor = re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")
        anchors.add(f"{anchor}-{found[anchor]}" if anchor in found else anchor)
        found[anchor] = found.get(anchor, 0) + 1
    return anchors


@pytest.mark.parametrize("path", MARKDOWN, ids=name)
def test_relative_links_lead_somewhere(path: Path) -> None:
    """Links between files of the repository, and to headings in them."""
    text = re.sub(r"```.*?```", "", path.read_text(), flags=re.DOTALL)
    missing = []
    for target in re.findall(r"\]\(([^)\s]+)[^)]*\)", text):
        if "://" in target:
            continue
        file, _, anchor = target.partition("#")
        there = (path.parent / file) if file else path
        if not there.exists() or (anchor and anchor not in headings(there)):
            missing.append(target)
    assert not missing


def reference() -> ModuleType:
    """The script that writes docs/reference."""
    spec = importlib.util.spec_from_file_location("write_reference", ROOT / "docs/write_reference.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where dataclasses look up their module
    spec.loader.exec_module(module)
    return module


def test_the_reference_is_what_the_docstrings_say() -> None:
    """`make docs` writes it."""
    written = {path.name: path.read_text() for path in (ROOT / "docs/reference").glob("*.md")}
    wanted = reference().pages()
    assert sorted(written) == sorted(wanted)
    assert not [name for name in sorted(wanted) if written[name] != wanted[name]], (
        "`make docs` writes them anew"
    )


def test_the_reference_has_every_public_name_once() -> None:
    names = [name for page in reference().PAGES.values() for name in page.names]
    assert sorted(name for name in names if "." not in name) == planner.__all__
    assert len(set(names)) == len(names)


def test_the_reference_has_the_modules_that_are_public() -> None:
    """ARCHITECTURE.md says which these are."""
    documented = {name.rpartition(".")[0] for page in reference().PAGES.values() for name in page.names}
    sentence = (
        (ROOT / "ARCHITECTURE.md").read_text().partition("**Public is what")[2].partition("All else")[0]
    )
    assert set(re.findall(r"`(planner\.[a-z][a-z_.]+)`", sentence)) == documented - {""}


SHOWN = [*RUNNING, *sorted((ROOT / "examples").glob("*.py"))]


@pytest.mark.parametrize("path", SHOWN, ids=name)
def test_what_is_shown_is_public(path: Path) -> None:
    """What documents and examples import is in the reference."""
    known = {each for page in reference().PAGES.values() for each in page.names}
    shown = re.findall(r"^(?:>>> )?from (planner[\w.]*) import ([\w, ]+)$", path.read_text(), re.MULTILINE)
    names = [f"{module}.{each.strip()}" for module, listed in shown for each in listed.split(",")]
    assert not [each for each in names if each.removeprefix("planner.") not in known and each not in known]


def test_docstrings_have_no_section_beside_those_of_the_reference() -> None:
    """A heading that the script does not know would become a line of text."""
    script = reference()
    known = set(script.SECTIONS)
    odd = [
        f"{each}: {heading}"
        for page in script.PAGES.values()
        for each in page.names
        for heading in re.findall(r"^ *([A-Z][a-z]+):$", script.found(each).__doc__ or "", re.MULTILINE)
        if heading not in known
    ]
    assert not odd


def test_the_table_of_errors_has_every_error() -> None:
    """docs/errors.md: one row for each class, with the fields that the class declares."""
    rows = {
        match.group(1): line
        for line in (ROOT / "docs/errors.md").read_text().splitlines()
        if (match := re.match(r"\| `(\w+)` \|", line))
    }
    public = {each: getattr(planner, each) for each in planner.__all__ if each.endswith("Error")}
    classes = {each: cls for each, cls in public.items() if issubclass(cls, planner.PlannerError)}
    assert sorted(rows) == sorted(classes)
    lacking = [
        f"{each}.{field}"
        for each, cls in classes.items()
        for field in vars(cls).get("__annotations__", {})
        if f"`{field}`" not in rows[each]
    ]
    assert not lacking

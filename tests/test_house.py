"""What holds for the repository as a whole: one version, one door, declared dependencies, nothing left lying about."""

from __future__ import annotations

import ast
import importlib.metadata
import os
import re
import subprocess
import sys
import tomllib
from collections import Counter
from pathlib import Path

import pytest

import planner

ROOT = Path(__file__).parent.parent
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
CARGO = tomllib.loads((ROOT / "Cargo.toml").read_text())
TEXT = (".md", ".py", ".pyi", ".rs", ".toml", ".yaml", ".yml", ".js", ".css", ".html")
SKIPPED = {".git", ".venv", "target", "dist", "__pycache__", "results"}
PACKAGES = {"yaml": "PyYAML"}  # import name -> distribution name, where they differ


def sources() -> list[Path]:
    """Text files of the repository, without what is built."""
    found = []
    for folder, folders, files in os.walk(ROOT):
        folders[:] = [name for name in folders if name not in SKIPPED and not name.endswith("_cache")]
        found += [Path(folder, name) for name in files if name.endswith(TEXT) or name in ("Makefile", "run")]
    return sorted(found)


def targets() -> set[str]:
    return set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))


def distribution_names(requirements: list[str]) -> set[str]:
    return {re.split(r"[^A-Za-z0-9._-]", line)[0].lower() for line in requirements}


def test_there_is_one_version() -> None:
    """The workspace says it; the package, the installed metadata and the lock file agree."""
    version = CARGO["workspace"]["package"]["version"]
    assert planner.__version__ == version
    assert importlib.metadata.version("device-map-planner") == version
    lock = tomllib.loads((ROOT / "Cargo.lock").read_text())
    ours = {package["version"] for package in lock["package"] if package["name"].startswith("planner-")}
    assert ours == {version}


def test_the_changelog_has_a_place_for_what_comes() -> None:
    """Keep a Changelog: a section for unreleased changes."""
    assert "## [Unreleased]" in (ROOT / "CHANGELOG.md").read_text()


def test_the_public_names_are_sorted_and_documented() -> None:
    """Whatever `planner` exports has a docstring."""
    assert sorted(planner.__all__) == planner.__all__
    assert not [name for name in planner.__all__ if not (getattr(planner, name).__doc__ or "").strip()]


def test_run_time_dependencies_are_declared() -> None:
    """Third-party imports of the package are dependencies, or what is used only where somebody has it: what comes with the
    caller's model, weights and hooks; transformers, asked for architectures that the table lacks, and PEFT, where we take part in what they
    load; IPython, in a notebook; and the extra for the hub."""
    imported = set()
    for source in (ROOT / "python/planner").rglob("*.py"):
        for node in ast.walk(ast.parse(source.read_text())):
            if isinstance(node, ast.Import):
                imported |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                imported.add(node.module.partition(".")[0])
    foreign = {
        PACKAGES.get(name, name).lower() for name in imported - set(sys.stdlib_module_names) - {"planner"}
    }
    used_where_present = {"torch", "transformers", "peft", "accelerate", "safetensors", "huggingface_hub"}
    used_where_present |= {"ipython"}
    assert foreign - used_where_present <= distribution_names(PYPROJECT["project"]["dependencies"])


def test_every_dependency_has_its_reason() -> None:
    """The decision record names what pyproject.toml and the manifests ask for, and nothing else."""
    record = (ROOT / "docs/decisions/0005-dependencies.md").read_text()
    rows = [line.split("|")[1] for line in record.splitlines() if line.startswith("| `")]
    explained = {name.lower() for row in rows for name in re.findall(r"`([^`]+)`", row)}
    project = PYPROJECT["project"]
    extras = [name for each in ("dev", "hub") for name in project["optional-dependencies"][each]]
    wanted = distribution_names([*project["dependencies"], *extras])
    for manifest in ("core", "headers", "py", "reading"):
        crate = tomllib.loads((ROOT / "rust" / manifest / "Cargo.toml").read_text())
        tables = [crate, *crate.get("target", {}).values()]
        named = {
            name
            for table in tables
            for kind in ("dependencies", "dev-dependencies")
            for name in table.get(kind, {})
        }
        wanted |= named - {"planner-core", "planner-headers", "planner-reading"}
    assert explained == wanted


@pytest.mark.parametrize("name", ["README.md", "CONTRIBUTING.md"])
def test_documented_commands_exist(name: str) -> None:
    """Every `make` target that is mentioned is a target."""
    mentioned = set(re.findall(r"(?:^|`)make ([a-z][a-z-]*)", (ROOT / name).read_text(), re.MULTILINE))
    assert mentioned
    assert mentioned <= targets()


def test_continuous_integration_calls_the_two_doors() -> None:
    """`.ci/run` can be executed, fails on the first error, and runs what a developer runs."""
    script = ROOT / ".ci/run"
    assert os.access(script, os.X_OK)
    assert re.search(r"^set -eu", script.read_text(), re.MULTILINE)
    assert re.search(r"\bmake [-a-z0-9= ]*\bcheck test$", script.read_text(), re.MULTILINE)


def test_nothing_is_left_unfinished_or_tied_to_one_machine() -> None:
    """No marks of unfinished work, no absolute paths of somebody's disk."""
    marks = "|".join(["TO" + "DO", "FIX" + "ME", "XX" + "X", "to" + r"do!\(", "unimpl" + "emented!"])
    homes = "|".join("/" + folder + "/" for folder in ("home", "root", "Users", "work", "mnt"))
    pattern = re.compile(rf"\b(?:{marks})|(?<![\w.}}-])(?:{homes})")
    found = [
        f"{source.relative_to(ROOT)}:{number}: {line.strip()}"
        for source in sources()
        for number, line in enumerate(source.read_text().splitlines(), start=1)
        if pattern.search(line)
    ]
    assert not found


def test_decision_records_are_numbered_and_complete() -> None:
    """0001, 0002, …; each with its context, decision and consequences."""
    records = sorted((ROOT / "docs/decisions").glob("*.md"))
    assert [int(record.name[:4]) for record in records] == list(range(1, len(records) + 1))
    for record in records:
        text = record.read_text()
        assert text.startswith(f"# {record.name[:4]}. "), record.name
        assert all(f"**{part}.**" in text for part in ("Context", "Decision", "Consequences")), record.name


@pytest.mark.parametrize("page", ["ARCHITECTURE.md", "CONTRIBUTING.md"])
def test_the_files_that_the_map_names_exist(page: str) -> None:
    """From the top of the repository, or below the package, a crate or one of its folders."""
    named = set(re.findall(r"`([\w/]+\.(?:py|pyi|rs|js|toml|jsonl))`", (ROOT / page).read_text()))
    files = [
        path
        for folder in ("python/planner", "rust", "tests", "docs", "benches")
        for path in (ROOT / folder).rglob("*.*")
    ]
    paths = [f"/{path.relative_to(ROOT).as_posix()}" for path in [*files, *ROOT.glob("*.*")]]
    assert named
    assert not [name for name in sorted(named) if not any(path.endswith(f"/{name}") for path in paths)]


def test_terms_are_alive() -> None:
    """Every identifier of the table of words occurs in the code."""
    rows = [line for line in (ROOT / "TERMS.md").read_text().splitlines() if line.startswith("| ")][1:]
    named = {name for row in rows for name in re.findall(r"`([A-Za-z_]+)`", row.split("|")[-2])}
    code = "\n".join(
        path.read_text()
        for folder in ("python", "rust", "tests")
        for path in (ROOT / folder).rglob("*.[pr][ys]")
    )
    assert named
    assert not [name for name in sorted(named) if not re.search(rf"\b{name}\b", code)]


def python_classes(text: str) -> list[str]:
    """Classes of a module that do not start with an underscore."""
    found = [node.name for node in ast.walk(ast.parse(text)) if isinstance(node, ast.ClassDef)]
    return [name for name in found if not name.startswith("_")]


def rust_types(text: str) -> list[str]:
    """Public types of a module."""
    return re.findall(r"^\s*pub (?:struct|enum|union|trait|type) (\w+)", text, re.MULTILINE)


def types() -> dict[str, list[str]]:
    """Names of types by the file that has them."""
    package, core = ROOT / "python/planner", ROOT / "rust/core/src"
    found = {path: python_classes(path.read_text()) for path in sorted(package.rglob("*.py"))}
    found |= {path: rust_types(path.read_text()) for path in sorted(core.rglob("*.rs"))}
    return {path.relative_to(ROOT).as_posix(): names for path, names in found.items()}


def explained_types() -> list[str]:
    return re.findall(r"^- `(\w+)`(?: \(\w+\))?: .", (ROOT / "TERMS.md").read_text(), re.MULTILINE)


def test_each_type_is_explained() -> None:
    """One line for each; a class without one in TERMS.md gets it, or a name that starts with an underscore."""
    found = types()
    lacking = Counter(name for names in found.values() for name in names) - Counter(explained_types())
    places = [f"{file}: {name}" for file, names in found.items() for name in names if name in lacking]
    assert not places, f"without a line in TERMS.md: {', '.join(places)}"


def test_each_explained_type_exists() -> None:
    """A type that went takes its line along."""
    gone = Counter(explained_types()) - Counter(name for names in types().values() for name in names)
    assert not gone, f"in TERMS.md, but not in the code: {', '.join(gone)}"


def test_types_are_found_wherever_they_are_declared() -> None:
    """So that the tests above cannot pass on nothing."""
    planted = "def f():\n    class Planted: ...\nclass _Hidden: ...\nif True:\n    class Second(int): ..."
    assert python_classes(planted) == ["Planted", "Second"]
    assert rust_types("pub enum Planted {}\npub(crate) struct Hidden;\nstruct Own;") == ["Planted"]


def test_the_extension_is_not_in_the_repository() -> None:
    """What is built stays out of version control."""
    listed = subprocess.run(["git", "ls-files", "*.so", "*.pyd"], cwd=ROOT, capture_output=True, text=True)
    assert listed.returncode != 0 or not listed.stdout


def test_nothing_lies_at_the_top_that_has_no_place_there() -> None:
    """What a run wrote into the folder it was started from must not be committed."""
    if not (ROOT / ".git").exists():
        pytest.skip("no repository: a source distribution")
    names = subprocess.run(
        ["git", "ls-files", "-z"], cwd=ROOT, check=True, capture_output=True, text=True
    ).stdout.split("\0")
    folders = {".ci", "benches", "docs", "examples", "fuzz", "python", "rust", "tests"}
    files = {
        ".gitignore",
        "Cargo.lock",
        "Cargo.toml",
        "LICENSE",
        "Makefile",
        "pyproject.toml",
        "rustfmt.toml",
    }
    found = {name.split("/")[0] for name in names if name}
    assert {name for name in found - folders - files if not re.fullmatch(r"[A-Z]+\.md", name)} == set()

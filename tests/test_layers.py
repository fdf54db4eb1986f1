"""The rules of the house that tools can check: who may import whom, and what must not be loaded."""

from __future__ import annotations

import ast
import graphlib
import importlib
import pydoc
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

import planner

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "python" / "planner"
SOURCES = sorted(PACKAGE.rglob("*.py"))

# Where a live model is handed in; and the checker, which has to read the same model on its own.
MAY_USE_TORCH = (
    "model/tree.py",
    "model/dtypes.py",
    "model/carried.py",
    "devices/keys.py",
    "devices/detect.py",
    "devices/absence.py",
    "compat/",
    "dispatching/",
    "loading/",
    "measuring/",
    "memory/recording/",
    "pipelines/",
    "verification/",
    "checkpoint/describe.py",
)
MAY_OPEN_CORE = (
    "memory/tape.py",
    "model/blocks.py",
    "model/layout.py",
    "model/tree.py",
    "strategies/auto.py",
    "strategies/running.py",
    "strategies/sequential.py",
    "strategies/timed.py",
    "checkpoint/files.py",
    "loading/reading.py",
)
# Tensor and module subclasses need torch when they are defined; nobody above loads these before they are wanted.
LATE = (
    "dispatching/",
    "loading/",
    "measuring/",
    "memory/recording/",
    "pipelines/",
    "verification/",
    "compat/dat_files.py",
    "compat/disk_part.py",
    "compat/dispatching.py",
    "compat/distributed.py",
    "compat/huggingface/adapters.py",
    "compat/huggingface/at_hand.py",
    "compat/huggingface/base_model.py",
    "compat/huggingface/diffusers.py",
    "compat/huggingface/peft.py",
    "compat/huggingface/taking_over.py",
    "compat/loaded.py",
    "compat/load_rules.py",
    "compat/loading.py",
    "compat/offloaded.py",
    "compat/pickled.py",
    "compat/tensors.py",
    "compat/in_order.py",
    "compat/weight_source.py",
)


def place(source: Path) -> str:
    return source.relative_to(PACKAGE).as_posix()


def imports(source: Path) -> Iterator[tuple[str, bool]]:
    """Each imported module with its full name, and whether it is imported while the file is being loaded."""
    yield from _imports(ast.parse(source.read_text()).body, at_load=True)


def _imports(statements: list[ast.stmt], at_load: bool) -> Iterator[tuple[str, bool]]:
    for statement in statements:
        if isinstance(statement, ast.Import):
            yield from ((alias.name, at_load) for alias in statement.names)
        elif isinstance(statement, ast.ImportFrom):
            yield from ((f"{statement.module}.{alias.name}", at_load) for alias in statement.names)
        elif isinstance(statement, ast.If) and "TYPE_CHECKING" in ast.dump(statement.test):
            yield from _imports(statement.orelse, at_load)
        else:
            inside_function = isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef)
            for _, value in ast.iter_fields(statement):
                nested = [item for item in value if isinstance(item, ast.stmt | ast.ExceptHandler | ast.match_case)] \
                    if isinstance(value, list) else []  # fmt: skip
                for item in nested:
                    body = [item] if isinstance(item, ast.stmt) else item.body
                    yield from _imports(body, at_load and not inside_function)


def is_below(name: str, package: str) -> bool:
    return name == package or name.startswith(package + ".")


def test_layer_contracts_hold() -> None:
    """The contracts of pyproject.toml, checked by import-linter."""
    command = shutil.which("lint-imports", path=str(Path(sys.executable).parent)) or shutil.which(
        "lint-imports"
    )
    assert command, "import-linter is one of the development dependencies"
    done = subprocess.run([command, "--no-cache"], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_core_crate_knows_no_python() -> None:
    """Its manifest names no binding, so the planner can be tested and fuzzed without an interpreter."""
    manifest = tomllib.loads((ROOT / "rust/core/Cargo.toml").read_text())
    tables = [manifest, *manifest.get("target", {}).values()]
    kinds = ("dependencies", "dev-dependencies", "build-dependencies")
    named = {name for table in tables for kind in kinds for name in table.get(kind, {})}
    assert not [name for name in named if "py" in name.split("-")[0]]


def test_the_core_crate_does_no_io() -> None:
    """No file, clock, network, environment or output in the sources of the core."""
    banned = (
        "std::fs",
        "std::io",
        "std::net",
        "std::env",
        "std::time",
        "println!",
        "eprintln!",
        "dbg!",
        "unsafe {",
    )
    found = [
        (source.name, word)
        for source in (ROOT / "rust/core/src").rglob("*.rs")
        for word in banned
        if word in source.read_text()
    ]
    assert not found


@pytest.mark.parametrize("source", SOURCES, ids=place)
def test_torch_is_loaded_inside_functions_of_few_modules(source: Path) -> None:
    """So that budgets, sizes, configuration and explanations work where torch is not installed."""
    for name, at_load in imports(source):
        if is_below(name, "torch"):
            assert place(source).startswith(MAY_USE_TORCH), f"{place(source)} imports {name}"
            assert not at_load or place(source).startswith(LATE), (
                f"{place(source)} imports {name} while it is loaded"
            )


@pytest.mark.parametrize("source", SOURCES, ids=place)
def test_few_modules_open_the_extension(source: Path) -> None:
    """Import-linter cannot see a compiled module."""
    if place(source) not in MAY_OPEN_CORE:
        assert not [name for name, _ in imports(source) if is_below(name, "planner._core")]


@pytest.mark.parametrize("source", SOURCES, ids=place)
def test_nobody_inside_imports_from_the_front_door(source: Path) -> None:
    """`planner/__init__.py` collects the public names; importing from it inside would close a circle."""
    modules = {path.stem for path in PACKAGE.iterdir()} | {"_core"}
    if source.parent == PACKAGE and source.name == "__init__.py":
        return
    for name, _ in imports(source):
        if is_below(name, "planner"):
            assert name.split(".")[1] in modules, f"{place(source)} imports {name}"


@pytest.mark.parametrize(
    "module", ["planner", "planner.units", "planner.checker.check", "planner.errors", "planner.config"]
)
def test_importing_does_not_load_a_framework(module: str) -> None:
    """In a fresh interpreter: neither torch nor any library that we stand beside."""
    unwanted = ("torch", "numpy", "accelerate", "transformers")
    program = f"import sys, {module}; print(*[name for name in {unwanted} if name in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=True
    )
    assert done.stdout.split() == []


def test_the_stub_lists_the_names_of_the_table() -> None:
    """`__init__.pyi` is what type checkers read, the table in `__init__.py` what Python does."""
    tree = ast.parse((PACKAGE / "__init__.pyi").read_text())
    said = {
        alias.asname: statement.module
        for statement in tree.body
        if isinstance(statement, ast.ImportFrom)
        for alias in statement.names
    }
    # Of the package itself come modules that `import planner` is enough for, as of any of its names.
    modules = {name for name, module in said.items() if module == "planner"}
    assert {name: module for name, module in said.items() if name not in modules} == planner._MODULE_OF
    assert all(getattr(planner, str(name)).__name__ == f"planner.{name}" for name in modules)
    listed = next(
        statement.value
        for statement in tree.body
        if isinstance(statement, ast.Assign) and ast.unparse(statement.targets[0]) == "__all__"
    )
    assert ast.literal_eval(listed) == planner.__all__ == sorted(set(said) - modules)


def test_importing_the_package_is_enough_for_its_modules() -> None:
    program = "import planner; print(planner.errors.OffloadError.__name__, planner.config.Stack.__name__, hasattr(planner, 'x'))"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=True
    )
    assert done.stdout.split() == ["OffloadError", "Stack", "False"]


def test_no_module_is_called_as_a_function_is() -> None:
    """`import planner.plan as p` would give the function, and `pydoc planner.plan` the module, or the other way round."""
    modules = {path.stem for path in PACKAGE.iterdir()} - {"__init__"}
    coming = {"load", "pipeline", "verify", "measure", "largest", "integrate", "install"}
    assert not modules & {*planner.__all__, *coming}


IMPORTED = re.compile(
    r"^(?:>>> )?(?:from (planner[\w.]*) import ([\w, ]+)|import (planner[\w.]+))", re.MULTILINE
)


@pytest.mark.parametrize(
    "page", [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))], ids=lambda page: page.name
)
def test_what_is_documented_can_be_imported(page: Path) -> None:
    for module, names, alone in IMPORTED.findall(page.read_text()):
        found = importlib.import_module(module or alone)
        assert isinstance(found, ModuleType)
        for name in names.replace(" ", "").split(",") if names else ():
            assert hasattr(found, name), f"{page.name}: from {module} import {name}"


@pytest.mark.parametrize("name", [name for name in planner.__all__ if name.islower()])
def test_pydoc_finds_each_function(name: str) -> None:
    found, _ = pydoc.resolve(f"planner.{name}") or (None, "")
    assert found is getattr(planner, name)


# ---- Rust: the core's modules, from the bottom to the top

CORE = ROOT / "rust" / "core" / "src"
CORE_LAYERS = (
    ("ids", "names", "sets", "keys", "devices"),
    ("error", "outcome"),
    ("model",),
    ("memory",),
    ("device_map", "checkpoint"),
    ("strategy",),
)


def core_modules() -> dict[tuple[str, ...], Path]:
    """Files of the core by path of module; `mod.rs` is its folder's module."""
    found = {}
    for file in sorted(CORE.rglob("*.rs")):
        parts = file.relative_to(CORE).with_suffix("").parts
        found[parts[:-1] if parts[-1] == "mod" else parts] = file
    tests = {
        name
        for file in found.values()
        for name in re.findall(r"#\[cfg\(test\)\]\nmod (\w+);", file.read_text())
    }
    return {parts: file for parts, file in found.items() if parts != ("lib",) and parts[-1] not in tests}


def core_arrows() -> dict[tuple[str, ...], set[tuple[str, ...]]]:
    """Which module of the core names which other one, by its full path."""
    modules = core_modules()
    arrows = {}
    for parts, file in modules.items():
        text = file.read_text().partition("\nmod tests {")[0]
        named = [tuple(words.split("::")) for words in re.findall(r"\bcrate::([a-z_]+(?:::[a-z_]+)*)", text)]
        assert "super::" not in text, f"{file.name}: write the full path, from crate"
        reached = {
            max((words[:length] for length in range(1, len(words) + 1) if words[:length] in modules), key=len)
            for words in named
        }
        arrows[parts] = reached - {parts}
    return arrows


def test_the_core_has_layers() -> None:
    level = {name: height for height, names in enumerate(CORE_LAYERS) for name in names}
    arrows = core_arrows()
    assert {parts[0] for parts in arrows} == set(level)
    upward = [
        (one, other)
        for one, reached in arrows.items()
        for other in reached
        if level[other[0]] > level[one[0]]
    ]
    beside = [
        (one, other)
        for one, reached in arrows.items()
        for other in reached
        if level[other[0]] == level[one[0]] > 0 and other[0] != one[0]
    ]
    assert not upward and not beside


def test_the_core_has_no_circles() -> None:
    graphlib.TopologicalSorter(core_arrows()).prepare()  # raises CycleError with the circle

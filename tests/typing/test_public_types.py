"""mypy and pyright, both strict: right uses of the public names are accepted, and of the wrong ones each line is refused."""

from __future__ import annotations

import ast
import json
import re
import shutil
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import planner

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
RIGHT, WRONG = HERE / "right.py", HERE / "wrong.py"
MARK = re.compile(r"# refused: ([a-z-]+), (report[A-Za-z]+)$")

# By file, the codes of what a checker says of each line.
Refused = dict[str, dict[int, set[str]]]


def command(name: str) -> str:
    found = shutil.which(name, path=str(Path(sys.executable).parent)) or shutil.which(name)
    assert found, f"{name} is one of the development dependencies"
    return found


def marked(place: int) -> dict[int, str]:
    """Lines of the wrong file that are to be refused, with the code of one of the two checkers."""
    found = enumerate(map(MARK.search, WRONG.read_text().splitlines()), start=1)
    return {line: match.group(place) for line, match in found if match}


def mypy() -> Refused:
    # With the cache of `make types`, whose settings are the same.
    done = subprocess.run(
        [command("mypy"), "--no-error-summary", str(RIGHT), str(WRONG)],
        cwd=ROOT, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 1 and not done.stderr, done.stdout + done.stderr
    refused: Refused = defaultdict(lambda: defaultdict(set))
    for file, line, code in re.findall(r"^(.+):(\d+): error: .*\[([a-z-]+)\]$", done.stdout, re.MULTILINE):
        refused[Path(file).name][int(line)].add(code)
    return refused


def pyright() -> Refused:
    done = subprocess.run(
        [
            command("basedpyright"), "--project", str(ROOT), "--pythonpath", sys.executable,
            "--outputjson", str(RIGHT), str(WRONG),
        ],
        cwd=ROOT, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    refused: Refused = defaultdict(lambda: defaultdict(set))
    for row in json.loads(done.stdout)["generalDiagnostics"]:
        refused[Path(row["file"]).name][row["range"]["start"]["line"] + 1].add(row.get("rule", "error"))
    return refused


def require(refused: Refused, expected: dict[int, str]) -> None:
    assert not refused.pop(RIGHT.name, None)
    assert refused.keys() == {WRONG.name}
    said = refused[WRONG.name]
    assert not sorted(expected.keys() - said.keys()), "lines that are wrong and were accepted"
    assert not sorted(said.keys() - expected.keys()), "lines that are right and were refused"
    assert not {line: said[line] for line, code in expected.items() if code not in said[line]}


def test_the_right_uses_are_of_every_public_name() -> None:
    used = {
        node.attr
        for node in ast.walk(ast.parse(RIGHT.read_text()))
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "planner"
    }
    assert not sorted(set(planner.__all__) - used)


def test_each_statement_of_the_wrong_uses_is_marked() -> None:
    """So that a wrong use without a mark cannot pass for a right one."""
    functions = [node for node in ast.parse(WRONG.read_text()).body if isinstance(node, ast.FunctionDef)]
    lines = {statement.lineno for function in functions for statement in function.body}
    assert lines == marked(1).keys()
    assert len(lines) >= 20


def test_mypy_accepts_the_right_and_refuses_the_wrong() -> None:
    require(mypy(), marked(1))


def test_pyright_accepts_the_right_and_refuses_the_wrong() -> None:
    require(pyright(), marked(2))

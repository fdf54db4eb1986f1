"""The engine stays small and plain: how many statements it has, how long and how branched its functions are."""

from __future__ import annotations

import ast
import pathlib
import statistics
from collections.abc import Iterator

import planner.config

FOLDER = pathlib.Path(planner.config.__file__).parent
ENGINE = sorted(path for path in FOLDER.glob("*.py") if path.name not in ("settings.py", "hf.py"))
TREES = {path.name: ast.parse(path.read_text()) for path in ENGINE}

# What was reached, and one in a hundred: whoever needs more takes something out, or raises the limit with a reason.
# The last reasons: a writer of YAML beside its reader, and words in plain data for what was unset or updated.
MOST_STATEMENTS = 1309
MOST_IN_FUNCTIONS = 842


def is_text(node: ast.AST) -> bool:
    """A docstring, or the dots of a declaration."""
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)


def statements(node: ast.AST) -> list[ast.stmt]:
    """The node, if it is one, and all statements inside."""
    return [each for each in ast.walk(node) if isinstance(each, ast.stmt) and not is_text(each)]


def functions() -> list[tuple[str, ast.FunctionDef]]:
    return [
        (f"{name}: {node.name}", node)
        for name, tree in TREES.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef)
    ]


def own_nodes(function: ast.FunctionDef) -> Iterator[ast.AST]:
    """What is inside, without the functions inside."""
    inside = list(ast.iter_child_nodes(function))
    while inside:
        node = inside.pop()
        if not isinstance(node, ast.FunctionDef):
            yield node
            inside += ast.iter_child_nodes(node)


def complexity(function: ast.FunctionDef) -> int:
    """McCabe's number in the strict reading: conditions in expressions and comprehensions count too."""
    branches = (ast.If, ast.IfExp, ast.For, ast.While, ast.ExceptHandler, ast.Assert)
    found = 1
    for node in own_nodes(function):
        if isinstance(node, branches):
            found += 1
        elif isinstance(node, ast.comprehension):
            found += 1 + len(node.ifs)
        elif isinstance(node, ast.BoolOp):
            found += len(node.values) - 1
    return found


def test_the_measures_measure() -> None:
    """Of a function that is known."""
    text = 'def f(a, b):\n    """Text."""\n    if a and b:\n        return [x for x in a if x]\n    return b if a else 1\n'
    function = ast.parse(text).body[0]
    assert isinstance(function, ast.FunctionDef)
    assert (len(statements(function)), complexity(function)) == (4, 6)


def test_the_engine_does_not_grow() -> None:
    assert len(ENGINE) > 5
    assert sum(len(statements(tree)) for tree in TREES.values()) <= MOST_STATEMENTS
    inside = {
        id(each) for _, function in functions() for each in statements(function) if each is not function
    }
    assert len(inside) <= MOST_IN_FUNCTIONS


def test_no_function_is_too_complex() -> None:
    assert not [name for name, function in functions() if complexity(function) > 10]


def test_functions_are_short() -> None:
    lengths = [(function.end_lineno or 0) - function.lineno + 1 for _, function in functions()]
    assert statistics.median(lengths) < 12

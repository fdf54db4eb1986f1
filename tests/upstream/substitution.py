"""Ours in place of accelerate's: every name that both have, as its test files see it."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

__all__ = ["replaced", "shared_names"]

# Where tests import from while they run, too. accelerate itself took its names from here when it was imported.
FACADES = ("accelerate", "accelerate.utils")
# Names that both have for different things: accelerate's reads a file of tensors.
OTHERS = frozenset({"load"})


def shared_names(ours: ModuleType) -> dict[str, Any]:
    """What we export under a name of accelerate's."""
    theirs = {name for module in modules() for name, value in vars(module).items() if is_theirs(value)}
    return {name: getattr(ours, name) for name in ours.__all__ if name in theirs - OTHERS}


@contextmanager
def replaced(names: dict[str, Any]) -> Iterator[None]:
    """Within the block, accelerate's modules hand out `names`; afterwards only its two facades still do.

    Test files take their names while they are imported, so they get ours. accelerate's own functions look their names up
    in their modules when they run, so they get what they always had, and ours cannot lean on themselves in disguise.
    """
    before: list[tuple[ModuleType, str, Any]] = []
    for module in modules():
        for name, value in names.items():
            if is_theirs(vars(module).get(name)):
                before.append((module, name, vars(module)[name]))
                setattr(module, name, value)
    try:
        yield
    finally:
        for module, name, value in before:
            if module.__name__ not in FACADES:
                setattr(module, name, value)


def modules() -> list[ModuleType]:
    """accelerate's modules that are loaded."""
    return [module for name, module in sorted(sys.modules.items()) if name.partition(".")[0] == "accelerate"]


def is_theirs(value: Any) -> bool:
    """Whether accelerate defines it."""
    return callable(value) and str(getattr(value, "__module__", "")).partition(".")[0] == "accelerate"

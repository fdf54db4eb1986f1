"""What a computing function sees of a block: its fields and methods, read only, each read recorded."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from planner.config.problem import Path

if TYPE_CHECKING:
    from planner.config.evaluate import Evaluation, Scope

__all__ = ["UnresolvedError", "View"]


class UnresolvedError(Exception):
    """A computation read something that has no value; the reason is already among the problems."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)


class View:
    """Stands for an instance that does not exist yet. Attributes are its fields; methods of its class work on it."""

    __slots__ = ("_evaluation", "_scope")

    def __init__(self, evaluation: Evaluation, scope: Scope) -> None:
        object.__setattr__(self, "_evaluation", evaluation)
        object.__setattr__(self, "_scope", scope)

    def __getattr__(self, name: str) -> Any:
        if name in self._scope.schema.fields:
            return self._evaluation.read(self._scope, name)
        attribute = getattr(self._scope.schema.cls, name)
        return attribute.__get__(self) if hasattr(attribute, "__get__") else attribute

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"{name!r} cannot be set here: computing and checking change nothing")

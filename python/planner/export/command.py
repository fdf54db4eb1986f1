"""What an engine is started with."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from planner.spelling import one_line

__all__ = ["Command"]

_PLAIN: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


@dataclass(frozen=True, slots=True, kw_only=True)
class Command:
    """What an engine is started with, so that its stages are those of a plan.

    Args:
        env: environment variables.
        args: the command and its arguments; empty where there is none.
        files: by name, texts that the arguments name, or that a program reads.
        notes: what to know of it.

    Example:
        >>> print(Command(env={"SPLIT": "3,5"}, args=("serve", "my model"), notes=("it is new",)).text)
        SPLIT=3,5 serve 'my model'
        # it is new
    """

    env: Mapping[str, str] = field(default_factory=dict)
    args: tuple[str, ...] = ()
    files: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def line(self) -> str:
        """One line for a shell."""
        variables = [
            f"{name}={shlex.quote(value)}" for name, value in self.env.items() if _PLAIN.fullmatch(name)
        ]
        return " ".join((*variables, *map(shlex.quote, self.args)))

    @property
    def text(self) -> str:
        """The line, each file, and notes behind ``#``."""
        files = [f"# {name}:\n{text.rstrip()}" for name, text in self.files.items()]
        return "\n".join(
            (*([self.line] if self.line else []), *files, *(f"# {one_line(note)}" for note in self.notes))
        )

"""What a placeholder gives where its values are read, and the error where it gives none."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NoReturn, Protocol

import torch

from planner.errors import OffloadError

__all__ = ["own_values", "read", "refuse", "require_no_graph"]


class Guard(Protocol):
    """What is asked of a placeholder here.

    ``fetch`` reads the values, and is None where they may not be read.
    """

    fetch: Any
    offloaded_name: str
    requires_grad: bool

    @property
    def whereabouts(self) -> Any:
        """What knows where its values rest."""

    @property
    def is_leaf(self) -> bool:
        """Whether no operation has made it."""


def read(guard: Guard, what: str) -> torch.Tensor:
    """The values, where they may be fetched; raises OffloadError otherwise."""
    if guard.fetch is None:
        refuse(guard, what)
    values: torch.Tensor = guard.fetch()
    return values


def require_no_graph(guards: Sequence[Guard]) -> None:
    """Raises OffloadError where a gradient would begin at what is read."""
    guard = next((guard for guard in guards if guard.requires_grad and not _is_own_leaf(guard)), None)
    if guard is None or not torch.is_grad_enabled():
        return
    raise OffloadError(
        f"'{guard.offloaded_name}' is offloaded and trainable: a gradient that comes from reading it would be lost; read it "
        "under torch.no_grad(), or freeze it with requires_grad_(False)",
        name=guard.offloaded_name,
    )


def _is_own_leaf(guard: Guard) -> bool:
    """Whether it is a parameter that code has made of a view: its gradient is not the model's."""
    where = guard.whereabouts
    return guard.is_leaf and where is not None and not where.is_of(guard)


def refuse(guard: Guard, what: str) -> NoReturn:
    """Raises OffloadError for an operation on a placeholder."""
    raise OffloadError(
        f"'{guard.offloaded_name}' is offloaded, and {what} reads its values outside the forward of its module; call the "
        "module instead, wrap the code in planner.align_module_device(module), place the module where it runs, or "
        "dispatch with outside='fetch'",
        name=guard.offloaded_name,
    )


def own_values(guard: Guard, what: str) -> torch.Tensor:
    """The values, also where code outside may not fetch them; those of a view as of any."""
    where = guard.whereabouts
    return where.values() if where is not None and where.is_of(guard) else read(guard, what)

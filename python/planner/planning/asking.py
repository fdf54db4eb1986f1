"""Asking back: the largest context or batch that devices have room for, and the first settings that have a plan."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Unpack

from planner.checkpoint.opened import Opened
from planner.checkpoint.source import open_source
from planner.choices import Asked, Limit
from planner.errors import InfeasibleError, InvalidInputError
from planner.model.tree import ModuleTree
from planner.planning.api import plan_problem
from planner.planning.problem import Problem
from planner.plans.plan import Plan
from planner.settings.keywords import PlanSettings
from planner.spelling import count_of, shown

if TYPE_CHECKING:
    from torch import nn

__all__ = ["FirstPlan", "Largest", "first_that_fits", "largest"]

_MOST_UNLIMITED: Final = 1 << 30
_ASKED: Final = ("context_length", "batch_size")


@dataclass(frozen=True, slots=True, kw_only=True)
class Largest:
    """The largest context or batch that devices have room for.

    Args:
        of: "context_length" or "batch_size".
        value: the largest that was found to have a plan.
        plan: its plan.
        limit: why not one more: "proven" that there is no room, "undecided" where none was found, "model" where the model's
            own longest context was met, or "asked" where ``upto`` was.
        tried: how many values were planned.
    """

    of: Asked
    value: int
    plan: Plan = field(repr=False)
    limit: Limit
    tried: int

    def __str__(self) -> str:
        why = {
            "proven": "one more has no room",
            "undecided": "no plan was found for one more",
            "model": "the model's longest context",
            "asked": "the most that was asked for",
        }[self.limit]
        return f"{self.of} = {self.value} ({why})"


@dataclass(frozen=True, slots=True, kw_only=True)
class FirstPlan:
    """The first settings that have a plan.

    Args:
        index: which of those that were given.
        settings: these.
        plan: their plan.
    """

    index: int
    settings: Mapping[str, Any]
    plan: Plan = field(repr=False)


def largest(
    source: nn.Module | ModuleTree | Opened | str | os.PathLike[str],
    of: Asked,
    /,
    *,
    upto: int | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
    remote: bool = False,
    config: Any = None,
    **settings: Unpack[PlanSettings],
) -> Largest:
    """The largest context, or the largest batch, with which a model still has a plan.

    Args:
        source: as in :func:`planner.plan`.
        of: "context_length" or "batch_size", which ``workload`` then leaves out.
        upto: the most to ask for; by default, of contexts, the model's own ``max_position_embeddings``.
        checkpoint, remote, config, settings: as in :func:`planner.plan`. Without devices to offload to, all of the model has to
            fit on accelerators; ``mode="gpu_only"`` asks the same where there are others.

    Returns:
        The value, its plan, and why not one more.

    Raises:
        InvalidInputError: another word for ``of``, or ``upto`` that is no count.
        InfeasibleError: not even 1 has a plan. Fields: as of :func:`planner.plan`.
        As :func:`planner.plan` for everything else.

    Guarantee: the value has a plan, and the next one was tried and has none, unless a limit was met; what a plan needs grows
        with both.

    Cost: one plan for each halving, about twice the logarithm of the value; the model is read once.

    Example:
        >>> from transformers import LlamaConfig, LlamaForCausalLM
        >>> model = LlamaForCausalLM(LlamaConfig(hidden_size=32, intermediate_size=48, num_hidden_layers=2, vocab_size=64,
        ...     num_attention_heads=4, num_key_value_heads=2))
        >>> found = largest(model, "context_length", max_memory={0: "1MiB"}, workload={"allocator_margin": 0})
        >>> found.of, found.limit, found.value > 100
        ('context_length', 'proven', True)
    """
    if of not in _ASKED:
        raise InvalidInputError(f"largest finds 'context_length' or 'batch_size', not {shown(of)}")
    if upto is not None and (count_of(upto) is None or type(upto) is not int or upto < 1):
        raise InvalidInputError(f"upto must be an int of at least 1, got {shown(upto)}")
    first = _problem_of(source, config, settings, checkpoint, remote, {of: 1})
    known = first.settings.model.max_position_embeddings if of == "context_length" else None
    most = upto or known or _MOST_UNLIMITED

    def planned(value: int) -> Plan:
        return plan_problem(_problem_of(first.opened, config, settings, None, False, {of: value}))

    value, plan, error, tried = _bisected(planned, most)
    if error is None:
        return Largest(
            of=of, value=value, plan=plan, limit="asked" if upto or not known else "model", tried=tried
        )
    return Largest(
        of=of, value=value, plan=plan, limit="proven" if error.is_proven else "undecided", tried=tried
    )


def first_that_fits(
    source: nn.Module | ModuleTree | Opened | str | os.PathLike[str],
    candidates: Iterable[PlanSettings | Mapping[str, Any]],
    /,
    *,
    checkpoint: str | os.PathLike[str] | None = None,
    remote: bool = False,
    config: Any = None,
) -> FirstPlan:
    """The first of several settings that have a plan: for element types, quantised formats, caches.

    Args:
        source: as in :func:`planner.plan`; read once.
        candidates: settings as keywords of :func:`planner.plan`, the ones that are wanted most first.
        checkpoint, remote, config: as in :func:`planner.plan`.

    Returns:
        The settings, and their plan.

    Raises:
        InvalidInputError: no settings.
        InfeasibleError: none has a plan: that of the last ones.
        As :func:`planner.plan` for settings that are wrong.

    Example:
        >>> import torch
        >>> model = torch.nn.Linear(10, 10, bias=False)
        >>> first_that_fits(model, [{"dtype": each, "max_memory": {0: 200}} for each in ("float32", "float16")]).index
        1
    """
    opened = open_source(source, checkpoint, remote=remote)
    last: InfeasibleError | None = None
    for index, settings in enumerate(candidates):
        try:
            plan = plan_problem(Problem.of(opened, config, dict(settings), None))
        except InfeasibleError as error:
            last = error
            continue
        return FirstPlan(index=index, settings=dict(settings), plan=plan)
    if last is None:
        raise InvalidInputError("first_that_fits needs at least one set of settings")
    raise last


def _problem_of(
    source: Any,
    config: Any,
    settings: Mapping[str, Any],
    checkpoint: Any,
    remote: bool,
    asked: Mapping[str, int],
) -> Problem:
    """The problem with one more word in its workload."""
    said = settings.get("workload") or {}
    name = next(iter(asked))
    if isinstance(said, Mapping) and name in said:
        raise InvalidInputError(f"largest finds {name}: leave it out of workload")
    prompt = said.get("prompt_length") if isinstance(said, Mapping) else None
    floor = {}
    if name == "context_length" and type(prompt) is int:
        floor = {"context_length": max(asked[name], prompt)}  # the prompt is part of it
    workload = {**said, **asked, **floor} if isinstance(said, Mapping) else said
    return Problem.of(source, config, {**settings, "workload": workload}, checkpoint, remote=remote)


def _bisected(planned: Callable[[int], Plan], most: int) -> tuple[int, Plan, InfeasibleError | None, int]:
    """The largest value with a plan, its plan, and the error of the next one; no error where the most has a plan."""
    best, plan, tried = 1, planned(1), 1
    error: InfeasibleError | None = None
    refused = most + 1
    step = 2
    while best < most and refused > most:  # upwards until something has no plan
        value = min(most, max(best + 1, best * step))
        tried += 1
        try:
            plan, best = planned(value), value
        except InfeasibleError as found:
            error, refused = found, value
        step *= 2
    while refused - best > 1:
        value = (best + refused) // 2
        tried += 1
        try:
            plan, best = planned(value), value
        except InfeasibleError as found:
            error, refused = found, value
    return best, plan, error if refused <= most else None, tried

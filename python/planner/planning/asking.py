"""Asking back: the largest context or batch that devices have room for, and the first settings that have a plan."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Unpack

from planner.checkpoint.opened import Opened
from planner.checkpoint.source import open_source
from planner.choices import Asked, Limit
from planner.config.problem import Rank
from planner.errors import InfeasibleError, InvalidInputError
from planner.model.tree import ModuleTree
from planner.planning.api import plan_problem
from planner.planning.looking import searched
from planner.planning.problem import Problem
from planner.plans.plan import Plan
from planner.settings.keywords import PlanSettings
from planner.settings.schema import Auto
from planner.spelling import shown

if TYPE_CHECKING:
    from torch import nn

    from planner.planning.guessing import Guess

__all__ = ["FirstPlan", "Largest", "first_that_fits", "largest"]

_MOST: Final = 1 << 30
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
        InvalidInputError: another word for ``of``, ``upto`` that is no count, ``of`` in the workload, or a prompt that is longer
            than any context that may be answered.
        InfeasibleError: not even 1, or a context of the prompt, has a plan. Fields: as of :func:`planner.plan`.
        As :func:`planner.plan` for everything else.

    Guarantee: the value has a plan, and the next one was tried and has none, unless a limit was met; what a plan needs grows
        with both. Both were recorded at that very value, where recordings are at hand.

    Cost: three recordings, or six where they show that windows are not full; milliseconds for a search in what they tell; and the
        plans of the value and of the next one. Where recordings have other operators at other values, one plan for each halving,
        about twice the logarithm of the value. The model is read once.

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
    if upto is not None and (type(upto) is not int or not 1 <= upto <= _MOST):
        raise InvalidInputError(f"upto must be an int from 1 to {_MOST}, got {shown(upto)}")
    problem_at = _problems(source, of, config, settings, checkpoint, remote)
    # A prompt that was said is within this context, whatever is asked for.
    first = problem_at(_MOST if of == "context_length" else 1)
    least, most, has_model_limit = _values(first, of, upto)

    def planned(value: int) -> Plan:
        return plan_problem(problem_at(value))

    value, plan, error, tried = searched(planned, least, most, _guess(first, of))
    limit: Limit
    if error is not None:
        limit = "proven" if error.is_proven else "undecided"
    else:
        limit = "model" if has_model_limit else "asked"
    return Largest(of=of, value=value, plan=plan, limit=limit, tried=tried)


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
        InvalidInputError: no settings, or something else than mappings of them.
        InfeasibleError: none has a plan: that of the last ones.
        As :func:`planner.plan` for settings that are wrong.

    Example:
        >>> import torch
        >>> model = torch.nn.Linear(10, 10, bias=False)
        >>> first_that_fits(model, [{"dtype": each, "max_memory": {0: 200}} for each in ("float32", "float16")]).index
        1
    """
    rows = _candidates(candidates)
    opened = open_source(source, checkpoint, remote=remote)
    last: InfeasibleError | None = None
    for index, settings in enumerate(rows):
        try:
            plan = plan_problem(Problem.of(opened, config, dict(settings), None))
        except InfeasibleError as error:
            last = error
            continue
        return FirstPlan(index=index, settings=dict(settings), plan=plan)
    assert last is not None
    raise last


def _candidates(candidates: object) -> list[Mapping[str, Any]]:
    """Sets of settings. Raises InvalidInputError."""
    if isinstance(candidates, str | Mapping) or not isinstance(candidates, Iterable):
        raise InvalidInputError(
            f"first_that_fits takes a list of settings, such as [{{'dtype': 'float16'}}], got {shown(candidates)}"
        )
    rows = list(candidates)
    wrong = [row for row in rows if not isinstance(row, Mapping)]
    if wrong or not rows:
        what = f"each as a mapping, got {shown(wrong[0])}" if wrong else "at least one"
        raise InvalidInputError(f"first_that_fits needs sets of settings, {what}")
    return rows


def _problems(
    source: Any, of: Asked, config: Any, settings: Mapping[str, Any], checkpoint: Any, remote: bool
) -> Callable[[int], Problem]:
    """The problem for each value of what is asked for; the model is opened once."""
    said = settings.get("workload") or {}
    opened = open_source(source, checkpoint, remote=remote)

    def at(value: int) -> Problem:
        workload = {**said, of: value} if isinstance(said, Mapping) else said
        problem = Problem.of(opened, config, {**settings, "workload": workload}, None)
        if (isinstance(said, Mapping) and of in said) or problem.resolved.past.get(("workload", of)):
            raise InvalidInputError(f"largest finds {of}: leave it out of workload")
        return problem

    return at


def _values(problem: Problem, of: Asked, upto: int | None) -> tuple[int, int, bool]:
    """The least and the most that may be answered, and whether that is the model's own limit."""
    workload = problem.settings.workload
    if of == "batch_size" or workload is None:
        return 1, upto or _MOST, False
    least = workload.prompt_tokens if _has_prompt(problem) else 1  # a prompt is part of its context
    longest = problem.settings.model.max_position_embeddings
    most = upto or longest or _MOST
    if most < least:
        what = "upto" if upto else "the longest context that the model was made for"
        raise InvalidInputError(
            f"a prompt of {least} tokens is longer than {what}, {most}: shorten prompt_length, or say a larger upto"
        )
    return least, most, upto is None and longest is not None


def _has_prompt(problem: Problem) -> bool:
    """Whether the length of the prompt was said; else the prompt is all of the context."""
    return problem.resolved.origin(("workload", "prompt_length")).rank is not Rank.COMPUTED


def _guess(problem: Problem, of: Asked) -> Guess | None:
    """What tells where to look; None where nothing does."""
    if not isinstance(problem.settings.strategy, Auto) or problem.settings.granularity == "module":
        return None  # blocks that may be taken apart are several searches
    from planner.planning.guessing import Guess  # few ask for this, and all that plan load this module

    return Guess(problem, of, has_prompt=_has_prompt(problem))

"""What a model takes while it runs, for any device map."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, Unpack

from planner.checkpoint.opened import Opened
from planner.errors import InvalidInputError
from planner.memory.demands import Demands
from planner.model.tree import ModuleTree
from planner.planning.problem import Problem
from planner.settings.keywords import PlanSettings

if TYPE_CHECKING:
    from torch import nn

__all__ = ["demands"]


def demands(
    source: nn.Module | ModuleTree | Opened | str | os.PathLike[str],
    /,
    *,
    checkpoint: str | os.PathLike[str] | None = None,
    remote: bool = False,
    config: Any = None,
    **settings: Unpack[PlanSettings],
) -> Demands:
    """What the blocks of a model take while they run with a workload, wherever they lie: ``planner.check`` holds maps against it.

    Args:
        source, checkpoint, remote, config, settings: as in :func:`planner.plan`, with a ``workload``; budgets say nothing here.

    Returns:
        By block, what it keeps and needs, and what is shared: the same that a plan of these settings has as ``plan.demands``.

    Raises:
        InvalidInputError: no workload, or one that cannot be planned for this model.
        UnknownMemoryError: a kind of layer or a number that is not known, of a model that is not recorded either.
        As :func:`planner.plan` for everything else, but for InfeasibleError.

    Cost: that of a recording, where one is at hand; see :func:`planner.plan`.

    Example:
        >>> import planner
        >>> from transformers import LlamaConfig, LlamaForCausalLM
        >>> model = LlamaForCausalLM(LlamaConfig(hidden_size=32, intermediate_size=48, num_hidden_layers=2, vocab_size=64,
        ...     num_attention_heads=4, num_key_value_heads=2))
        >>> running = demands(model, workload={"context_length": 1024, "batch_size": 8})
        >>> running.blocks["model.layers.1"].cache_bytes
        1048576
        >>> by_hand = {"model": 0, "lm_head": 1}
        >>> print(*planner.check(model, by_hand, {0: "1MiB", 1: "64MiB"}, running=running))
        device 0 would take 68.7 KiB of weights, 10.7 MiB of caches and activations: 9.76 MiB more than 1.00 MiB
    """
    problem = Problem.of(source, config, settings, checkpoint, remote=remote)
    found = problem.running_rooms(problem.blocks())
    if found is None:
        raise InvalidInputError(
            "demands needs a workload, such as workload={'context_length': 4096}: without one, nothing is taken beside weights"
        )
    return found.most

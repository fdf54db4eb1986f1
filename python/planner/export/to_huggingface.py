"""A plan as accelerate and transformers take it."""

from __future__ import annotations

import json

from planner.devices.nodes import node_of
from planner.errors import InvalidInputError
from planner.export.command import Command
from planner.plans.map_alone import execution_map_notice
from planner.plans.plan import Plan

__all__ = ["huggingface"]


def huggingface(plan: Plan) -> Command:
    """A device map and budgets, as ``from_pretrained`` takes them.

    Args:
        plan: any, for one computer.

    Raises:
        InvalidInputError: a plan for several computers.

    Example:
        >>> from torch import nn
        >>> import planner
        >>> model = nn.ModuleDict({"embed": nn.Embedding(9, 8), "layers": nn.ModuleList(nn.Linear(8, 8) for _ in range(4)),
        ...     "head": nn.Linear(8, 9)})
        >>> made = planner.plan(model, max_memory={0: 1160, 1: 700})
        >>> print(huggingface(made).files["device_map.json"].splitlines()[1])
          "embed": 0,
    """
    devices = {
        *plan.device_map.values(),
        *plan.execution_map.values(),
        *(device.id for device in plan.devices),
    }
    if any(node_of(device) for device in devices):
        raise InvalidInputError(
            "a device map is for one process, and this plan is for devices of several computers: plan for one of them"
        )
    budgets = {
        str(device.id): device.budget_bytes for device in plan.devices if device.budget_bytes is not None
    }
    notice = execution_map_notice(plan)
    said = (
        "in Python: AutoModelForCausalLM.from_pretrained(MODEL, device_map=json.load(open('device_map.json'))); max_memory alone "
        "would have accelerate plan again"
    )
    return Command(
        files={
            "device_map.json": json.dumps(dict(plan.device_map), indent=2, ensure_ascii=False) + "\n",
            "max_memory.json": json.dumps(budgets, indent=2) + "\n",
        },
        notes=(said, *([notice] if notice else [])),
    )

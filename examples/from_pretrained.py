"""Plan first, load then: the device map goes to `from_pretrained` as it is.

    python examples/from_pretrained.py [FOLDER]

The plan is for what this machine has free now, less a tenth; a checkpoint's names are already those of the live model.
"""

from __future__ import annotations

import torch
from transformers import AutoModelForCausalLM

import planner
from tiny_models import llama_folder


def main() -> None:
    folder = llama_folder()
    plan = planner.plan(folder)
    print(plan.summary())
    for device in plan.devices:
        print(f"{device.id}: {device.origin}")

    model = AutoModelForCausalLM.from_pretrained(folder, device_map=plan.device_map)
    tokens = model.generate(torch.tensor([[1, 2, 3]]), max_new_tokens=4, do_sample=False)
    print(f"{tokens.shape[1]} tokens")

    # What was loaded is where the plan says, by an independent judge.
    budgets = {device.id: device.budget_bytes for device in plan.devices}
    assert planner.is_valid(planner.check(model, plan.device_map, budgets))


if __name__ == "__main__":
    main()

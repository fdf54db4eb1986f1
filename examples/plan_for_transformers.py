"""A plan that somebody has looked at first, carried out by `from_pretrained`: with planner's dispatch, and with accelerate's.

    python examples/plan_for_transformers.py [FOLDER]

What comes out is the same; only planner's dispatch keeps where the plan says that offloaded blocks run.
"""

from __future__ import annotations

import tempfile

import torch
from transformers import AutoModelForCausalLM

import planner
from tiny_models import llama_folder

IDS = torch.tensor([[1, 2, 3]])


def main() -> None:
    folder = llama_folder()
    plan = planner.plan(folder, max_memory={"cpu": "120KiB", "disk": "1GiB"}, pin={"lm_head": "cpu"})
    print(plan.summary())

    # Inside, the plan itself is a device map, and where offloaded blocks run is kept, too.
    with planner.integrate():
        ours = AutoModelForCausalLM.from_pretrained(folder, device_map=plan)
    print(f"{len(planner.crossings(ours))} crossings")

    # The plain way needs nothing of planner at run time.
    with tempfile.TemporaryDirectory() as offload:
        theirs = AutoModelForCausalLM.from_pretrained(
            folder, device_map=plan.device_map, offload_folder=offload
        )
        same = ours(IDS).logits.equal(theirs(IDS).logits)
    print(f"{'the same' if same else 'NOT the same'} logits")


if __name__ == "__main__":
    main()

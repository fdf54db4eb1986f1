"""`device_map="auto"` as it stands in everybody's code, planned and carried out by planner.

    python examples/auto.py [FOLDER]

Any machine can run it: the model gets less memory than it needs, and what does not fit is streamed from its files.
"""

from __future__ import annotations

import torch
from transformers import AutoModelForCausalLM

import planner
from tiny_models import llama_folder

IDS = torch.tensor([[1, 2, 3]])


def main() -> None:
    folder = llama_folder()
    with planner.integrate() as here:
        model = AutoModelForCausalLM.from_pretrained(folder, device_map="auto", max_memory={"cpu": "120KiB"})
    print(here.plans[-1].summary())

    # The plan stays with the model, and the model works after the block.
    plan = planner.plan_of(model)
    assert plan is here.plans[-1] and plan.device_map == model.hf_device_map
    print(f"{model.generate(IDS, max_new_tokens=4, do_sample=False).shape[1]} tokens")

    # Taken off again, the model is what it would be without a device map.
    planner.undispatch(model)
    plain = AutoModelForCausalLM.from_pretrained(folder)
    print(
        f"undispatched: {'the same' if model(IDS).logits.equal(plain(IDS).logits) else 'NOT the same'} logits"
    )


if __name__ == "__main__":
    main()

"""LoRA on a base that is partly on disk: made, trained, merged and saved.

    python examples/adapters.py [FOLDER]

The base stays where it is; each adapter lies where its layer runs.
"""

from __future__ import annotations

import tempfile

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

import planner
from tiny_models import llama_folder

IDS = torch.tensor([[1, 2, 3, 4]])


def main() -> None:
    folder = llama_folder()
    with planner.integrate():
        base = AutoModelForCausalLM.from_pretrained(folder, device_map="auto", max_memory={"cpu": "120KiB"})
        model = get_peft_model(base, LoraConfig(target_modules=["q_proj", "v_proj"]))
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    print(
        f"{len(trained)} tensors of adapters on {', '.join(sorted({str(each.device) for each in trained}))}"
    )

    optimizer = torch.optim.SGD(trained, lr=1.0)
    losses = []
    for _ in range(3):
        loss = model(IDS, labels=IDS).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    print(f"loss {'falls' if losses[-1] < losses[0] else 'does NOT fall'}")

    trained_logits = model(IDS).logits
    with tempfile.TemporaryDirectory() as merged:
        model.merge_and_unload().save_pretrained(merged)
        again = AutoModelForCausalLM.from_pretrained(merged)
    far = (again(IDS).logits - trained_logits).abs().max().item()
    print(f"merged, saved and loaded: {'close to' if far < 0.1 else 'NOT close to'} the trained model")


if __name__ == "__main__":
    main()

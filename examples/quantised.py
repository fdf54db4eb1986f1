"""A quantiser and a budget: planned with the bytes that weights have when they are quantised.

    python examples/quantised.py [FOLDER]

Needs bitsandbytes. A model in four bits cannot be offloaded; if it does not fit, the error says what is missing.
"""

from __future__ import annotations

import torch
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

import planner
from tiny_models import llama_folder

IN_FOUR_BITS = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4")


def main() -> None:
    folder = llama_folder()
    device = 0 if torch.accelerator.is_available() else "cpu"
    with planner.integrate() as here:
        model = AutoModelForCausalLM.from_pretrained(
            folder, device_map="auto", max_memory={device: "1GiB"}, quantization_config=IN_FOUR_BITS
        )
        wide = planner.plan(folder, max_memory={device: "1GiB"})
        quantised = here.plans[-1]
        used = [sum(each.used_bytes for each in plan.devices) for plan in (wide, quantised)]
        print(f"planned for {used[1]} bytes in four bits, {used[0]} as stored")
        print(
            f"{model.generate(torch.tensor([[1, 2, 3]]), max_new_tokens=4, do_sample=False).shape[1]} tokens"
        )

        try:
            AutoModelForCausalLM.from_pretrained(
                folder, device_map="auto", max_memory={device: "40KiB"}, quantization_config=IN_FOUR_BITS
            )
        except planner.InfeasibleError as error:
            print(f"with 40 KiB: {str(error).splitlines()[0]}")


if __name__ == "__main__":
    main()

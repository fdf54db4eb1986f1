"""Runs a small Llama with every second block on disk, from the files it was saved to: python examples/demo_load.py"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM
from transformers.utils import logging

import planner
from planner.units import format_bytes

WORDS = 16


def save(folder: Path) -> int:
    """A Llama with random weights; returns its bytes."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 512, "intermediate_size": 1536, "vocab_size": 1024, "num_hidden_layers": 8}
    model = LlamaForCausalLM(LlamaConfig(**sizes, num_attention_heads=8, num_key_value_heads=4))
    model.to(torch.bfloat16).save_pretrained(folder, max_shard_size="20MB")
    return sum(path.stat().st_size for path in folder.glob("*.safetensors"))


def generated(model: Any) -> tuple[torch.Tensor, float]:
    """Tokens after a prompt, and seconds."""
    start = time.perf_counter()
    prompt = torch.arange(3, 11)[None]
    tokens: torch.Tensor = model.generate(prompt, max_new_tokens=WORDS, do_sample=False, pad_token_id=0)
    return tokens, time.perf_counter() - start


def main() -> None:
    torch.set_num_threads(1)
    logging.disable_progress_bar()
    with tempfile.TemporaryDirectory() as folder:
        size_bytes = save(Path(folder))
        plain = AutoModelForCausalLM.from_pretrained(folder, dtype="auto")
        device_map = {"": "cpu", **{f"model.layers.{number}": "disk" for number in range(0, 8, 2)}}
        print(f"\nA Llama of {format_bytes(size_bytes)} in files, every second block left there:")
        # Past the page cache, where all of so small a model lies; for a real one, the default looks first.
        model = planner.load(folder, plan=device_map, read="direct")
        print(f"  verified before anything is read: {planner.verify(plain, device_map)}")
        want, plain_s = generated(plain)
        found, streamed_s = generated(model)
        print(f"  {WORDS} tokens: {' '.join(map(str, found[0, -WORDS:].tolist()))}")
        same = "the same as" if found.equal(want) else "NOT THE SAME AS"
        print(f"  {same} transformers'; {streamed_s:.2f} s, all in memory {plain_s:.2f} s")
        for line in planner.load_report(model).summary().splitlines():
            print(f"  {line}")
    if not found.equal(want):
        raise SystemExit(1)


if __name__ == "__main__":
    main()

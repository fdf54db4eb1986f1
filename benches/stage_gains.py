"""The slowest stage with the split that each engine makes by itself, against ours: arithmetic with rates of data sheets.

.venv/bin/python benches/stage_gains.py --tokens 1 64
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, groupby
from typing import Any

import torch
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    DeepseekV3Config,
    Gemma3TextConfig,
    LlamaConfig,
    Qwen3Config,
)

import planner
from planner.devices.table_machine import machine_of_cards
from planner.plans.stages import layer_of, stages_of

CONFIGS: Mapping[str, Callable[[], Any]] = {
    "Llama-70B": lambda: LlamaConfig(
        hidden_size=8192,
        intermediate_size=28672,
        num_hidden_layers=80,
        num_attention_heads=64,
        num_key_value_heads=8,
        vocab_size=128256,
        dtype="bfloat16",
    ),
    "Gemma-3-27B": lambda: Gemma3TextConfig(
        hidden_size=5376,
        intermediate_size=21504,
        num_hidden_layers=62,
        num_attention_heads=32,
        num_key_value_heads=16,
        head_dim=128,
        vocab_size=262208,
        tie_word_embeddings=True,
        dtype="bfloat16",
    ),
    "Qwen3-32B": lambda: Qwen3Config(
        hidden_size=5120,
        intermediate_size=25600,
        num_hidden_layers=64,
        num_attention_heads=64,
        num_key_value_heads=8,
        head_dim=128,
        vocab_size=151936,
        tie_word_embeddings=False,
        dtype="bfloat16",
    ),
    "DeepSeek-V3": lambda: DeepseekV3Config(dtype="bfloat16"),
}
ROWS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("Llama-70B", ("H100 80GB SXM",) * 4),
    ("Gemma-3-27B", ("L4",) * 4),
    ("Gemma-3-27B", ("A10",) * 4),
    ("Qwen3-32B", ("RTX 4090",) * 4),
    ("Llama-70B", ("H100 80GB SXM",) * 2 + ("A100 80GB SXM",) * 2),
    ("Llama-70B", ("H100 80GB SXM", "A100 40GB SXM", "A100 40GB SXM", "L40S")),
    ("Qwen3-32B", ("RTX 4090", "RTX 4090", "RTX 3090", "L4")),
    ("DeepSeek-V3", ("H200 SXM",) * 16),
)
COLUMNS = ("model", "cards", "vLLM", "SGLang", "Megatron", "llama.cpp", "ours", "gain", "layers by stage")


def vllm(layers: int, memory: Sequence[int]) -> list[int] | None:
    """What is left over goes to the stages before the last."""
    counts = [layers // len(memory)] * len(memory)
    for back in range(2, layers % len(memory) + 2):
        counts[-back] += 1
    return counts


def sglang(layers: int, memory: Sequence[int]) -> list[int] | None:
    """What is left over goes to the last stages."""
    counts = [layers // len(memory)] * len(memory)
    for back in range(1, layers % len(memory) + 1):
        counts[-back] += 1
    return counts


def megatron(layers: int, memory: Sequence[int]) -> list[int] | None:
    """Equal counts, or none."""
    return None if layers % len(memory) else [layers // len(memory)] * len(memory)


def llama_cpp(layers: int, memory: Sequence[int]) -> list[int] | None:
    """By memory that is free, all of it here; the head is one more."""
    borders = [each / sum(memory) for each in accumulate(memory)]
    cards = [
        next(at for at, border in enumerate(borders) if border > layer / (layers + 1))
        for layer in range(layers)
    ]
    return [cards.count(card) for card in range(len(memory))]


DEFAULTS: Mapping[str, Callable[[int, Sequence[int]], list[int] | None]] = {
    "vLLM": vllm,
    "SGLang": sglang,
    "Megatron": megatron,
    "llama.cpp": llama_cpp,
}


@dataclass(frozen=True)
class Gain:
    """One row: picoseconds of the slowest stage by engine, with whether it fits; ours, and its counts by card."""

    model: str
    cards: tuple[str, ...]
    defaults: Mapping[str, tuple[int, bool] | None]
    ours_ps: int
    layers: tuple[tuple[str, int], ...]

    @property
    def gains(self) -> tuple[float, float]:
        """How much slower the best and the worst of the defaults are."""
        known = [each[0] / self.ours_ps for each in self.defaults.values() if each is not None]
        return min(known), max(known)

    def cells(self) -> list[str]:
        """The row as Markdown."""
        shown = [
            "-" if each is None else f"{each[0] / 1e9:.1f}{'' if each[1] else ' (no room)'}"
            for each in self.defaults.values()
        ]
        stages = [
            (layer, len(list(own)))
            for layer, own in groupby(f"{short(card)} {count}" for card, count in self.layers)
        ]
        counts = ", ".join(layer if times == 1 else f"{times} x {layer}" for layer, times in stages)
        least, most = self.gains
        gain = f"{least:.2f}-{most:.2f} x"
        return [self.model, grouped(self.cards), *shown, f"{self.ours_ps / 1e9:.1f}", gain, counts]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--tokens", type=int, nargs="+", default=[1])
    arguments = parser.parse_args()
    logging.disable(logging.CRITICAL)
    for tokens in arguments.tokens:
        print(f"\nSlowest stage in a step of {tokens} token{'s' if tokens > 1 else ''}, in ms:\n")
        print("\n".join(table(tokens)), flush=True)


def table(tokens: int) -> Iterator[str]:
    """The lines of the table."""
    yield f"| {' | '.join(COLUMNS)} |"
    yield "|---" * len(COLUMNS) + "|"
    made: dict[str, nn.Module] = {}
    for name, cards in ROWS:
        if name not in made:
            made = {name: model_of(name)}
        yield f"| {' | '.join(gain(name, made[name], cards, tokens).cells())} |"


def model_of(name: str) -> nn.Module:
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(CONFIGS[name]()).to(torch.bfloat16)


def gain(name: str, model: nn.Module, cards: tuple[str, ...], tokens: int) -> Gain:
    machine = machine_of_cards(dict(enumerate(cards)))
    memory = [machine.device(at).memory_bytes or 0 for at in range(len(cards))]
    room = {at: each * 9 // 10 for at, each in enumerate(memory)}
    plan = planner.plan(
        model,
        max_memory=room,
        machine=machine,
        engine="vllm",
        strategy={"type": "throughput", "tokens": tokens, "order": "any"},
    )
    assert plan.timing is not None and plan.timing.proven

    def priced(counts: list[int]) -> tuple[int, bool]:
        devices = [at for at, count in enumerate(counts) for _ in range(count)]
        homes, used = dict[str, int](), dict.fromkeys(room, 0)
        for block, size in plan.block_bytes.items():
            place = layer_of(block)
            end = devices[-1] if any(layer_of(key) for key in homes) else devices[0]
            homes[block] = end if place is None else devices[place[1]]
            used[homes[block]] += size
        timing = planner.price(model, homes, machine=machine, tokens=tokens, engine="vllm")
        return timing.bottleneck_ps, all(used[at] <= room[at] for at in room)

    layers = sum(stages_of(plan, "vllm").counts)
    splits = {engine: split(layers, memory) for engine, split in DEFAULTS.items()}
    return Gain(
        model=name,
        cards=cards,
        defaults={engine: None if counts is None else priced(counts) for engine, counts in splits.items()},
        ours_ps=plan.timing.bottleneck_ps,
        layers=tuple(
            (cards[stage.device], stage.count)
            for stage in stages_of(plan, "vllm").stages
            if isinstance(stage.device, int)
        ),
    )


def short(card: str) -> str:
    return (
        card.removesuffix(" SXM").removesuffix(" 80GB")
        if card.startswith("H100")
        else card.removesuffix(" SXM")
    )


def grouped(cards: Sequence[str]) -> str:
    """Cards with how many there are of each."""
    return " + ".join(f"{cards.count(card)} x {short(card)}" for card in dict.fromkeys(cards))


if __name__ == "__main__":
    main()

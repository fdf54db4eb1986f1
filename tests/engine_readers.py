"""What other engines make of a split, read anew from what they say of themselves; held against their own code by recorded cases."""

from __future__ import annotations

import json
import re
import struct
from collections.abc import Sequence

from planner.export import Command


def counts_of(text: str, layers: int, ranks: int) -> list[list[int]]:
    """By rank its first layer and the one behind its last, of counts as vLLM and SGLang have them. Raises ValueError."""
    counts = [int(word) for word in text.split(",")]
    if len(counts) != ranks or sum(counts) != layers:
        raise ValueError(f"{counts} for {ranks} ranks and {layers} layers")
    ends = [sum(counts[: at + 1]) for at in range(ranks)]
    return [[end - count, end] for end, count in zip(ends, counts, strict=True)]


def vllm_default(layers: int, ranks: int) -> list[int]:
    """vLLM's own counts: what is left over goes to those before the last."""
    counts = [layers // ranks] * ranks
    for back in range(2, layers % ranks + 2):
        counts[-back] += 1
    return counts


def sglang_default(layers: int, ranks: int) -> list[int]:
    """SGLang's own counts: what is left over goes to the last ones."""
    counts = [layers // ranks] * ranks
    for back in range(1, layers % ranks + 1):
        counts[-back] += 1
    return counts


def letters_of(layout: str, ranks: int, layers: int, extra: int) -> list[str]:
    """By rank the letters of a layout as Megatron has it. Raises ValueError."""
    stages = re.sub(r"(.)\*(\d+)", lambda found: found[1] * int(found[2]), layout).split("|")
    flat = "".join(stages)
    is_whole = re.fullmatch(f"Et{{{layers}}}m{{{extra}}}L", flat) is not None
    if not is_whole or len(stages) != ranks:
        raise ValueError(layout)
    return stages


def _single(value: float) -> float:
    """A float of 32 bits."""
    return float(struct.unpack("f", struct.pack("f", value))[0])


def llama_devices(layers: int, on_cards: int, split: Sequence[float]) -> list[int]:
    """By layer, and for the output behind them, the card that llama.cpp puts it on; -1 for the host."""
    sums, total = [], 0.0
    for share in split:
        total = _single(total + _single(share))
        sums.append(total)
    borders = [_single(each / total) for each in sums]
    first, active = max(layers + 1 - on_cards, 0), min(on_cards, layers + 1)

    def card(layer: int) -> int:
        if layer < first or layer - first >= active:
            return -1
        place = _single((layer - first) / active)
        return next(at for at, border in enumerate(borders) if border > place)

    return [card(layer) for layer in range(layers + 1)]


def in_runs(devices: Sequence[int]) -> list[list[int]]:
    """Devices with how many layers each has, in order."""
    runs: list[list[int]] = []
    for device in devices:
        if runs and runs[-1][0] == device:
            runs[-1][1] += 1
        else:
            runs.append([device, 1])
    return runs


def option(command: Command, name: str) -> str:
    """What stands behind an option."""
    return command.args[command.args.index(name) + 1]


def visible(command: Command, count: int) -> list[int]:
    """The cards that processes see, in the order of ranks."""
    return [
        int(each)
        for each in command.env.get("CUDA_VISIBLE_DEVICES", ",".join(map(str, range(count)))).split(",")
    ]


def emitted_counts(engine: str, command: Command, layers: int, extra: int = 0) -> list[int]:
    """The counts that an engine reads of a command; fails where it would refuse it."""
    if engine in ("vllm", "sglang"):
        ranks = int(option(command, "--pipeline-parallel-size"))
        ranges = counts_of(command.env[f"{engine.upper()}_PP_LAYER_PARTITION"], layers, ranks)
        return [end - first for first, end in ranges]
    if engine == "megatron":
        ranks = int(option(command, "--pipeline-model-parallel-size"))
        return [
            stage.count("t")
            for stage in letters_of(option(command, "--pipeline-model-parallel-layout"), ranks, layers, extra)
        ]
    if engine == "tensorrt_llm":
        found = re.fullmatch(
            r"pipeline_parallel_size: (\d+)\npp_partition: \[(.*)\]\n", command.files["options.yaml"]
        )
        assert found is not None
        counts = [int(each) for each in found[2].split(", ")]
        assert len(counts) == int(found[1])
        return counts
    if engine == "torchtitan":
        text = command.files["parallelism.py"]
        parts = json.loads(text.partition("module_fqns_per_model_part = ")[2])
        names = ["tok_embeddings", *(f"layers.{at}" for at in range(layers)), "norm", "lm_head"]
        assert [name for part in parts for name in part] == names
        return [sum(name.startswith("layers.") for name in part) for part in parts]
    return [int(each) for each in command.notes[0].removeprefix("layers by stage: ").split(", ")]

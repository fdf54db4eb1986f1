"""What other engines make of a split, read anew from what they say of themselves; held against their own code by recorded cases."""

from __future__ import annotations

import re
import struct
from collections.abc import Sequence


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

"""What one device reads and computes in a second."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Final

import torch
from torch import nn

from planner.devices.machine_parts import MachineDevice
from planner.devices.rate import Rate
from planner.measuring.places import Place
from planner.measuring.shots import Shots, shots_of

ELEMENT_TYPES: Final = ("bfloat16", "float16", "float32")
TOKENS: Final = (1, 16, 128)

_READ_AS: Final = "float32"  # hosts convert narrower ones, slower than they read
_WIDTH: Final = 4096  # as wide as weights of models are
_CACHES: Final = 8  # weights that are read in turn are so many times what the last cache holds
_LEAST_MATRICES: Final = 2
_MEMORY_SHARE: Final = 4  # of free memory, one part in so many
_BLOCK_WIDTH: Final = 16


def measured_device(place: Place, most_s: float) -> tuple[MachineDevice, list[str]]:
    """A device with its rates, and what could not be measured.

    Args:
        place: which.
        most_s: for all of it together, about.
    """
    each_s = most_s / (len(ELEMENT_TYPES) * len(TOKENS) + 2)
    notes: list[str] = []
    weights: dict[str, Mapping[int, Rate]] = {}
    flops: dict[str, Rate] = {}
    memory: Rate | None = None
    launch = _launch(place, each_s)
    for name in ELEMENT_TYPES:
        try:
            matrices = _matrices(place, getattr(torch, name))
            shots = {tokens: _linear(place, matrices, tokens, each_s) for tokens in TOKENS}
        except (RuntimeError, TypeError, NotImplementedError) as error:
            notes.append(f"{place.key}: no rate for {name}: {first_line(error)}")
            continue
        size_bytes = matrices[0].nbytes
        weights[name] = {
            tokens: found.rate(size_bytes, f"linear of {tokens} tokens, {_WIDTH} x {_WIDTH}")
            for tokens, found in shots.items()
        }
        most = TOKENS[-1]
        flops[name] = shots[most].rate(2 * matrices[0].numel() * most, f"linear of {most} tokens")
        if name == _READ_AS:
            read = _read(place, matrices, each_s).rate(size_bytes, "sum of a buffer")
            # Neither is more than memory gives; which kernel comes nearer differs between back ends.
            memory = max(read, weights[name][1], key=lambda rate: rate.value)
        del matrices
    if memory is None:
        notes.append(f"{place.key}: its memory was not measured")
    device = MachineDevice(
        id=place.key,
        kind=place.device.type,
        name=place.name,
        memory_bytes=place.memory_bytes,
        memory_bytes_per_s=memory,
        flops_per_s=flops,
        weights_bytes_per_s=weights,
        launch_ps=launch,
    )
    return device, notes


def _matrices(place: Place, dtype: torch.dtype) -> Sequence[torch.Tensor]:
    """Weights that are read one after the other, together beyond the last cache."""
    one_bytes = _WIDTH * _WIDTH * dtype.itemsize
    wanted = -(-_CACHES * place.cache_bytes // one_bytes)
    most = place.free_bytes // _MEMORY_SHARE // one_bytes
    count = max(_LEAST_MATRICES, min(wanted, most))
    # Zeros may be pages that were never written, which cost nothing to read.
    return [torch.full((_WIDTH, _WIDTH), 0.5, dtype=dtype, device=place.device) for _ in range(count)]


def _linear(place: Place, matrices: Sequence[torch.Tensor], tokens: int, most_s: float) -> Shots:
    inputs = torch.full((tokens, _WIDTH), 0.5, dtype=matrices[0].dtype, device=place.device)
    turns = itertools.cycle(matrices)
    with torch.no_grad():
        return shots_of(lambda: nn.functional.linear(inputs, next(turns)), place.wait, most_s=most_s)


def _read(place: Place, matrices: Sequence[torch.Tensor], most_s: float) -> Shots:
    turns = itertools.cycle(matrices)
    return shots_of(lambda: next(turns).sum(), place.wait, most_s=most_s)


def _launch(place: Place, most_s: float) -> Rate:
    """What each module takes of a block that is too small to compute anything."""
    block = nn.TransformerEncoderLayer(_BLOCK_WIDTH, 2, _BLOCK_WIDTH, dropout=0.0, batch_first=True)
    block = block.eval().to(place.device)
    inputs = torch.zeros((1, 1, _BLOCK_WIDTH), device=place.device)
    with torch.no_grad():
        shots = shots_of(lambda: block(inputs), place.wait, most_s=most_s)
    modules = sum(1 for module in block.modules() if module._parameters)
    return shots.duration_ps(f"a block of width {_BLOCK_WIDTH}").scaled(
        1 / modules, f"one of {modules} modules"
    )


def first_line(error: BaseException) -> str:
    """What an error says first."""
    return (str(error).splitlines() or [type(error).__name__])[0][:200]

"""Placements on virtual accelerators with a clock: what declared rates take is slept, for each run, each copy of weights and each hop."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

import planner
from planner.devices.machine import Machine
from planner.devices.machine_parts import Link, MachineDevice
from planner.devices.rate import Rate
from planner.plans.device_map import DeviceMap, HostSteps

TOKENS = 12
LAYERS = 4
IDS = torch.arange(TOKENS)[None]
APART = 1.1
"""Pairs of which one is modelled to take so much more count."""


@dataclass(frozen=True, kw_only=True)
class Placed:
    """One placement: what was modelled and measured of it, and the bytes of weights that it fetches.

    Args:
        slept_bytes: to accelerators, of all copies that were slept for.
        copied_bytes: to accelerators, as these count them.
    """

    device_map: DeviceMap
    modelled_s: float
    measured_s: float
    fetched_bytes: int
    slept_bytes: int
    copied_bytes: int

    @property
    def ratio(self) -> float:
        """Measured in comparison."""
        return self.measured_s / self.modelled_s


def model() -> nn.Module:
    """Small enough to compute in no time."""
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=64,
        intermediate_size=96,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=128,
        num_hidden_layers=LAYERS,
        attn_implementation="eager",
        use_cache=False,
    )
    return LlamaForCausalLM(config).eval()


def machine() -> Machine:
    """Two cards and a host as slow as sleeping is exact."""

    def device(key: int | str, memory: int) -> MachineDevice:
        flops = {"float32": Rate.of_user(10**12)}
        return MachineDevice(
            id=key,
            kind="cpu" if key == "cpu" else "virtual",
            memory_bytes_per_s=Rate.of_user(memory),
            flops_per_s=flops,
        )

    links = tuple(
        Link(source="cpu", to=key, bytes_per_s=Rate.of_user(rate))
        for key, rate in ((0, 600_000), (1, 500_000))
    )
    return Machine(
        devices=(device(0, 6_000_000), device(1, 3_000_000), device("cpu", 1_000_000)), links=links
    )


def drawn(draw: random.Random) -> DeviceMap:
    """One stretch for each device; on accelerators layers resident or fetched, MLPs also on the host, always or in short steps."""
    cuts = sorted(draw.choices(range(LAYERS + 1), k=2))
    homes: dict[str, int | str] = {
        "model.embed_tokens": 0,
        "model.norm": 1,
        "lm_head": 1,
        "model.rotary_emb": 1,
    }
    runs: dict[str, int | str] = {}
    sized: dict[str, HostSteps] = {}
    for number in range(LAYERS):
        layer, stage = f"model.layers.{number}", [0, 1, "cpu"][sum(number >= cut for cut in cuts)]
        homes[layer] = stage
        way = (
            draw.choice(("resident", "fetched", "beside", "short", "long")) if stage != "cpu" else "resident"
        )
        if way == "fetched":
            homes[layer], runs[layer] = "cpu", stage
        elif way != "resident":
            homes[f"{layer}.mlp"] = "cpu"
            # One that runs on the host up to one token less than this step has is fetched.
            limit = {"beside": None, "short": TOKENS, "long": TOKENS - 1}[way]
            if limit is not None and isinstance(stage, int):
                sized[f"{layer}.mlp"] = HostSteps(limit, stage)
            runs[f"{layer}.mlp"] = "cpu"
    return DeviceMap(homes, runs, sized)


@dataclass
class Clock:
    """Sleeps, and the bytes that it has slept for to accelerators."""

    rates: Machine
    run_s: Mapping[str, Mapping[str, float]]
    up_bytes: int = 0
    is_copying: bool = False

    @contextmanager
    def on(self, watched: nn.Module) -> Iterator[None]:
        """Within, each copy by `Tensor.to` and each run of a piece takes its time."""
        plain = torch.Tensor.to

        def to(tensor: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
            # Of some tensors, it is called once more from within.
            is_outer, self.is_copying = not self.is_copying, True
            try:
                found = plain(tensor, *args, **kwargs)
            finally:
                self.is_copying = not is_outer
            if is_outer and found.device != tensor.device:
                size = tensor.numel() * tensor.element_size()
                self.up_bytes += size if tensor.device.type == "cpu" else 0
                ends = [each.device.index if each.device.type != "cpu" else "cpu" for each in (tensor, found)]
                time.sleep(self.rates.route(*ends).copy_ps(size) / 1e12)
            return found

        with ExitStack() as stack:
            stack.callback(setattr, torch.Tensor, "to", plain)
            torch.Tensor.to = to  # type: ignore[method-assign, assignment]
            for name in self.run_s["0"]:
                stack.callback(self._watch(name, watched.get_submodule(name)).remove)
            yield

    def _watch(self, name: str, module: nn.Module) -> Any:
        """Sleeps where a piece computes: where the first linear layer inside has its argument, or where a leaf's result is."""
        linear = next((each for each in module.children() if isinstance(each, nn.Linear)), None)
        if linear is None:
            return module.register_forward_hook(lambda _, __, output: self._run(name, _tensor(output).device))
        return linear.register_forward_pre_hook(lambda _, args: self._run(name, args[0].device))

    def _run(self, name: str, device: torch.device) -> None:
        time.sleep(self.run_s["cpu" if device.type == "cpu" else str(device.index)][name])


def _tensor(output: Any) -> torch.Tensor:
    return output if isinstance(output, torch.Tensor) else output[0]


def run_times(built: nn.Module, rates: Machine) -> dict[str, dict[str, float]]:
    """By device and piece, what running it takes there: attention with the norms of its layer, each MLP, and what is beside."""
    found: dict[str, dict[str, float]] = {}
    for key in (0, 1, "cpu"):
        plan = planner.plan(
            built,
            max_memory={key: "1GiB"},
            headroom=None,
            machine=rates,
            granularity="part",
            strategy={"type": "latency", "tokens": TOKENS},
        )  # type: ignore[call-overload, unused-ignore]
        assert plan.timing is not None
        found[str(key)] = {piece.name: piece.run_ps / 1e12 for piece in plan.timing.pieces}
    return found


def measured(accelerators: Any, device_map: DeviceMap, *, rounds: int = 2) -> Placed:
    """Runs a placement with the clock, and prices it."""
    built, rates = model(), machine()
    clock = Clock(rates, run_times(built, rates))
    timing = planner.price(built, device_map, tokens=TOKENS, machine=rates)
    fetched = [piece.name for piece in timing.pieces if piece.way == "fetched"]
    fetched_bytes = sum(_bytes(built, name) for name in fetched)
    planner.dispatch(built, device_map)
    times = []
    with torch.no_grad():
        built(IDS)
        for _ in range(rounds):
            accelerators.reset()
            clock.up_bytes = 0
            with clock.on(built):
                begun = time.perf_counter()
                built(IDS)
                times.append(time.perf_counter() - begun)
    copied_bytes = accelerators.traffic().to_device_bytes
    return Placed(
        device_map=device_map,
        modelled_s=timing.latency_ps / 1e12,
        measured_s=min(times),
        fetched_bytes=fetched_bytes,
        slept_bytes=clock.up_bytes,
        copied_bytes=copied_bytes,
    )


def _bytes(built: nn.Module, name: str) -> int:
    """Of a piece, which is named by its first module: of attention in a layer that is in parts, never fetched here, all of it."""
    return sum(each.numel() * each.element_size() for each in built.get_submodule(name).parameters())


def inversions(placed: Sequence[Placed], apart: float = APART) -> tuple[int, int]:
    """Pairs modelled so far apart, and those of them that were measured the other way round."""
    pairs = [
        (one, other)
        for each, next_one in combinations(placed, 2)
        for one, other in [sorted((each, next_one), key=lambda row: row.modelled_s)]
        if other.modelled_s >= apart * one.modelled_s
    ]
    return len(pairs), sum(one.measured_s >= other.measured_s for one, other in pairs)

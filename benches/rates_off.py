"""What a plan by time costs more than the best where the machine's rates are not what was said: every rate off by a factor of its own.

.venv/bin/python benches/rates_off.py --draws 20
"""

from __future__ import annotations

import argparse
import logging
import math
import random
from collections.abc import Mapping
from dataclasses import replace
from statistics import median
from typing import Any

import planner
from placements_by_time import ROWS, model_of
from planner.devices.machine import Machine
from planner.devices.rate import Rate

_WIDTHS = (0.26, 0.5)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--draws", type=int, default=20)
    parser.add_argument("--tokens", type=int, nargs="+", default=[1, 16, 1024])
    arguments = parser.parse_args()
    logging.disable(logging.CRITICAL)
    print(
        "| model | machine | tokens | rates off by up to | median above the best | worst |\n|---|---|---|---|---|---|"
    )
    for name, computer in ROWS:
        model = model_of(name)
        for tokens in arguments.tokens:
            strategy = {"type": "latency", "tokens": tokens, "order": "any"}
            common: dict[str, Any] = {
                "max_memory": computer.budgets(),
                "headroom": None,
                "strategy": strategy,
            }
            said = planner.plan(model, machine=computer.machine(), **common)
            for width in _WIDTHS:
                above = []
                for seed in range(arguments.draws):
                    true = changed(computer.machine(), width, random.Random(seed))
                    best = planner.plan(model, machine=true, **common).timing
                    assert best is not None
                    above.append(
                        planner.price(model, said, machine=true, tokens=tokens).latency_ps / best.value_ps - 1
                    )
                factor = math.exp(width)
                print(
                    f"| {name} | {computer.name} | {tokens} | {factor - 1:.0%} | {median(above):.1%} | {max(above):.1%} |",
                    flush=True,
                )


def changed(machine: Machine, width: float, draw: random.Random) -> Machine:
    """A machine whose every rate is another, by a factor of e to the power of plus or minus the width.

    Equal rates stay equal: cards of one kind are off alike.
    """
    factors: dict[Rate, float] = {}

    def one(rate: Rate | None) -> Rate | None:
        if rate is None:
            return None
        factor = factors.setdefault(rate, math.exp(draw.uniform(-width, width)))
        return Rate.of_user(round(rate.value * factor))

    def each(rates: Mapping[str, Rate]) -> dict[str, Rate]:
        return {name: found for name, rate in rates.items() if (found := one(rate)) is not None}

    devices = tuple(
        replace(
            device,
            memory_bytes_per_s=one(device.memory_bytes_per_s),
            flops_per_s=each(device.flops_per_s),
            launch_ps=one(device.launch_ps),
        )
        for device in machine.devices
    )
    links = tuple(
        replace(link, bytes_per_s=one(link.bytes_per_s) or link.bytes_per_s, latency_ps=one(link.latency_ps))
        for link in machine.links
    )
    return Machine(devices=devices, links=links)


if __name__ == "__main__":
    main()

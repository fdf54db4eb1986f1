"""Whether plans that are modelled to take longer do: drawn placements on the virtual accelerators, with declared rates as sleeps.

PYTHONPATH=tests .venv/bin/python benches/clocked_order.py [--placements 28]
"""

from __future__ import annotations

import argparse
import random

import torch

from clocked_runs import APART, drawn, inversions, measured
from rig.accelerators import Accelerators


def main() -> None:
    """Prints pairs, inversions and what was measured in comparison."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--placements", type=int, default=28)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--rounds", type=int, default=4, help="the shortest counts: what else runs here only adds"
    )
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    accelerators, draw = Accelerators(), random.Random(arguments.seed)
    placed = [
        measured(accelerators, drawn(draw), rounds=arguments.rounds) for _ in range(arguments.placements)
    ]
    pairs, inverted = inversions(placed)
    ratios = [each.ratio for each in placed]
    fetching = sum(each.fetched_bytes > 0 for each in placed)
    print(f"{len(placed)} placements, {fetching} of them with fetched weights")
    print(
        f"{pairs} pairs modelled at least {APART - 1:.0%} apart, {inverted} of them measured the other way round"
    )
    print(f"measured / modelled: {min(ratios):.2f} to {max(ratios):.2f}")
    beyond = [each.slept_bytes - each.fetched_bytes for each in placed]
    print(f"slept for on the way up beside fetched weights: {min(beyond)} to {max(beyond)} bytes")


if __name__ == "__main__":
    main()

"""Whether splits of a pipeline that are modelled to take longer do: two and three processes that sleep, through torch's GPipe schedule.

PYTHONPATH=tests .venv/bin/python benches/pipeline_order.py
"""

from __future__ import annotations

import random

from clocked_pipelines import APART, PIECES, drawn, inversions, measured_s, modelled_s

SPLITS = {2: PIECES - 1, 3: 11}
"""By processes, how many splits: of two, all that there are."""


def main() -> None:
    """Prints pairs, inversions and what was measured in comparison."""
    draw = random.Random(0)
    for stages, count in SPLITS.items():
        splits: list[tuple[int, ...]] = []
        while len(splits) < count:
            split = drawn(draw, stages)
            splits += [split] if split not in splits else []
        modelled, measured = [modelled_s(split) for split in splits], measured_s(splits)
        pairs, inverted = inversions(modelled, measured)
        ratios = [took / wanted for wanted, took in zip(modelled, measured, strict=True)]
        print(
            f"{stages} processes, {count} splits: {pairs} pairs modelled at least {APART - 1:.0%} apart, {inverted} measured the other "
            f"way round; measured / modelled {min(ratios):.2f} to {max(ratios):.2f}"
        )


if __name__ == "__main__":
    main()

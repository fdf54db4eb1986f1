"""What one plan, made for one token, takes in a step of one token and in one of a prompt, by who runs longer steps: arithmetic.

.venv/bin/python benches/long_steps.py
"""

from __future__ import annotations

import logging

import planner
from placements_by_time import ROWS, model_of

WORDS = ("host", "fetch", "fetch_all")
PROMPT = 1024


def main() -> None:
    """Prints a row for each model and machine."""
    logging.disable(logging.CRITICAL)
    print(f"| model | machine | {' | '.join(f'`{word}`' for word in WORDS)} |")
    print("|---" * (len(WORDS) + 2) + "|")
    for name, computer in ROWS:
        model, machine, cells = model_of(name), computer.machine(), []
        for word in WORDS:
            plan = planner.plan(
                model,
                max_memory=computer.budgets(),
                headroom=None,
                machine=machine,
                strategy={"type": "latency", "order": "any", "long_steps": word},
            )
            takes = [
                planner.price(model, plan, machine=machine, tokens=tokens).latency_ps / 1e9
                for tokens in (1, PROMPT)
            ]
            cells.append(" / ".join(f"{ms:.0f}" for ms in takes))
        print(f"| {name} | {computer.name} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()

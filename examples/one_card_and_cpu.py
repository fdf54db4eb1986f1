"""One card that is too small: what stays on it, what is streamed from the host, and how much more would be enough.

    python examples/one_card_and_cpu.py [FOLDER]

The same on the command line:

    planner plan FOLDER -d 0=100KiB -d cpu=1MiB
    planner plan FOLDER -d 0=100KiB -d cpu=1MiB --granularity module
"""

from __future__ import annotations

import planner
from tiny_models import llama_folder

ROOM = {0: "100KiB", "cpu": "1MiB"}


def main() -> None:
    folder = llama_folder()
    plan = planner.plan(folder, max_memory=ROOM)
    print(plan.summary())

    # What lies on the cpu runs on the card, through room that the plan keeps for one block.
    for name, device in plan.execution_map.items():
        print(f"{name} runs on {device}")
    assert plan.shortfall is not None
    print(f"with {plan.shortfall.more_bytes[0]} bytes more on 0, nothing would be offloaded")

    # Smaller pieces need less room while they are streamed, so more can stay.
    finer = planner.plan(folder, max_memory=ROOM, granularity="module")
    print(f"blocks: {plan.offloaded_bytes['cpu']} bytes offloaded")
    print(f"modules: {finer.offloaded_bytes['cpu']} bytes offloaded")


if __name__ == "__main__":
    main()

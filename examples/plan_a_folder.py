"""Plan a checkpoint without building the model: only the headers of its files are read.

    python examples/plan_a_folder.py [FOLDER]

The same on the command line:

    planner plan FOLDER -d 0=100KiB -d 1=60KiB -d cpu=1MiB -o plan.json
    planner explain plan.json model.layers.7.mlp
"""

from __future__ import annotations

from pathlib import Path

import planner
from tiny_models import llama_folder


def main() -> None:
    folder = llama_folder()
    plan = planner.plan(folder, max_memory={0: "100KiB", 1: "60KiB", "cpu": "1MiB"})

    print(plan.summary())
    print(plan.device_map)
    print(planner.explain(plan, "model.layers.7.mlp"))

    # A plan is a file that says the same on every machine.
    Path(folder, "plan.json").write_text(plan.to_json())
    assert planner.Plan.from_json(Path(folder, "plan.json").read_text()) == plan


if __name__ == "__main__":
    main()

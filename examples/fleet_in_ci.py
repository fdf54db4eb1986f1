"""A fleet in continuous integration: does the model still fit each kind of machine that we run it on?

    python examples/fleet_in_ci.py [FOLDER]

It does what a job would do: one line of budgets for each kind of machine, one call of the command, and its exit code,
which is 1 if any line has no plan. No machine of the fleet is needed, and no torch.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from tiny_models import llama_folder

FLEET = {
    "two large cards": {"0": "100KiB", "1": "100KiB"},
    "four small cards": {"0": "50KiB", "1": "50KiB", "2": "50KiB", "3": "50KiB"},
    "one small card": {"0": "50KiB"},
    "one small card with host memory": {"0": "50KiB", "cpu": "1MiB"},
}


def main() -> int:
    folder = llama_folder()
    rows = Path(folder, "fleet.jsonl")
    rows.write_text("".join(f"{json.dumps(budgets)}\n" for budgets in FLEET.values()))
    command = [sys.executable, "-m", "planner", "plan", str(folder), "--budgets", str(rows)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    for machine, line in zip(FLEET, map(json.loads, done.stdout.splitlines()), strict=True):
        if line["feasible"]:
            offloaded = sum(line["plan"]["offloaded_bytes"].values())
            print(f"{machine}: fits, {offloaded} bytes offloaded")
        else:
            print(f"{machine}: {line['error']['message']}")
    return done.returncode


if __name__ == "__main__":
    sys.exit(main())

"""Two cards of different size: what fits, how full each becomes, and what would change it.

    python examples/unlike_cards.py [FOLDER]

The same on the command line:

    planner plan FOLDER -d 0=180KiB -d 1=90KiB --fill fewest
    planner plan FOLDER -d 0=180KiB -d 1=90KiB --headroom 0=60KiB
"""

from __future__ import annotations

import planner
from tiny_models import llama_folder

CARDS = {0: "180KiB", 1: "90KiB"}


def main() -> None:
    folder = llama_folder()

    # The default leaves both cards equally full, so that the KV cache can grow longest.
    even = planner.plan(folder, max_memory=CARDS, mode="gpu_only")
    print(f"even:\n{even.summary()}")

    # On as few cards as possible, or with room for another process on one of them.
    fewest = planner.plan(folder, max_memory=CARDS, mode="gpu_only", strategy={"fill": "fewest"})
    print(f"even, and what fewest changes:\n{even.diff(fewest)}")
    guarded = planner.plan(folder, max_memory=CARDS, mode="gpu_only", headroom={0: "60KiB"})
    print(f"with headroom on 0:\n{guarded.summary()}")

    # When it cannot be done, the error says by how much.
    try:
        planner.plan(folder, max_memory=CARDS, mode="gpu_only", headroom={0: "120KiB"})
    except planner.InfeasibleError as error:
        print(error)


if __name__ == "__main__":
    main()

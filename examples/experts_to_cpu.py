"""A mixture of experts on a small card: attention stays on it, the experts go to the host.

    python examples/experts_to_cpu.py [FOLDER]

A layer of Mixtral is one block, and a block lies on one device. So the experts and the attention are named as what must
stay whole instead, and each experts module is pinned. On the command line:

    planner plan FOLDER -d 0=96KiB -d cpu=1MiB --no-split MixtralExperts,MixtralAttention \\
        --pin model.layers.0.mlp.experts=cpu --pin model.layers.1.mlp.experts=cpu …
"""

from __future__ import annotations

import planner
from planner.plans.wording import first_device_of
from tiny_models import mixtral_folder

LAYERS = 4


def main() -> None:
    folder = mixtral_folder()
    experts = [f"model.layers.{layer}.mlp.experts" for layer in range(LAYERS)]
    plan = planner.plan(
        folder,
        max_memory={0: "96KiB", "cpu": "1MiB"},
        no_split_module_classes=["MixtralExperts", "MixtralAttention"],
        pin=dict.fromkeys(experts, "cpu"),
        execute_offloaded="cpu",  # the host computes its experts itself, so no room is kept for streaming
    )
    print(plan.summary())
    for layer in range(LAYERS):
        attention, mlp = f"model.layers.{layer}.self_attn", f"model.layers.{layer}.mlp"
        homes = {
            name: first_device_of(plan.device_map, name)
            for name in (attention, f"{mlp}.gate", f"{mlp}.experts")
        }
        print(homes)


if __name__ == "__main__":
    main()

"""From a live model to its device map, beside accelerate, transformers and `list(model.named_parameters())`.

    python benches/bench_plan.py            the whole table, as `make bench` prints it
    python benches/bench_plan.py --quick    smaller models, fewer repetitions: a minute
    python benches/bench_plan.py --json     the same figures as JSON

Everything runs in one process; contenders take turns, and the median of each is reported. How the figures are
made, and those measured last, are in benches/README.md.
"""

from __future__ import annotations

import argparse
import gc
import json
import logging
import os
import platform
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import accelerate
import psutil
from transformers.integrations.accelerate import infer_auto_device_map as transformers_map

import models
import planner
from planner.checker.check import check, is_valid
from planner.compat.transformers import infer_auto_device_map as planner_transformers_map
from planner.model.tree import ModuleTree
from planner.strategies.sequential import Layout, sequential, sequential_many
from timing import NOT_RUN, TURN_S, Timing, race, ratio, slope, table, times, words

GIB = 1 << 30
LEAF_BYTES = 1024
UNEQUAL = {0: 80 * GIB, 1: 24 * GIB, "cpu": 200 * GIB}

Budgets = Mapping[Any, int]


@dataclass(frozen=True)
class Row:
    """One case of the end-to-end table."""

    case: str
    modules: int
    timings: dict[str, Timing]
    maps: str

    def ratio(self, above: str, below: str, *, cold: bool = False) -> float | None:
        """How many times as long `above` takes as `below`; None where one of them has no time."""
        pair = [self.timings.get(name, NOT_RUN) for name in (above, below)]
        return ratio(*(timing.cold_turns if cold else timing.turns for timing in pair))


@dataclass
class Report:
    """Everything that was measured, in the order of printing."""

    environment: dict[str, str]
    rows: list[Row] = field(default_factory=list)
    growth: list[dict[str, Any]] = field(default_factory=list)
    steps: list[tuple[str, float]] = field(default_factory=list)
    memory: dict[str, float] = field(default_factory=dict)
    aims: list[tuple[str, str, bool]] = field(default_factory=list)


def module_count(model: Any) -> int:
    return sum(1 for _ in model.modules())


def model_bytes(model: Any) -> int:
    return sum(parameter.nbytes for parameter in model.parameters())


def shared_out(model: Any, devices: int, share: float) -> dict[Any, int]:
    """Equal budgets that hold `share` of the model together, and a cpu that holds the rest."""
    return {
        **{device: int(model_bytes(model) * share / devices) for device in range(devices)},
        "cpu": 1 << 50,
    }


# --- end to end -----------------------------------------------------------------------------------------------


def plan_row(
    case: str, model: Any, budgets: Budgets, no_split: Sequence[str], rounds: int, *, rivals: bool = True
) -> Row:
    """The drop-in function beside both originals and beside merely listing the parameters."""
    contenders: dict[str, Callable[[], object]] = {
        "planner": partial(planner.infer_auto_device_map, model, dict(budgets), list(no_split)),
        "named_parameters": lambda: list(model.named_parameters()),
    }
    if rivals:
        contenders["accelerate"] = partial(
            accelerate.infer_auto_device_map, model, dict(budgets), list(no_split)
        )
        contenders["transformers"] = partial(transformers_map, model, dict(budgets), set(no_split))
    timings, results = race(contenders, rounds)
    if not rivals:
        timings |= {"accelerate": NOT_RUN, "transformers": NOT_RUN}
    return Row(
        case, module_count(model), timings, comparison(model, budgets, no_split, results, "accelerate")
    )


def transformers_row(case: str, model: Any, budgets: Budgets, no_split: Sequence[str], rounds: int) -> Row:
    """The same for the dialect of transformers."""
    contenders: dict[str, Callable[[], object]] = {
        "planner": partial(planner_transformers_map, model, dict(budgets), set(no_split)),
        "transformers": partial(transformers_map, model, dict(budgets), set(no_split)),
        "named_parameters": lambda: list(model.named_parameters()),
    }
    timings, results = race(contenders, rounds)
    return Row(
        case, module_count(model), timings, comparison(model, budgets, no_split, results, "transformers")
    )


def comparison(
    model: Any, budgets: Budgets, no_split: Sequence[str], results: Mapping[str, Any], rival: str
) -> str:
    """How our map and the rival's compare, in a few words; nothing where the rival did not finish."""
    if rival not in results:
        return ""
    if dict(results["planner"]) == dict(
        results[rival]
    ):  # the rivals' order depends on the seed of string hashes
        return "the same"
    valid = [
        is_valid(check(model, results[name], budgets, no_split_module_classes=no_split))
        for name in ("planner", rival)
    ]
    return {
        (True, False): f"{rival}'s is invalid",
        (True, True): "both valid, not the same",
        (False, True): "OURS IS INVALID",
        (False, False): "BOTH INVALID",
    }[valid[0], valid[1]]


def llama_rows(quick: bool) -> Iterator[Row]:
    model, block, rounds = models.llama_70b(), ["LlamaDecoderLayer"], 9 if quick else 41
    yield plan_row("Llama-70B, no-split", model, UNEQUAL, block, rounds)
    yield plan_row("Llama-70B, splittable", model, UNEQUAL, [], rounds)
    yield transformers_row("Llama-70B, no-split, transformers' dialect", model, UNEQUAL, block, rounds)
    for devices in (1, 8, 64):
        budgets = shared_out(model, devices, 1.25)
        yield plan_row(f"Llama-70B, no-split, {devices} equal devices", model, budgets, block, rounds)


def expert_rows(quick: bool) -> Iterator[Row]:
    layers, rounds = (6, 3) if quick else (58, 11)
    model = models.mixture_of_experts(layers)
    name = f"MoE, {layers} x 256 experts"
    budgets = shared_out(model, 16, 0.95)
    yield plan_row(f"{name}, no-split, 16 devices", model, budgets, ["ExpertLayer"], rounds)
    yield plan_row(f"{name}, splittable, 16 devices", model, budgets, [], rounds)


def block_rows(quick: bool) -> Iterator[Row]:
    for count in (1_000,) if quick else (1_000, 10_000, 100_000):
        model, rounds = models.blocks(count), 5 if count > 1_000 else 11
        budgets = shared_out(model, 4, 0.9)
        for words_, no_split in (("no-split", ["Block"]), ("splittable", [])):
            case = f"{count:,} equal blocks, {words_}, 4 devices"
            yield plan_row(case, model, budgets, no_split, rounds, rivals=count < 100_000)
    model = models.blocks(1_000)
    for devices in (1, 64):
        budgets = shared_out(model, devices, 0.9)
        yield plan_row(f"1,000 equal blocks, splittable, {devices} devices", model, budgets, [], 5)


# --- growth, steps, memory ------------------------------------------------------------------------------------


def leaf_map(count: int) -> dict[str, int | str]:
    """A device map with one key per leaf of `models.blocks(count)`, in four runs."""
    names = (f"layers.{index}.{leaf}" for index in range(count) for leaf in ("first", "second"))
    return {name: position * 4 // (2 * count) for position, name in enumerate(names)}


def growth(quick: bool) -> list[dict[str, Any]]:
    """Seconds against the number of modules, and the exponent of each task."""
    counts = (333, 3_333, 33_333) if quick else (333, 3_333, 33_333, 333_333)
    points: dict[str, list[tuple[int, float]]] = {}
    for count in counts:
        model = models.blocks(count)
        budgets, device_map = shared_out(model, 4, 0.9), leaf_map(count)
        rounds = 3 if count > 100_000 else 9
        timings, _ = race(
            {
                "infer_auto_device_map, no-split": partial(
                    planner.infer_auto_device_map, model, budgets, ["Block"]
                ),
                "infer_auto_device_map, splittable": partial(planner.infer_auto_device_map, model, budgets),
                "check_device_map": partial(planner.check_device_map, model, device_map),
                "clean_device_map": lambda keys=device_map: planner.clean_device_map(dict(keys)),
                "list(named_parameters())": lambda model=model: list(model.named_parameters()),
            },
            rounds,
        )
        for name, timing in timings.items():
            # Cold, because a small model would profit from caches that a large one does not fit into.
            points.setdefault(name, []).append((3 * count + 2, timing.cold_seconds))
    return [{"task": name, "points": series, "exponent": slope(series)} for name, series in points.items()]


def steps(quick: bool) -> list[tuple[str, float]]:
    """What each step of planning Llama-70B costs, and many plans of one tree."""
    model = models.llama_70b()
    no_split = ("LlamaDecoderLayer",)
    tree = ModuleTree.from_module(model)
    layout = Layout(tree, no_split=no_split)
    outcome = sequential(layout, UNEQUAL)
    vectors = [
        {**UNEQUAL, 0: (20 + number % 120) * GIB, 1: (8 + number % 41) * GIB} for number in range(10_000)
    ]
    timings, _ = race(
        {
            "walk the live model into a tree": partial(ModuleTree.from_module, model),
            "sizes, blocks and ties of a tree": partial(Layout, tree, no_split=no_split),
            "plan again on the same layout": partial(sequential, layout, UNEQUAL),
            "its device map": outcome.device_map,
        },
        11 if quick else 41,
    )
    many, _ = race(
        {
            "10 000 budget vectors, `sequential_many`, per plan": partial(sequential_many, layout, vectors),
            "10 000 budget vectors, one call each, per plan": lambda: [
                sequential(layout, one) for one in vectors
            ],
        },
        3,
    )
    per_plan = {name: timing.seconds / len(vectors) for name, timing in many.items()}
    return [*((name, timing.seconds) for name, timing in timings.items()), *per_plan.items()]


def memory_of(count: int) -> dict[str, float]:
    """MiB that the flattened tree of a model keeps, and needs at most while it is made; in a fresh process."""
    model = models.blocks(count)
    process = psutil.Process()
    gc.collect()
    before = process.memory_info().rss
    tree = ModuleTree.from_module(model)
    peak = high_water_bytes()
    gc.collect()
    after = process.memory_info().rss
    del tree
    return {
        "modules": module_count(model),
        "model_mib": before / 2**20,
        "tree_mib": (after - before) / 2**20,
        "peak_mib": (max(peak, after) - before) / 2**20,
    }


def high_water_bytes() -> int:
    """Largest resident size of this process so far."""
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def memory(quick: bool) -> dict[str, float]:
    count = 33_333 if quick else 333_333
    command = [sys.executable, __file__, "--memory-of", str(count)]
    answer = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return dict(json.loads(answer))


# --- report --------------------------------------------------------------------------------------------------


def environment() -> dict[str, str]:
    names = (line.split(":")[1].strip() for line in cpu_lines() if line.startswith("model name"))
    packages = {name: version(name) for name in ("device-map-planner", "torch", "accelerate", "transformers")}
    return {
        "cpu": f"{next(names, platform.machine())}, {os.cpu_count()} cores",
        "python": platform.python_version(),
        **packages,
    }


def cpu_lines() -> list[str]:
    path = Path("/proc/cpuinfo")
    return path.read_text().splitlines() if path.exists() else []


def aims(report: Report) -> list[tuple[str, str, bool]]:
    """What the figures are meant to reach, what they are, and whether that is enough."""
    rows = {
        row.case.split(", ", 1)[0] + (", splittable" if "splittable" in row.case else ""): row
        for row in report.rows[::-1]
    }
    exponents = {entry["task"]: entry["exponent"] for entry in report.growth}
    wanted = [
        (
            "Llama-70B, no-split: accelerate / planner >= 30",
            rows["Llama-70B"].ratio("accelerate", "planner"),
            30,
            True,
        ),
        (
            "Llama-70B, no-split: planner / named_parameters <= 0.5",
            rows["Llama-70B"].ratio("planner", "named_parameters"),
            0.5,
            False,
        ),
        ("MoE, no-split: accelerate / planner >= 20", rows["MoE"].ratio("accelerate", "planner"), 20, True),
        (
            "MoE, splittable: accelerate / planner >= 100",
            rows["MoE, splittable"].ratio("accelerate", "planner"),
            100,
            True,
        ),
        *(
            (f"{task}: exponent <= 1.1", exponent, 1.1, False)
            for task, exponent in exponents.items()
            if "(" not in task
        ),
        ("tree of the largest model: MiB <= 200", report.memory["tree_mib"], 200, False),
    ]
    return [
        (
            name,
            "not measured" if value is None else f"{value:.2f}",
            value is not None and (value >= aim) == at_least,
        )
        for name, value, aim, at_least in wanted
    ]


def plans_table(rows: Sequence[Row]) -> str:
    head = ("case", "modules", "planner", "accelerate", "transformers", "named_parameters", "accelerate / planner",
            "transformers / planner", "planner / named_parameters", "maps")  # fmt: skip
    contenders = ("planner", "accelerate", "transformers", "named_parameters")
    lines = [
        (
            row.case,
            f"{row.modules:,}",
            *(row.timings.get(name, "") for name in contenders),
            times(row.ratio("accelerate", "planner")),
            times(row.ratio("transformers", "planner")),
            times(row.ratio("planner", "named_parameters")),
            row.maps,
        )
        for row in rows
    ]
    return table(head, lines) + "\n\n`*` one run only, because it takes so long."


def cold_table(rows: Sequence[Row]) -> str:
    """The short calls again, each the first after somebody else's work."""
    contenders = ("planner", "accelerate", "transformers", "named_parameters")
    lines = [
        (
            row.case,
            *(words(row.timings[name].cold_seconds) if name in row.timings else "" for name in contenders),
            times(row.ratio("accelerate", "planner", cold=True)),
            times(row.ratio("planner", "named_parameters", cold=True)),
        )
        for row in rows
        if row.timings["planner"].seconds < TURN_S / 2
    ]
    return table(("cold", *contenders, "accelerate / planner", "planner / named_parameters"), lines)


def as_markdown(report: Report) -> str:
    sizes = [f"{size:,} modules" for size, _ in report.growth[0]["points"]]
    grown = [
        (entry["task"], *(words(seconds) for _, seconds in entry["points"]), f"{entry['exponent']:.2f}")
        for entry in report.growth
    ]
    kept = report.memory
    reached = [(name, value, "yes" if done else "no") for name, value, done in report.aims]
    return "\n\n".join(
        [
            ", ".join(f"{name} {value}" for name, value in report.environment.items()),
            plans_table(report.rows),
            cold_table(report.rows),
            table(("task", *sizes, "exponent"), grown),
            table(("step, Llama-70B", "time"), [(name, words(seconds)) for name, seconds in report.steps]),
            f"The flattened tree of {kept['modules']:,} modules keeps {kept['tree_mib']:.0f} MiB beside the"
            f" {kept['model_mib']:.0f} MiB of the process with its model; at most {kept['peak_mib']:.0f} MiB"
            " while it is made.",
            table(("aim", "measured", "reached"), reached),
        ]
    )


def as_json(report: Report) -> str:
    document = asdict(report)
    for row, entry in zip(report.rows, document["rows"], strict=True):
        entry["timings"] = {
            name: {"seconds": timing.seconds, "cold_seconds": timing.cold_seconds, "turns": len(timing.turns)}
            for name, timing in row.timings.items()
            if timing.turns
        }
    return json.dumps(document, indent=1)


def measure(quick: bool) -> Report:
    report = Report(environment())
    sources: list[Callable[[bool], Iterator[Row]]] = [llama_rows, expert_rows, block_rows]
    for source in sources:
        for row in source(quick):
            print(f"{row.case}: {row.timings['planner']}", file=sys.stderr)
            report.rows.append(row)
    report.steps = steps(quick)
    report.memory = memory(quick)
    report.growth = growth(quick)
    report.aims = aims(report)
    return report


def main() -> None:
    parser = argparse.ArgumentParser(description="Benchmarks of planner, end to end.")
    parser.add_argument("--quick", action="store_true", help="smaller models, fewer repetitions")
    parser.add_argument("--json", action="store_true", help="print JSON instead of tables")
    parser.add_argument(
        "--memory-of", type=int, metavar="BLOCKS", help="only the memory of one tree, as JSON"
    )
    options = parser.parse_args()
    # Both would log the same lines about devices that this machine does not have.
    for name in ("accelerate", "planner"):
        logging.getLogger(name).setLevel(logging.ERROR)
    if options.memory_of:
        print(json.dumps(memory_of(options.memory_of)))
        return
    report = measure(options.quick)
    print(as_json(report) if options.json else as_markdown(report))


if __name__ == "__main__":
    main()

"""How long it takes to make a configuration: two YAML files, a config.json, variables, arguments, then resolve.

Beside it, what the settings of one call of `plan()` cost.

Run: python benches/bench_config.py
Asks for a median of less than 5 ms over 100 runs, with the files read again each time and yaml already imported.
"""

from __future__ import annotations

import json
import pathlib
import statistics
import tempfile
import time

import yaml

from planner.config import Resolved, Stack
from planner.planning.understanding import settings_stack
from planner.settings.model_facts import import_config
from planner.settings.schema import Settings

RUNS = 100
LIMIT_MS = 5.0

ENVIRON = {
    "PLANNER_MAX_MEMORY__0": "20GiB",
    "PLANNER_STRATEGY": "balanced",
    "PLANNER_STRATEGY__FALLBACK_ALLOCATION": "true",
    "PLANNER_DTYPE": "bfloat16",
    "PLANNER_OFFLOAD_BUFFERS": "true",
    "PATH": "/usr/bin",
}
ARGUMENTS = [
    *("--set", "max_memory.cpu=30GiB"),
    *("--set", "special_dtypes.lm_head.weight=float32"),
    *("--set", "no_split_module_classes=[LlamaDecoderLayer]"),
    *("--set", "strategy.reserve=if_offloaded"),
    *("--unset", "offload_buffers"),
]


def write_files(folder: pathlib.Path) -> tuple[pathlib.Path, pathlib.Path, pathlib.Path]:
    """Two YAML files of about a KiB, and a config.json of 30 keys."""
    rows = [f"  model.layers.{number}.mlp.down_proj.weight: float16\n" for number in range(18)]
    first, second, imported = folder / "a.yaml", folder / "b.yaml", folder / "config.json"
    first.write_text(
        "strategy: sequential\nmax_memory:\n  0: 10GiB\n  cpu: 20GiB\nspecial_dtypes:\n" + "".join(rows)
    )
    second.write_text("dtype: float16\nspecial_dtypes:\n" + "".join(rows).replace("down", "gate"))
    sizes = {
        "hidden_size": 4096,
        "num_attention_heads": 32,
        "num_hidden_layers": 32,
        "num_key_value_heads": 8,
    }
    filler = {f"unused_{number}": number for number in range(24)}
    imported.write_text(json.dumps({"model_type": "llama", "dtype": "bfloat16", **sizes, **filler}, indent=2))
    return first, second, imported


def resolve(first: pathlib.Path, second: pathlib.Path, imported: pathlib.Path) -> Resolved[Settings]:
    """All sources, read and resolved."""
    stack = Stack(Settings).imported(import_config(imported)).file(first).file(second)
    return stack.environment(ENVIRON).arguments(ARGUMENTS).resolve()


def median_ms(runs: int = RUNS) -> float:
    """Median wall-clock time of one configuration, in milliseconds."""
    times = []
    with tempfile.TemporaryDirectory() as folder:
        files = write_files(pathlib.Path(folder))
        resolve(*files)
        for _ in range(runs):
            start = time.perf_counter()
            resolve(*files)
            times.append(time.perf_counter() - start)
    return statistics.median(times) * 1000


def call_ms(runs: int = RUNS) -> float:
    """Median time of what each `plan()` does with its settings: a few keywords, no files; in milliseconds."""
    budgets = {0: "10GiB", 1: "10GiB", "cpu": "30GiB"}
    times = []
    for _ in range(runs):
        start = time.perf_counter()
        settings_stack(
            None, {"max_memory": budgets, "no_split_module_classes": ["LlamaDecoderLayer"]}
        ).resolve()
        times.append(time.perf_counter() - start)
    return statistics.median(times) * 1000


if __name__ == "__main__":
    found = median_ms()
    print(f"settings of one call of plan(): {call_ms():.3f} ms, median of {RUNS}")
    parser = "libyaml" if yaml.__with_libyaml__ else "pure Python"
    print(f"configuration: {found:.2f} ms, median of {RUNS}, limit {LIMIT_MS} ms (yaml parser: {parser})")
    raise SystemExit(found >= LIMIT_MS)

"""What loading and running take and leave, in a process of its own: memory, bytes written, handles, mappings, threads.

python benches/loading_memory.py FOLDER MAP [READ] [DTYPE]      prints JSON; MAP as in `loading_contenders.maps`
"""

from __future__ import annotations

import gc
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import torch

import planner
from loading_contenders import bare, maps, quiet, token_ids

MIB = 1 << 20


def anonymous_bytes() -> int:
    """Memory that is no file's, which pinned memory is too."""
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("Anonymous:"))


def written_bytes() -> int:
    lines = Path("/proc/self/io").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("write_bytes"))


def listing(folder: Path) -> list[tuple[str, int, int]]:
    return sorted((path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in folder.iterdir())


def left(folder: Path) -> dict[str, int]:
    """Handles and mappings of the folder's files, and threads."""
    handles = 0
    for link in Path("/proc/self/fd").iterdir():
        try:
            handles += str(folder) in os.readlink(link)
        except OSError:
            continue
    mappings = Path("/proc/self/maps").read_text().count(str(folder))
    return {"handles": handles, "mappings": mappings, "threads": len(os.listdir("/proc/self/task"))}


@torch.no_grad()
def measure(folder: Path, placed: str, read: Any, dtype: str) -> dict[str, Any]:
    torch.set_num_threads(1)
    quiet()
    small = torch.nn.Linear(8, 8)
    small(torch.zeros(1, 8))
    ids, files = token_ids(1), listing(folder)
    warm_up = planner.load(folder, bare(folder), maps(folder)["all on disk"], read=read)
    warm_up(ids, use_cache=False)  # what libraries keep for good is there now
    del warm_up
    gc.collect()
    time.sleep(0.2)
    model: Any = bare(folder)
    gc.collect()
    left_before, written_before, before = left(folder), written_bytes(), anonymous_bytes()
    planner.load(folder, model, maps(folder)[placed], read=read, dtype=dtype)
    after_load, load_report = anonymous_bytes(), planner.load_report(model)
    peak = 0
    for layer in model.model.layers:
        layer.register_forward_hook(lambda *_: note_peak())

    def note_peak() -> None:
        nonlocal peak
        peak = max(peak, anonymous_bytes())

    for _ in range(3):
        model(ids if dtype == "auto" else token_ids(1), use_cache=False)
    report = planner.load_report(model)
    found = {
        "load_bytes": after_load - before,
        "running_bytes": peak - before,
        "staging_bytes": report.staging_bytes,
        "copied_bytes": load_report.copied_bytes,
        "written_bytes": written_bytes() - written_before,
        "is_folder_same": listing(folder) == files,
    }
    del model, layer
    gc.collect()
    for _ in range(50):
        if left(folder) == left_before:
            break
        time.sleep(0.02)
    now = left(folder)
    return found | {f"{name}_left": now[name] - left_before[name] for name in now}


if __name__ == "__main__":
    folder, placed, read, dtype = [*sys.argv[1:], *("auto", "auto")[len(sys.argv) - 3 :]]
    print(json.dumps(measure(Path(folder), placed, read, dtype)))

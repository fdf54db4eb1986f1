"""The parts of `gpu.py` that measure, one in a process: python gpu_parts.py PART FOLDER RESULTS END_S [--virtual]

Each figure is written to RESULTS when it is there, because the process may be stopped. Clocks are read on the host when the
accelerator has ended all it was given; every turn of a load begins without cached memory of the accelerator.
"""

from __future__ import annotations

import argparse
import atexit
import gc
import importlib.metadata
import json
import logging
import platform
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from gpu_models import (
    LARGE,
    LEFT_OUT,
    SMALL,
    Sizes,
    by_accelerate,
    by_load_file,
    by_planner,
    by_transformers,
    installed,
    streamed_map,
    write,
)
from loading_files import BlockRanges, cool, layer_of, warm
from loading_turns import Figure, Spent, clocked, in_turns, ratio_figure

SLOT_BYTES = 64 << 20
PACKAGES = ("torch", "transformers", "accelerate", "safetensors", "hypothesis", "pytest")


@dataclass(frozen=True)
class Measuring:
    """One part at work.

    Args:
        folder: the model's files.
        results: where figures are written.
        end_s: when the part is stopped, by the monotonic clock.
        sizes: of the model.
        rounds: the most.
    """

    folder: Path
    results: Path
    end_s: float
    sizes: Sizes
    rounds: int

    def write(self, **row: Any) -> None:
        with self.results.open("a") as file:
            file.write(json.dumps(row) + "\n")

    def note(self, words: str) -> None:
        print(f"# {words}", flush=True)
        self.write(notes=[words])

    def figures(self, *figures: Figure) -> None:
        self.write(figures=[asdict(figure) for figure in figures])

    def share_s(self, cases: int) -> float:
        """Of what is left, for the first of so many cases; some is kept for a turn that is under way when it is over."""
        return max(0.0, self.end_s - time.monotonic()) * 0.7 / cases

    def turns(
        self, case: str, contenders: Mapping[str, Callable[[], Spent]], cases: int
    ) -> dict[str, list[Spent]]:
        return in_turns(
            contenders,
            self.rounds,
            seconds=self.share_s(cases),
            say=lambda words: self.note(f"{case}: {words}"),
        )


def machine(part: Measuring) -> None:
    """What this runs on.

    Raises:
        SystemExit: there is no accelerator.
    """
    if not torch.accelerator.is_available():
        part.note(f"torch {torch.__version__} sees no accelerator on this machine")
        raise SystemExit(1)
    module = torch.get_device_module()
    versions = {name: importlib.metadata.version(name) for name in PACKAGES if installed(name)}
    name, count = module.get_device_name(0), torch.accelerator.device_count()
    total_bytes = module.mem_get_info(0)[1]
    part.write(found={"name": name, "count": count, "total_bytes": total_bytes, "versions": versions})
    said = ", ".join(f"{package} {version}" for package, version in versions.items())
    part.note(f"{count} × {name}, {total_bytes / 1e9:.0f} GB; Python {platform.python_version()}, {said}")
    for name in ("transformers", "accelerate"):
        if name not in versions:
            part.note(f"{name} is not installed: nothing is run beside it")


def model(part: Measuring) -> None:
    start_s = time.monotonic()
    size_bytes = write(part.folder, part.sizes)
    part.note(f"{size_bytes / 1e9:.2f} GB written in {time.monotonic() - start_s:.0f} s")


def load(part: Measuring) -> None:
    """Everything to the accelerator, skeletons included."""
    placed = {"": 0}
    loads: dict[str, Callable[[], object]] = {"planner": by_planner(part.folder, part.sizes, placed)}
    if installed("transformers"):
        loads["transformers"] = by_transformers(part.folder, placed)
    if installed("safetensors"):
        loads["load_file"] = by_load_file(part.folder)
    turns = {name: clocked(partial(ended, run), empty_device) for name, run in loads.items()}
    total_bytes = sum(path.stat().st_size for path in part.folder.glob("*.safetensors"))
    turns["copy"] = clocked(partial(ended, bare_copy(total_bytes)), empty_device)
    warm(part.folder)
    for left, case in ((2, "warm"), (1, "cold")):
        given = turns if case == "warm" else {name: cold(part.folder, turn) for name, turn in turns.items()}
        spent = part.turns(f"load, {case}", given, left)
        part.figures(*compared(f"load, {case}", spent, "planner"))


def stream(part: Measuring) -> None:
    """Forwards of one token, every block on its way to the accelerator."""
    ranges = BlockRanges(part.folder, layer_of)
    ids = torch.arange(3, 4, device=0)[None]
    resident = by_planner(part.folder, part.sizes, {"": 0})()
    want = logits(resident, ids)
    for left, rest in ((3, "cpu"), (2, "disk")):
        models = streaming_models(part, rest)
        equal = logits(models["planner"], ids).equal(want)
        part.figures(Figure(f"{rest}: same logits as resident", float(equal), None, "yes" if equal else "NO"))
        runs = {name: partial(logits, each, ids) for name, each in {**models, "resident": resident}.items()}
        turns = {name: clocked(partial(ended, run), synchronize) for name, run in runs.items()}
        turns["copy"] = clocked(partial(ended, bare_copy(ranges.nbytes)), synchronize)
        warm(part.folder)
        spent = part.turns(f"{rest}, warm", turns, left)
        part.figures(*compared(f"forward, blocks on {rest}, warm", spent, "planner"))
        if rest == "disk":
            turns.pop("accelerate", None)  # its own files are elsewhere, and stay warm
            given = {
                name: turn if name in ("resident", "copy") else cold(part.folder, turn)
                for name, turn in turns.items()
            }
            given["read"] = cold(part.folder, clocked(lambda: ranges.read_direct(1)))
            spent = part.turns(f"{rest}, cold", given, 1)
            part.figures(*compared(f"forward, blocks on {rest}, cold", spent, "planner"))


def streaming_models(part: Measuring, rest: str) -> dict[str, nn.Module]:
    """Who streams; who cannot load is noted."""
    placed = streamed_map(part.sizes, rest)
    loads = {"planner": by_planner(part.folder, part.sizes, placed)}
    if installed("transformers"):
        loads["transformers"] = by_transformers(part.folder, placed)
        if installed("accelerate"):
            loads["accelerate"] = by_accelerate(part.folder, placed, part.folder / "offloaded")
    found = {}
    for name, run in loads.items():
        try:
            found[name] = run()
        except Exception as error:
            if name == "planner":
                raise
            part.note(f"blocks on {rest}: {name}: {type(error).__name__}: {str(error)[:200]}")
    return found


def border(part: Measuring) -> None:
    """What a border adds to a call on the accelerator when nothing moves."""
    if not (installed("accelerate") and installed("transformers")):
        part.note("borders are compared with accelerate's on what transformers hands to its layers; left out")
        return
    from bench_dispatch import border_costs

    start_s = time.monotonic()
    costs = border_costs(torch.device(0), 1)
    once_s = time.monotonic() - start_s
    rounds = max(1, min(4 * part.rounds, int(part.share_s(1) / once_s)))
    costs = border_costs(torch.device(0), rounds)
    for case, cost in costs.items():
        value = cost["planner"] / cost["accelerate"]
        beside = f"{cost['planner']:.2f} / {cost['accelerate']:.2f} µs, {rounds} rounds"
        part.figures(Figure(f"added to a call, {case} / accelerate", value, None, f"{value:.2f}×", beside))


def compared(case: str, spent: Mapping[str, list[Spent]], ours: str) -> Iterator[Figure]:
    """Ours over each of the others."""
    for name, turns in spent.items():
        if name != ours:
            figure = ratio_figure(f"{case} / {name}", spent, ours, name, None)
            yield replace(figure, beside=f"{figure.beside}, {len(turns)} rounds" if turns else "")


def cold(folder: Path, turn: Callable[[], Spent]) -> Callable[[], Spent]:
    def cooled() -> Spent:
        cool(folder)
        return turn()

    return cooled


@torch.no_grad()
def logits(model: Any, ids: torch.Tensor) -> torch.Tensor:
    found: torch.Tensor = model(ids, use_cache=False).logits if installed("transformers") else model(ids)
    return found


def ended(run: Callable[[], object]) -> object:
    """Runs, and waits until the accelerator has done its part."""
    result = run()
    synchronize()
    return result


def synchronize() -> None:
    torch.accelerator.synchronize()


def empty_device() -> None:
    torch.get_device_module().empty_cache()
    synchronize()


def bare_copy(total_bytes: int) -> Callable[[], None]:
    """As many bytes from one pinned slot to the accelerator."""
    here = torch.empty(SLOT_BYTES, dtype=torch.uint8).pin_memory()
    there = torch.empty(SLOT_BYTES, dtype=torch.uint8, device=0)

    def run() -> None:
        for begin in range(0, total_bytes, SLOT_BYTES):
            count = min(SLOT_BYTES, total_bytes - begin)
            there[:count].copy_(here[:count], non_blocking=True)

    return run


PARTS: dict[str, Callable[[Measuring], None]] = {
    each.__name__: each for each in (machine, model, load, stream, border)
}


def import_others() -> None:
    """Before any clock runs, and without a word; what they have made is not gone through again at each turn."""
    logging.getLogger("accelerate").setLevel(logging.ERROR)
    if installed("accelerate"):
        import accelerate  # noqa: F401
    if installed("transformers"):
        from transformers import LlamaForCausalLM  # noqa: F401
        from transformers.utils import logging as of_transformers

        of_transformers.set_verbosity_error()
        of_transformers.disable_progress_bar()
    gc.collect()
    gc.freeze()
    atexit.register(gc.unfreeze)  # or libraries say at the end that they leak


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("part", choices=PARTS)
    parser.add_argument("folder", type=Path)
    parser.add_argument("results", type=Path)
    parser.add_argument("end_s", type=float, help="when the process is stopped, by the monotonic clock")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--virtual", action="store_true")
    parser.add_argument("--without", nargs="*", default=[], help="packages that are taken for not installed")
    given = parser.parse_args()
    LEFT_OUT.update(given.without)
    if given.virtual:
        from rig import Accelerators

        Accelerators()
        torch.set_num_threads(1)
    if given.part != "machine":
        import_others()
    sizes = SMALL if given.virtual else LARGE
    PARTS[given.part](Measuring(given.folder, given.results, given.end_s, sizes, given.rounds))


if __name__ == "__main__":
    main()

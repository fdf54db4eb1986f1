"""No avoidable spill: `auto` over every transformers class at its default size, many shapes of devices, many slacks.

    python benches/auto_sweep.py                    # everything
    python benches/auto_sweep.py --quick            # every eighth class, three slacks
    python benches/auto_sweep.py --only Llama --jobs 1
    python benches/auto_sweep.py --times            # only the table of times

Times are of the processor, not of the clock on the wall: planning waits for nothing, and several classes are swept at once.

An oracle of its own cuts the model into blocks, and fills the devices in the order given, then in every order. A spill is
avoidable where such a fill keeps everything on the accelerators and the plan does not. Every map goes through the checker.
Exits with 1 on an avoidable spill, an exception, an invalid plan, or blocks that the oracle cuts otherwise.
"""

from __future__ import annotations

import argparse
import bisect
import gc
import itertools
import logging
import multiprocessing
import statistics
import sys
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import transformers

import model_zoo
import planner
from planner.checker.check import check
from planner.model.tree import ModuleTree

KINDS = ("causal", "seq2seq", "image-text")
SLACKS = (1.02, 1.05, 1.1, 1.25, 1.5, 2.0, 3.0)
QUICK_SLACKS = (1.02, 1.25, 2.0)
SHAPES: dict[str, dict[int, int]] = {
    "1": {0: 1},
    "2 equal": {0: 1, 1: 1},
    "4 equal": dict.fromkeys(range(4), 1),
    "8 equal": dict.fromkeys(range(8), 1),
    "1:3": {0: 1, 1: 3},
    "1:4:1": {0: 1, 1: 4, 2: 1},
    "2:1:1": {0: 2, 1: 1, 2: 1},
    "5:1:3:1": {0: 5, 1: 1, 2: 3, 3: 1},
    "first is empty": {0: 0, 1: 1, 2: 1},
    "one between is empty": {0: 1, 1: 0, 2: 2},
    "ids are skipped": {1: 1, 3: 2, 6: 1},
}
FAULTS = ("avoidable spill", "spill though another order fits", "exception", "invalid", "other blocks")


@dataclass
class Findings:
    """What one class gave: counts by word, texts of faults, times in ms by what was timed."""

    name: str
    is_built: bool = False
    counts: Counter[str] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)
    times_ms: dict[str, list[float]] = field(default_factory=dict)

    def fault(self, word: str, text: str) -> None:
        """Counts a fault and keeps its text."""
        self.counts[word] += 1
        self.faults.append(f"{word}: {self.name} {text}")


# ---- The oracle


def sizes_of_units(model: Any) -> tuple[list[int], int]:
    """Bytes of what is placed as a whole, in execution order, and how many blocks that were before ties joined them."""
    classes = own_classes(model) or repeated_classes(model)
    blocks = list(cut(model, classes))
    holders: dict[int, list[int]] = {}
    sizes: dict[int, int] = {}
    for index, tensors in enumerate(blocks):
        for tensor in tensors:
            holders.setdefault(id(tensor), []).append(index)
            sizes[id(tensor)] = tensor.numel() * tensor.element_size()
    first = list(range(len(blocks)))
    for held in holders.values():
        join(first, held)
    totals: Counter[int] = Counter()
    for tensor, held in holders.items():
        totals[root(first, held[0])] += sizes[tensor]
    units = sorted({root(first, index) for index in range(len(blocks))})
    return [totals[unit] for unit in units], len(blocks)


def own_classes(model: Any) -> set[str]:
    """The model's no-split classes, and whatever derives from them."""
    named = set(model_zoo.no_split_classes(model))
    return {
        type(module).__name__
        for module in model.modules()
        if named & {base.__name__ for base in type(module).__mro__}
    }


def repeated_classes(model: Any) -> set[str]:
    """Classes of numbered siblings that hold tensors, where there are several."""
    found = set()
    for parent in model.modules():
        counts = Counter(
            type(child).__name__ for name, child in parent.named_children() if name.isdigit() and any(True for _ in tensors(child))
        )  # fmt: skip
        found |= {name for name, count in counts.items() if count > 1}
    return found


def tensors(module: Any) -> Iterator[torch.Tensor]:
    """Parameters and buffers."""
    yield from module.parameters()
    yield from module.buffers()


def cut(module: Any, classes: set[str]) -> Iterator[list[torch.Tensor]]:
    """Tensors of each block: topmost modules of these classes, and what stands beside them."""
    yield from ([tensor] for tensor in module.parameters(recurse=False))
    yield from ([tensor] for tensor in module.buffers(recurse=False))
    for child in module.children():
        if type(child).__name__ not in classes and any(type(m).__name__ in classes for m in child.modules()):
            yield from cut(child, classes)
        elif held := list(tensors(child)):
            yield held


def root(first: list[int], index: int) -> int:
    """The first member of a unit."""
    while first[index] != index:
        index = first[index]
    return index


def join(first: list[int], held: Sequence[int]) -> None:
    """Makes one unit of blocks."""
    roots = [root(first, index) for index in held]
    for other in roots:
        first[other] = min(roots)


def reach(sums: Sequence[int], start: int, room: int) -> int:
    """The unit after the last one that fits, from one on."""
    return bisect.bisect_right(sums, sums[start] + room) - 1


def fits_in_order(sums: Sequence[int], rooms: Sequence[int]) -> bool:
    """A run of units for each device, in the order given; exact, for a longer run is never worse."""
    at = 0
    for room in rooms:
        at = reach(sums, at, room)
    return at == len(sums) - 1


def fits_in_another_order(sums: Sequence[int], rooms: Sequence[int]) -> bool:
    """The same with the devices in any order: the furthest unit for each set of devices."""
    furthest = {frozenset[int](): 0}
    for count in range(1, len(rooms) + 1):
        for chosen in itertools.combinations(range(len(rooms)), count):
            devices = frozenset(chosen)
            furthest[devices] = max(reach(sums, furthest[devices - {last}], rooms[last]) for last in devices)
    return max(furthest.values()) == len(sums) - 1


# ---- One class


def build(name: str) -> Any:
    """A model of this class at its default size on the meta device, tied. Raises whatever its class raises."""
    cls = getattr(transformers, name)
    with torch.device("meta"):
        model = cls(cls.config_class(**model_zoo.MISSING.get(name, {})))
    model.tie_weights()
    return model


def sweep_class(arguments: tuple[str, tuple[float, ...]]) -> Findings:
    """All cases of one class, in a worker; without slacks, only its times."""
    name, slacks = arguments
    transformers.logging.set_verbosity_error()
    logging.disable(logging.CRITICAL)
    found = Findings(name)
    with warnings.catch_warnings(action="ignore"):
        try:
            model = build(name)
        except Exception:
            return found
        found.is_built = True
        sizes, block_count = sizes_of_units(model)
        tree = ModuleTree.from_module(model)
        for (shape, shares), slack in itertools.product(SHAPES.items(), slacks):
            total = sum(sizes)
            budgets = {
                device: int(total * slack * share / sum(shares.values())) for device, share in shares.items()
            }
            judge(found, f"{shape} × {slack}", (model, tree), (sizes, block_count), budgets)
        time_class(found, model, sum(sizes))
    gc.collect()
    return found


def judge(
    found: Findings, case: str, planned: tuple[Any, ModuleTree], cut_by_oracle: tuple[list[int], int], budgets: dict[Any, int]
) -> None:  # fmt: skip
    """Plans one case and counts what it turned out to be."""
    model, tree = planned
    sizes, block_count = cut_by_oracle
    found.counts["cases"] += 1
    sums = [0, *itertools.accumulate(sizes)]
    rooms = [size for size in budgets.values() if size]
    in_order = fits_in_order(sums, rooms)
    any_order = in_order or fits_in_another_order(sums, rooms)
    found.counts["fits in the order given"] += in_order
    found.counts["fits only in another order"] += any_order and not in_order
    found.counts["a block is above every card"] += max(sizes) > max(rooms)
    budgets = {**budgets, "cpu": 3 * sums[-1]}
    started = time.process_time()
    try:
        plan = planner.plan(tree, max_memory=budgets)
    except Exception:
        found.fault("exception", f"{case}\n{traceback.format_exc()}")
        return
    found.times_ms.setdefault("from a flattened tree", []).append((time.process_time() - started) * 1e3)
    offloaded = sum(plan.offloaded_bytes.values())
    found.counts[f"stage {plan.certificate.stage}"] += 1
    found.counts["proven"] += plan.certificate.proven
    found.counts["offloaded though it is not proven that it must"] += (
        offloaded > 0 and plan.certificate.lower_bound_bytes == 0
    )
    if offloaded and in_order:
        found.fault("avoidable spill", f"{case}: {offloaded} bytes of {sums[-1]}")
    elif offloaded and any_order:
        found.fault("spill though another order fits", f"{case}: {offloaded} bytes of {sums[-1]}")
    if plan.source.blocks != block_count:
        found.fault("other blocks", f"{case}: {plan.source.blocks}, the oracle has {block_count}")
    findings = check(model, dict(plan.device_map), budgets)
    problems = [finding for finding in findings if not finding.is_note]
    over = [d for d in plan.devices if d.used_bytes + d.reserved_bytes + d.headroom_bytes > d.budget_bytes]
    if problems or over:
        found.fault("invalid", f"{case}: {[str(problem) for problem in problems[:3]]} {over}")


def time_class(found: Findings, model: Any, total: int) -> None:
    """Milliseconds from the live model, median of five: `auto` where it fits and where not, and our `infer_auto_device_map`."""
    no_split = model_zoo.no_split_classes(model)
    fits = {0: int(total * 0.8), 1: int(total * 0.8), "cpu": 3 * total}
    tight = {0: int(total * 0.4), 1: int(total * 0.3), "cpu": 3 * total}
    calls = {
        "infer_auto_device_map": lambda: planner.infer_auto_device_map(
            model, dict(fits), no_split_module_classes=no_split
        ),
        "plan, fits": lambda: planner.plan(model, max_memory=fits),
        "plan, offloads": lambda: planner.plan(model, max_memory=tight),
    }
    medians = {}
    for title, call in calls.items():
        taken = []
        try:
            for _ in range(6):
                started = time.process_time()
                call()
                taken.append((time.process_time() - started) * 1e3)
        except Exception:
            found.fault("exception", f"{title}\n{traceback.format_exc()}")
            return
        medians[title] = statistics.median(taken[1:])
        found.times_ms[title] = [medians[title]]
    found.times_ms["plan, fits / infer_auto_device_map"] = [
        medians["plan, fits"] / medians["infer_auto_device_map"]
    ]
    found.times_ms["plan, offloads − plan, fits"] = [medians["plan, offloads"] - medians["plan, fits"]]


# ---- All classes


def percentiles(title: str, times: list[float]) -> str:
    """One row of the table of times."""
    ordered = sorted(times)
    marks = [ordered[min(len(ordered) - 1, int(len(ordered) * share))] for share in (0.5, 0.9, 0.99, 1.0)]
    return f"  {title:<38}{len(times):>7}" + "".join(f"{mark:>10.2f}" for mark in marks)


def main() -> int:
    """Sweeps, prints every fault, totals and times; 1 if there is a fault."""
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="every eighth class, three slacks")
    parser.add_argument("--times", action="store_true", help="only the table of times")
    parser.add_argument("--only", default="", help="only classes whose name contains this")
    parser.add_argument("--jobs", type=int, default=multiprocessing.cpu_count(), help="processes")
    chosen = parser.parse_args()
    names = [name for name in model_zoo.names(KINDS) if chosen.only in name]
    names = names[::8] if chosen.quick else names
    slacks = () if chosen.times else QUICK_SLACKS if chosen.quick else SLACKS
    counts: Counter[str] = Counter(dict.fromkeys(FAULTS, 0))
    times: dict[str, list[float]] = {}
    built, started = 0, time.perf_counter()
    with multiprocessing.get_context("spawn").Pool(chosen.jobs) as pool:
        for found in pool.imap_unordered(sweep_class, [(name, slacks) for name in names]):
            built += found.is_built
            counts.update(found.counts)
            for title, taken in found.times_ms.items():
                times.setdefault(title, []).extend(taken)
            for text in found.faults[:5]:
                print(text[:2000], flush=True)
    print(f"{built} of {len(names)} classes built; {time.perf_counter() - started:.0f} s\n")
    for title in sorted(counts, key=lambda title: (title in FAULTS, title != "cases", title)):
        print(f"  {title:<60}{counts[title]:>8}")
    print(f"\n  {'ms (quotients without unit)':<38}{'n':>7}{'50 %':>10}{'90 %':>10}{'99 %':>10}{'worst':>10}")
    for title, taken in times.items():
        print(percentiles(title, taken))
    return int(any(counts[word] for word in FAULTS))


if __name__ == "__main__":
    sys.exit(main())

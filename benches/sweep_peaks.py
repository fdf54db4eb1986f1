"""Peaks of recorded runs against those of real ones: transformers classes on virtual accelerators, several placements each.

    python benches/sweep_peaks.py                          # about thirty classes
    python benches/sweep_peaks.py --only LlamaForCausalLM  # one of them
    python benches/sweep_peaks.py --every 4                # every fourth
    python benches/sweep_peaks.py --quick                  # one batch and one prompt of each: minutes
    python benches/sweep_peaks.py --of one.json two.json   # the tables of parts that were run before, with --json

Each class that is in memory tiny runs a prefill and two decode steps, with eager attention and torch's own, on one device, over two, and
with blocks offloaded, as planned. What the accelerators have counted as the peak of each forward on each device is held against
one recording of the model on the meta device, replayed for the placement; and what plans for that very run say, against what it takes.
Exits with 1 if a figure of blocks that stay is off by more than 5 %, if fewer than 99 % of those with offloaded blocks are within that, if
weights are off by a byte, or if a plan says too little in more than 1 % of runs or by more than 1 % in any.
"""

from __future__ import annotations

import argparse
import gc
import json
import logging
import multiprocessing
import sys
import time
import warnings
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

import planner
from dispatch_sweep import MARK, PRELOADED, QUICK
from peak_placements import STEPS, Placed, main_of, placements, planned, points, running, workload_of
from planner.memory.recording.kernels import COMPOSED
from planner.memory.recording.session import record_run
from planner.memory.recording.workloads import takes_use_cache
from planner.memory.replay import RunPlacement, replay
from planner.memory.tape import Tape

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

from measured_peaks import RIG_KERNELS, measured_peaks, run_of
from rig import Accelerators, faults  # type: ignore[import-not-found]

TIME_LIMIT_S = 1500.0
SMALL = 64  # bytes that may always be between
WEIGHTS, PLANNED = "weights", "all"  # in the place of a phase


@dataclass(frozen=True)
class Figure:
    """One peak."""

    placement: str
    attention: str
    batch: int
    prompt: int
    phase: str
    device: int
    real_bytes: int
    recorded_bytes: int

    @property
    def off(self) -> float:
        """By what share of the real one the recorded is off."""
        return abs(self.recorded_bytes - self.real_bytes) / max(self.real_bytes, 1)


# ---- One class


def sweep_class(name: str, is_quick: bool) -> None:
    """All figures of one class, told as they are found."""
    torch.set_num_threads(1)
    logging.disable(logging.CRITICAL)
    warnings.simplefilter("ignore")
    accelerators = Accelerators()
    COMPOSED.update(RIG_KERNELS)  # plans are made for these accelerators, too
    for attention in ("eager", "sdpa"):
        try:
            model, given = running(name, attention)
        except Exception as error:
            print(MARK + json.dumps({"skipped": f"{attention}: {error}"[:150]}), flush=True)
            continue
        sweep_model(model, attention, given, accelerators, is_quick=is_quick)


def sweep_model(
    model: Any,
    attention: str,
    given: Mapping[str, torch.Tensor],
    accelerators: Accelerators,
    *,
    is_quick: bool,
) -> None:
    """One model, all points and placements."""
    options = {"use_cache": True} if takes_use_cache(model) else {}
    blocks = list(planner.plan(model, max_memory={0: "1TiB"}, headroom=None).block_bytes)
    tapes: dict[tuple[int, int], Tape] = {}
    inputs = {}
    for batch, prompt, made in points(model, given, is_quick=is_quick):
        try:
            tapes[batch, prompt] = record_run(model, blocks, run_of(made, STEPS, options))
            inputs[batch, prompt] = made
        except planner.RecordingError as error:
            print(MARK + json.dumps({"refused": str(error)[:300]}), flush=True)
            return
    plain = plain_tensors(model)
    for placed in placements(model):
        for at, made in inputs.items():
            gc.collect()
            base = [accelerators.used_bytes(device.index) for device in accelerators.devices]
            try:
                on_device = place(model, placed)
                weights = {
                    device.index: accelerators.used_bytes(device.index) for device in accelerators.devices
                }
                main = placed.main_device
                real = measured_peaks(
                    on_device, accelerators, made, steps=STEPS, options=options, device=main
                )
            except Exception as error:
                print(
                    MARK
                    + json.dumps({"failed": f"{placed.title} {at}: {type(error).__name__} {error}"[:300]}),
                    flush=True,
                )
                continue
            finally:
                remove(model, placed)
                put_back(plain)
            gc.collect()
            recorded = replay(
                tapes[at],
                RunPlacement(
                    execution=placed.execution,
                    main_device=placed.main_device,
                    resident_bytes=weights,
                    offloaded_bytes=placed.offloaded_bytes,
                    room_bytes=placed.room_bytes,
                ),
            )
            for device, size in placed.weight_bytes.items():
                row = Figure(
                    placed.title, attention, *at, WEIGHTS, device, weights[device] - base[device], size
                )
                print(MARK + json.dumps(asdict(row)), flush=True)
            for phase in real:
                for device in dict.fromkeys([placed.main_device, *placed.execution.values()]):
                    told = recorded.get(phase, {}).get(device, 0)
                    row = Figure(
                        placed.title,
                        attention,
                        *at,
                        phase,
                        device,
                        real[phase][device] - base[device],
                        told - base[device],
                    )
                    print(MARK + json.dumps(asdict(row)), flush=True)

    for at, made in inputs.items():
        try:
            for plan in planned(model, workload_of(model, made, at[0])):
                run_plan(model, plan, (attention, *at), made, accelerators, options)
        except Exception as error:
            said = f"plan for {at}: {type(error).__name__} {error}"[:300]
            print(MARK + json.dumps({"failed": said}), flush=True)


def run_plan(
    model: Any,
    plan: Any,
    at: tuple[str, int, int],
    given: Mapping[str, torch.Tensor],
    accelerators: Accelerators,
    options: Mapping[str, Any],
) -> None:
    """Runs what a plan was made for; what it says of each accelerator, against what that has counted."""
    gc.collect()
    base = [accelerators.used_bytes(device.index) for device in accelerators.devices]
    title = f"planned, {plan.demands.method}"
    plain = plain_tensors(model)
    planner.dispatch(model, plan)
    try:
        weights = [accelerators.used_bytes(device.index) for device in accelerators.devices]
        real = measured_peaks(model, accelerators, given, steps=STEPS, options=options, device=main_of(plan))
    finally:
        planner.undispatch(model)
        put_back(plain)
    for row in plan.devices:
        if row.kind == "accelerator":
            most = max(by_device[row.id] for by_device in real.values()) - base[row.id]
            lie = weights[row.id] - base[row.id]
            for figure in (
                Figure(title, *at, WEIGHTS, row.id, lie, row.used_bytes + row.buffer_bytes),
                Figure(title, *at, PLANNED, row.id, most, row.peak_bytes),
            ):
                print(MARK + json.dumps(asdict(figure)), flush=True)


def place(model: Any, placed: Placed) -> Any:
    """The model, where it shall be."""
    if placed.title == "one device":
        return model.to(0)
    return planner.dispatch(model, placed.said)


def plain_tensors(model: Any) -> list[tuple[dict[str, Any], str, torch.Tensor]]:
    """Tensors that modules have as plain attributes, which some move in a forward: where, under which name."""
    return [
        (vars(module), key, value)
        for module in model.modules()
        for key, value in vars(module).items()
        if isinstance(value, torch.Tensor)
    ]


def put_back(plain: list[tuple[dict[str, Any], str, torch.Tensor]]) -> None:
    """Each run begins with the model as it was made."""
    for attributes, key, value in plain:
        attributes[key] = value


def remove(model: Any, placed: Placed) -> None:
    """Back on the CPU."""
    if placed.title == "one device":
        model.to("cpu")
    elif getattr(model, "hf_device_map", None) is not None:
        planner.undispatch(model)


# ---- All classes


def judge(name: str, is_quick: bool) -> tuple[str, list[dict[str, Any]], float]:
    """One class in a process of its own."""
    started = time.monotonic()
    if PRELOADED not in faults.PRELOADED:
        faults.PRELOADED.append(PRELOADED)
    ended = faults.judge(sweep_class, name, is_quick, time_limit_s=TIME_LIMIT_S, memory_limit_bytes=6 << 30)
    rows = [json.loads(line[len(MARK) :]) for line in ended.output.splitlines() if line.startswith(MARK)]
    if ended.verdict is not faults.Verdict.CLEAN:
        rows.append({"failed": f"{ended.verdict.value}: {ended.message} {ended.output[-300:]}"})
    return name, rows, time.monotonic() - started


def line(title: str, figures: list[Figure]) -> str:
    """A row of the table."""
    count = len(figures)
    exact = sum(one.real_bytes == one.recorded_bytes for one in figures)
    close = sum(one.off <= 0.001 or abs(one.real_bytes - one.recorded_bytes) <= SMALL for one in figures)
    near = sum(one.off <= 0.05 for one in figures)
    worst = max((one.off for one in figures), default=0.0)
    shares = " | ".join(f"{100 * part / max(count, 1):.1f} %" for part in (exact, close, near))
    return f"| {title} | {count} | {shares} | {100 * worst:.2f} % |"


def main() -> int:
    """Sweeps, prints what is off and the table; 1 if too much is off."""
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("--only", default="", help="only these classes")
    parser.add_argument("--every", type=int, default=1, help="only every n-th class")
    parser.add_argument("--quick", action="store_true", help="one batch and one prompt of each")
    parser.add_argument("--jobs", type=int, default=1, help="classes at once")
    parser.add_argument("--json", type=Path, help="a file for every figure")
    parser.add_argument("--of", type=Path, nargs="+", help="only the tables, of files written before")
    chosen = parser.parse_args()
    if chosen.of:
        return told(figures_in(chosen.of))
    names = chosen.only.split(",") if chosen.only else list(QUICK)[:: chosen.every]
    every: list[Figure] = []
    rows: dict[str, list[dict[str, Any]]] = {}
    with ProcessPoolExecutor(chosen.jobs, multiprocessing.get_context("spawn")) as pool:
        for name, found, seconds in pool.map(judge, names, [chosen.quick] * len(names)):
            rows[name] = found
            figures = [Figure(**row) for row in found if "phase" in row]
            every += figures
            print(f"{name}: {len(figures)} figures, {seconds:.0f} s", flush=True)
            for row in found:
                if "phase" not in row:
                    print(f"    {row}")
            for one in sorted(figures, key=lambda one: -one.off)[:3]:
                if one.off > 0.001:
                    print(f"    {100 * one.off:.2f} % {one}")
            if chosen.json:
                chosen.json.write_text(json.dumps(rows))
    return told(every)


def figures_in(files: list[Path]) -> list[Figure]:
    """Figures of earlier runs; of a class that several have, those of the last."""
    classes: dict[str, list[dict[str, Any]]] = {}
    for file in files:
        classes |= json.loads(file.read_text())
    return [Figure(**row) for rows in classes.values() for row in rows if "phase" in row]


def told(every: list[Figure]) -> int:
    """Prints the tables; 1 if too much is off."""
    weights = [one for one in every if one.phase == WEIGHTS]
    plans = [one for one in every if one.phase == PLANNED]
    peaks = [one for one in every if one.phase not in (WEIGHTS, PLANNED)]
    resident = [one for one in peaks if not one.placement.startswith("offloaded")]
    offloaded = [one for one in peaks if one.placement.startswith("offloaded")]
    print(
        "\n| placement | peaks | to the byte | <= 0.1 % of the peak | <= 5 % | worst |\n|---|---|---|---|---|---|"
    )
    for title in ("one device", "two devices"):
        print(line(title, [one for one in peaks if one.placement == title]))
    print(line("some blocks offloaded, one or two devices", offloaded))
    print(line("all", peaks))
    wrong = [one for one in weights if one.real_bytes != one.recorded_bytes]
    print(f"\n{len(weights)} times weights on an accelerator: {len(wrong)} not to the byte")
    short = [one for one in plans if one.recorded_bytes < one.real_bytes]
    worst = max((one.off for one in short), default=0.0)
    above = sorted(one.recorded_bytes / one.real_bytes - 1 for one in plans if one not in short)
    middle = above[len(above) // 2] if above else 0.0
    print(
        f"{len(plans)} peaks of plans for the run: {len(short)} too small, worst {100 * worst:.2f} %; "
        f"median {100 * middle:.1f} % above, most {100 * max(above, default=0.0):.1f} %"
    )
    for one in sorted([*wrong, *short], key=lambda one: -one.off)[:20]:
        print(f"    {one}")
    near = sum(one.off <= 0.05 for one in offloaded)
    is_short = len(short) > 0.01 * len(plans) or worst > 0.01
    is_off = any(one.off > 0.05 for one in resident) or near < 0.99 * len(offloaded)
    return int(is_off or bool(wrong) or is_short)


if __name__ == "__main__":
    sys.exit(main())

"""Peaks of recorded runs against those of real ones: transformers classes on virtual accelerators, several placements each.

    python benches/sweep_peaks.py                          # about thirty classes
    python benches/sweep_peaks.py --only LlamaForCausalLM  # one of them
    python benches/sweep_peaks.py --every 4                # every fourth
    python benches/sweep_peaks.py --quick                  # one batch and one prompt of each: minutes

Each class that is in memory tiny runs a prefill and two decode steps, with eager attention and torch's own, on one device, over two, and
with blocks offloaded, as planned. What the accelerators have counted as the peak of each forward on each device is held against
one recording of the model on the meta device, replayed for the placement. Exits with 1 if a figure of blocks that stay is off by more
than 5 %, or if fewer than 99 % of those with offloaded blocks are within that.
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
from collections.abc import Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

import planner
import tiny_zoo
from dispatch_sweep import MARK, PRELOADED, QUICK
from planner.memory.recording.session import record_run
from planner.memory.replay import RunPlacement, replay
from planner.memory.tape import Tape
from planner.names import nearest_key

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

from measured_peaks import measured_peaks, run_of  # type: ignore[import-not-found]
from rig import Accelerators, faults  # type: ignore[import-not-found]

TIME_LIMIT_S = 300.0
BATCHES, PROMPTS, STEPS = (1, 4), (16, 128, 1024), 2
QUICK_BATCHES, QUICK_PROMPTS = (2,), (256,)
IN_TOKENS = ("input_ids", "attention_mask", "decoder_input_ids", "mm_token_type_ids", "token_type_ids")
SHARES = (0.35, 0.5, 0.7, 0.9)
SMALL = 64  # bytes that may always be between


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


def points(
    model: Any, given: Mapping[str, torch.Tensor], *, is_quick: bool
) -> Iterator[tuple[int, int, dict[str, torch.Tensor]]]:
    """Batches and prompts that a model takes, with inputs."""
    is_text = set(given) <= set(IN_TOKENS)
    longest = next(
        (
            value
            for key in ("max_position_embeddings", "n_positions")
            if (value := getattr(model.config, key, None))
        ),
        1 << 20,
    )
    batches, prompts = (QUICK_BATCHES, QUICK_PROMPTS) if is_quick else (BATCHES, PROMPTS)
    for batch in batches:
        # What follows the prompt has to have positions, too.
        for prompt in dict.fromkeys(min(prompt, longest - STEPS) for prompt in prompts if is_text) or (0,):
            yield batch, prompt, {name: resized(name, each, batch, prompt) for name, each in given.items()}


def resized(name: str, tensor: torch.Tensor, batch: int, prompt: int) -> torch.Tensor:
    """An input for so many rows and tokens."""
    if prompt and name in IN_TOKENS:
        tensor = tensor[:, :1].expand(tensor.shape[0], prompt, *tensor.shape[2:])
    return tensor.repeat(batch, *[1] * (tensor.dim() - 1))


@dataclass(frozen=True)
class Placed:
    """A way to place a model, and what of it matters to memory."""

    title: str
    said: Any
    execution: dict[str, Any]
    offloaded_bytes: dict[str, int] = field(default_factory=dict)
    room_bytes: dict[Any, int] = field(default_factory=dict)


def placements(model: Any) -> Iterator[Placed]:
    """One device, two, and plans that offload."""
    whole = planner.plan(model, max_memory={0: "1TiB"}, headroom=None)
    sizes = dict(whole.block_bytes)
    names = list(sizes)
    yield Placed("one device", {"": 0}, dict.fromkeys(names, 0))
    total = sum(sizes.values())
    for budgets in (
        {0: total, 1: total},
        {0: total, "cpu": 4 * total},
        {0: total, 1: total, "cpu": 4 * total},
    ):
        title = "two devices" if "cpu" not in budgets else f"offloaded, {len(budgets) - 1}"
        for share in SHARES if "cpu" in budgets else (0.55, 0.7, 0.9):
            part = share / (len(budgets) - 1) if "cpu" in budgets else share
            said = {key: int(size * part) if key != "cpu" else size for key, size in budgets.items()}
            try:
                plan = planner.plan(model, max_memory=said, headroom=None, mode="no_disk")
            except planner.InfeasibleError:
                continue
            homes = {name: plan.device_map[nearest_key(name, plan.device_map)] for name in names}
            execution = {name: runs_on(name, plan, home) for name, home in homes.items()}
            if (
                len(set(execution.values())) < len(budgets) - ("cpu" in budgets)
                or "cpu" in execution.values()
            ):
                continue
            # Buffers stay where the block runs: these are among what lies there all the time.
            offloaded = {
                name: sizes[name] - buffer_bytes(model, name) for name in names if homes[name] == "cpu"
            }
            if bool(offloaded) != ("cpu" in budgets):
                continue
            room = {
                row.id: row.reserved_bytes + (row.free_bytes or 0)
                for row in plan.devices
                if row.kind == "accelerator"
            }
            yield Placed(title, plan, execution, offloaded, room)
            break


def buffer_bytes(model: Any, name: str) -> int:
    """Of the buffers of a block that are saved with it, which its bytes include."""
    modules = dict(model.named_modules(remove_duplicate=False))
    if name not in modules:
        return 0
    saved = modules[name].state_dict(keep_vars=True)
    seen = {id(tensor): tensor for tensor in modules[name].buffers()}
    kept = {id(tensor) for tensor in saved.values()} & seen.keys()
    return sum(seen[key].numel() * seen[key].element_size() for key in kept)


def runs_on(name: str, plan: Any, home: Any) -> Any:
    """Where a block runs: elsewhere than it rests, if the plan says so."""
    key = nearest_key(name, plan.execution_map)
    return home if key is None or home != "cpu" else plan.execution_map[key]


def first_inputs(model: Any) -> dict[str, torch.Tensor]:
    """What it runs with on the CPU."""
    reasons: list[str] = []
    for given in tiny_zoo.inputs(model):
        for tried in (given, None):
            try:
                with torch.no_grad():
                    model(**(given if tried is None else tried))
                return given
            except Exception as error:
                reasons.append(str(error)[:100])
                longer = tiny_zoo.with_pictures(given, model, str(error))
                if longer is None:
                    break
                given = longer
    raise tiny_zoo.NotRunnableError(" | ".join(reasons[:3]))


def sweep_class(name: str, is_quick: bool) -> None:
    """All figures of one class, told as they are found."""
    torch.set_num_threads(1)
    logging.disable(logging.CRITICAL)
    warnings.simplefilter("ignore")
    accelerators = Accelerators()
    for attention in ("eager", "sdpa"):
        try:
            model = built(name, attention)
        except Exception as error:
            print(MARK + json.dumps({"skipped": f"{attention}: {error}"[:150]}), flush=True)
            continue
        try:
            given = first_inputs(model)
        except tiny_zoo.NotRunnableError as error:
            print(MARK + json.dumps({"skipped": str(error)[:150]}), flush=True)
            continue
        sweep_model(model, attention, given, accelerators, is_quick=is_quick)


def built(name: str, attention: str) -> Any:
    """The tiny model, with one of the two ways of attention."""
    model = tiny_zoo.build(name, 0)
    model.set_attn_implementation(attention)
    if model._can_set_experts_implementation():
        model.set_experts_implementation("grouped_mm")  # the default of accelerators, and what is recorded
    if getattr(model.config, "_attn_implementation", attention) != attention:
        raise ValueError("this class has no other attention")
    return model


def sweep_model(
    model: Any,
    attention: str,
    given: Mapping[str, torch.Tensor],
    accelerators: Accelerators,
    *,
    is_quick: bool,
) -> None:
    """One model, all points and placements."""
    options = {"use_cache": True} if getattr(model.config, "use_cache", None) is not None else {}
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
    for placed in placements(model):
        # Of the points, each placement but the first takes three: smallest, middle and largest of both.
        for at, made in inputs.items():
            gc.collect()
            base = [accelerators.used_bytes(device.index) for device in accelerators.devices]
            try:
                on_device = place(model, placed)
                weights = {
                    device.index: accelerators.used_bytes(device.index) for device in accelerators.devices
                }
                real = measured_peaks(on_device, accelerators, made, steps=STEPS, options=options)
            except Exception as error:
                print(
                    MARK
                    + json.dumps({"failed": f"{placed.title} {at}: {type(error).__name__} {error}"[:300]}),
                    flush=True,
                )
                continue
            finally:
                remove(model, placed)
            gc.collect()
            recorded = replay(
                tapes[at],
                RunPlacement(
                    execution=placed.execution,
                    main_device=0,
                    resident_bytes=weights,
                    offloaded_bytes=placed.offloaded_bytes,
                    room_bytes=placed.room_bytes,
                ),
            )
            for phase in real:
                for device in dict.fromkeys([0, *placed.execution.values()]):
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


def place(model: Any, placed: Placed) -> Any:
    """The model, where it shall be."""
    if placed.title == "one device":
        return model.to(0)
    return planner.dispatch(model, placed.said)


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
    shares = " | ".join(f"{100 * part / max(count, 1):6.1f} %" for part in (exact, close, near))
    return f"| {title:<20} | {count:>5} | {shares} | {100 * worst:6.2f} % |"


def main() -> int:
    """Sweeps, prints what is off and the table; 1 if too much is off."""
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("--only", default="", help="only these classes")
    parser.add_argument("--every", type=int, default=1, help="only every n-th class")
    parser.add_argument("--quick", action="store_true", help="one batch and one prompt of each")
    parser.add_argument("--jobs", type=int, default=1, help="classes at once")
    parser.add_argument("--json", type=Path, help="a file for every figure")
    chosen = parser.parse_args()
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
    print("\n| placement            | peaks | to the byte | <= 0.1 % | <= 5 % | worst |")
    resident = [one for one in every if not one.placement.startswith("offloaded")]
    offloaded = [one for one in every if one.placement.startswith("offloaded")]
    for title in ("one device", "two devices"):
        print(line(title, [one for one in every if one.placement == title]))
    print(line("some blocks offloaded", offloaded))
    print(line("all", every))
    near = sum(one.off <= 0.05 for one in offloaded)
    return int(any(one.off > 0.05 for one in resident) or near < 0.99 * len(offloaded))


if __name__ == "__main__":
    sys.exit(main())

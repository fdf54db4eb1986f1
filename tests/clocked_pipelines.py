"""Pipelines over processes with a clock: each stage sleeps as long as it is declared to run, through torch's GPipe schedule."""

from __future__ import annotations

import random
import tempfile
import time
from collections.abc import Sequence
from itertools import combinations
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn
from torch.distributed.pipelining import PipelineStage, ScheduleGPipe

from planner.strategies.timed import solve_table

PIECES = 8
BATCHES = 4
APART = 1.1
_MS = 10**9


def drawn(draw: random.Random, stages: int) -> tuple[int, ...]:
    """How many of the pieces each stage has, at least one."""
    cuts = sorted(draw.sample(range(1, PIECES), k=stages - 1))
    return tuple(end - start for start, end in zip((0, *cuts), (*cuts, PIECES), strict=True))


def piece_ms(stages: int) -> tuple[int, ...]:
    """What one piece takes on the device of each stage: they are of unlike speed."""
    return (4, 9, 6)[:stages]


def modelled_s(counts: Sequence[int]) -> float:
    """What the search says of the only plan that there is: each piece may lie on one device."""
    stages, times = len(counts), piece_ms(len(counts))
    stage_of = [stage for stage, count in enumerate(counts) for _ in range(count)]
    answer = solve_table(
        {
            "objective": "pipeline",
            "batches": BATCHES,
            "kinds": [{"cap": PIECES}] * stages,
            "devices": list(range(stages)),
            "hop": [[0] * stages] * stages,
            "pieces": [
                {"bits": 1, "homes": [stage], "run": [ms * _MS for ms in times]} for stage in stage_of
            ],
        }
    )
    return answer.value_ps / 1e12


class Slept(nn.Module):
    """A stage: it takes its time, and passes on what it got."""

    def __init__(self, seconds: float) -> None:
        super().__init__()
        self.seconds = seconds

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        time.sleep(self.seconds)
        return x + 0


def measured_s(splits: Sequence[Sequence[int]], rounds: int = 3) -> list[float]:
    """The shortest of some rounds of each split, in as many processes as it has stages."""
    with tempfile.TemporaryDirectory() as folder:
        found = Path(folder) / "times"
        stages = len(splits[0])
        mp.spawn(_run, (stages, [tuple(split) for split in splits], rounds, folder), nprocs=stages)
        return [float(line) for line in found.read_text().split()]


def _run(rank: int, stages: int, splits: Sequence[Sequence[int]], rounds: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=stages)
    found = []
    for split in splits:
        module = Slept(split[rank] * piece_ms(stages)[rank] / 1e3)
        stage = PipelineStage(module, rank, stages, torch.device("cpu"))
        schedule = ScheduleGPipe(stage, BATCHES)
        times = []
        with torch.no_grad():
            for _ in range(rounds + 1):  # the first asks for shapes
                dist.barrier()
                begun = time.perf_counter()
                schedule.step(torch.ones(BATCHES, 16)) if rank == 0 else schedule.step()
                dist.barrier()
                times.append(time.perf_counter() - begun)
        found.append(min(times[1:]))
    if rank == 0:
        (Path(folder) / "times").write_text("\n".join(map(str, found)))
    dist.destroy_process_group()


def inversions(modelled: Sequence[float], measured: Sequence[float], apart: float = APART) -> tuple[int, int]:
    """Pairs modelled so far apart, and those of them that were measured the other way round."""
    rows = sorted(zip(modelled, measured, strict=True))
    pairs = [(one, other) for one, other in combinations(rows, 2) if other[0] >= apart * one[0]]
    return len(pairs), sum(one[1] >= other[1] for one, other in pairs)

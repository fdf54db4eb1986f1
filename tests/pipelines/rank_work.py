"""What ranks do in tests of pipelines. Each function is called in every process with its rank."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import planner
from planner.pipelines.stage import Stage


def generate(rank: int, *, folder: str, opened: dict[str, Any], calls: list[dict[str, Any]]) -> Any:
    """Opens a pipeline and calls it; returns tokens of each call, and what the pipeline says of itself."""
    with planner.pipeline(folder, **opened) as pipe:
        found = [
            pipe.generate(**{**call, "ids": torch.tensor(call["ids"]), **_mask(call)}).tolist()
            for call in calls
        ]
        return {
            "tokens": found,
            "read_bytes": pipe.read_bytes,
            "cache_bytes": pipe.cache_bytes,
            "layers": list(pipe.stage.layers),
        }


def _mask(call: dict[str, Any]) -> dict[str, Any]:
    mask = call.get("attention_mask")
    return {} if mask is None else {"attention_mask": torch.tensor(mask)}


def fault(
    rank: int,
    *,
    folder: str,
    opened: dict[str, Any],
    calls: list[dict[str, Any]],
    at_rank: int,
    kind: str,
    step: int,
    told: str,
) -> Any:
    """The same, and at one step something happens to one rank; when, is written to a file."""
    if rank == at_rank:
        whole, forwards = Stage.forward, 0

        def forward(stage: Stage, *args: Any, **kwargs: Any) -> Any:
            nonlocal forwards
            forwards += 1
            if forwards == step:
                Path(told).write_text(str(time.monotonic()))
                FAULTS[kind]()
            return whole(stage, *args, **kwargs)

        Stage.forward = forward  # type: ignore[method-assign]
    return generate(rank, folder=folder, opened=opened, calls=calls)


def _raise() -> None:
    raise ArithmeticError("a kernel that failed")


def _signal(number: int) -> None:
    os.kill(os.getpid(), number)
    time.sleep(0.05)  # Python gives it to the main thread between two instructions


FAULTS: dict[str, Callable[[], None]] = {
    "exits": lambda: os._exit(3),
    "raises": _raise,
    "hangs": lambda: time.sleep(600),
    "is stopped": lambda: _signal(signal.SIGSTOP),
    "is interrupted": lambda: _signal(signal.SIGINT),
    "is killed": lambda: _signal(signal.SIGKILL),
}

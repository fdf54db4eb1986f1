"""What ranks do in tests of odd calls. Each function is called in every process with its rank."""

from __future__ import annotations

import gc
import os
import time
import weakref
from typing import Any

import torch

import planner
from planner.pipelines import meeting, opening
from planner.pipelines.processes import Processes
from planner.pipelines.stage import Stage


def tried(rank: int, *, folder: str, calls: list[Any]) -> list[Any]:
    """What each call gives, or what is said of it, and how long a call that fails takes; a call may differ by rank."""
    said: list[Any] = []
    with planner.pipeline(folder, stages=(2, 3), timeout_s=60, microbatches=2) as pipe:
        for call in calls:
            asked = dict(call[rank] if isinstance(call, list) else call)
            dtype, device = getattr(torch, asked.pop("dtype", "int64")), asked.pop("device", "cpu")
            asked["ids"] = torch.tensor(asked["ids"]).to(device, dtype)
            if "attention_mask" in asked:
                asked["attention_mask"] = torch.tensor(asked["attention_mask"])
            began_s = time.monotonic()
            try:
                said.append(pipe.generate(**asked).tolist())
            except planner.PlannerError as error:
                said.append(f"{type(error).__name__}: {error}")
            assert time.monotonic() - began_s < 30, "nobody waits for the time-out"
    return said


def one_after_the_other(rank: int, *, folder: str, call: dict[str, Any]) -> Any:
    """Three pipelines, and what is left of the weights of each."""
    asked, found = {**call, "ids": torch.tensor(call["ids"])}, []
    gc.disable()
    for stages in ((2, 3), (4, 1), (1, 4)):
        pipe = planner.pipeline(folder, stages=stages, timeout_s=20)
        tokens = pipe.generate(**asked).tolist()
        weights = [weakref.ref(parameter) for parameter in pipe.stage.model.parameters()]
        pipe.close()
        assert pipe.stage.layers and pipe.read_bytes and repr(pipe).endswith("closed)")
        found.append([tokens, len(weights), sum(weight() is not None for weight in weights)])
    return found


def standing_still(rank: int, *, folder: str, seconds: float) -> None:
    """Rank 1 gives signs of life while it makes its stage, and does not get on."""
    meeting._STANDING_S = seconds  # type: ignore[misc]
    if rank == 1:
        opening.prepare_stage = lambda *_, **__: time.sleep(600)  # type: ignore[assignment]
    planner.pipeline(folder, stages=(2, 3), timeout_s=seconds)


def unconnected(rank: int, *, folder: str) -> None:
    """Rank 1 fails while the others wait for its connections."""
    if rank == 1:

        def fails(*_: Any) -> None:
            raise ArithmeticError("no such network")

        Processes.connect = fails  # type: ignore[method-assign, assignment]
    planner.pipeline(folder, stages=(2, 3), timeout_s=2)


def failing_alone(rank: int, *, folder: str, call: dict[str, Any]) -> None:
    """Something of the rank's own fails while it has nothing to compute."""
    with planner.pipeline(folder, stages=(2, 3), timeout_s=20) as pipe:
        if rank == 1:
            Stage.next = None  # type: ignore[assignment, method-assign]
        pipe.generate(**{**call, "ids": torch.tensor(call["ids"])})


def ranked(rank: int, *, folder: str, environment: dict[str, str]) -> None:
    """With another environment than torchrun's."""
    os.environ.update(environment)
    planner.pipeline(folder, stages=(2, 3), timeout_s=20)

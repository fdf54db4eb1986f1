"""What ranks do in tests of pipelines. Each function is called in every process with its rank."""

from __future__ import annotations

import gc
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from transformers import Cache

import planner
from planner.pipelines.schedule import Carrier
from planner.pipelines.stage import PreparedStage, Stage


def generate(rank: int, *, folder: str, opened: dict[str, Any], calls: list[dict[str, Any]]) -> Any:
    """Opens a pipeline and calls it; returns tokens of each call, and what the pipeline says of itself."""
    counted: list[int] = []
    whole = Carrier.forward

    def forward(carrier: Carrier, *args: Any, **kwargs: Any) -> Any:
        counted.append(len(args[3]))
        return whole(carrier, *args, **kwargs)

    Carrier.forward = forward  # type: ignore[method-assign]
    with planner.pipeline(folder, **opened) as pipe:
        found = [
            pipe.generate(**{**call, "ids": torch.tensor(call["ids"]), **_mask(call)}).tolist()
            for call in calls
        ]
        gc.collect()
        return {
            "tokens": found,
            "read_bytes": pipe.read_bytes,
            "cache_bytes": pipe.cache_bytes,
            "caches_left": sum(isinstance(each, Cache) for each in gc.get_objects()),
            "microbatches": counted[-1],
            "device": str(pipe.stage.device),
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


def forward(rank: int, *, folder: str, stages: list[int], ids: list[list[int]]) -> Any:
    """Logits of the whole model, where they are."""
    with planner.pipeline(folder, stages=stages, timeout_s=30) as pipe:
        logits = pipe.forward(torch.tensor(ids))
        return None if logits is None else logits.tolist()


def differing(rank: int, *, by_rank: list[dict[str, Any]], calls: list[dict[str, Any]]) -> Any:
    """Every rank opens a pipeline with arguments of its own; something may happen while it reads."""
    opened = dict(by_rank[rank])
    reading = opened.pop("reading", None)
    if reading is not None:
        PreparedStage.read = lambda *_: READING[reading]()  # type: ignore[method-assign]
    return generate(rank, folder=opened.pop("folder"), opened=opened, calls=calls)


def _broken_file() -> None:
    raise OSError(5, "Input/output error")


READING = {**FAULTS, "raises": _broken_file}


def two_pipelines(rank: int, *, folder: str, calls: list[dict[str, Any]]) -> Any:
    """One beside the other in one group, then the second alone."""
    call = {**calls[0], "ids": torch.tensor(calls[0]["ids"])}
    first = planner.pipeline(folder, stages=(2, 3), timeout_s=20)
    second = planner.pipeline(folder, stages=(4, 1), timeout_s=20)
    found = [first.generate(**call).tolist(), second.generate(**call).tolist()]
    has_group = [dist.is_initialized()]
    first.close()
    first.close()
    has_group.append(dist.is_initialized())
    found.append(second.generate(**call).tolist())
    second.close()
    has_group.append(dist.is_initialized())
    return {"tokens": found, "has_group": has_group}


def callers_group(rank: int, *, folder: str, calls: list[dict[str, Any]]) -> Any:
    """A group that was there before is used as ever afterwards."""
    dist.init_process_group("gloo")
    generate(rank, folder=folder, opened={"stages": (2, 3), "timeout_s": 20}, calls=calls)
    value = torch.tensor(float(rank))
    dist.all_reduce(value)
    dist.destroy_process_group()
    return {"sum": float(value)}


def alone(rank: int, *, folder: str, calls: list[dict[str, Any]]) -> Any:
    """A process that nobody told of others."""
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
        del os.environ[name]
    return generate(rank, folder=folder, opened={"stages": (5,)}, calls=calls)


def leaving(
    rank: int, *, folder: str, opened: dict[str, Any], call: dict[str, Any], how: str, who: int = 1
) -> Any:
    """One rank makes the first call, and not the second one."""
    asked = {**call, "ids": torch.tensor(call["ids"])}
    with planner.pipeline(folder, **opened) as pipe:
        pipe.generate(**asked)
        if rank == who:
            if how == "stays away":
                time.sleep(4)
            elif how == "is stopped":
                _signal(signal.SIGSTOP)
            elif how == "raises":
                _raise()
            return
        pipe.generate(**asked)


def differing_calls(rank: int, *, folder: str, call: dict[str, Any]) -> Any:
    """Two calls that cannot be made together, and one that can."""
    asked = {**call, "ids": torch.tensor(call["ids"])}
    said: list[Any] = []
    with planner.pipeline(folder, stages=(2, 3), timeout_s=20) as pipe:
        for wrong in ({"eos_token_id": rank + 1}, {"max_new_tokens": 8 * (1 - rank)}):
            try:
                pipe.generate(**{**asked, **wrong})
            except planner.PlannerError as error:
                said.append(f"{type(error).__name__}: {error}")
        return [*said, pipe.generate(**asked).tolist()]


def after_a_fault(rank: int, *, folder: str, call: dict[str, Any]) -> Any:
    """A pipeline is called again after one rank has failed in it."""
    asked = {**call, "ids": torch.tensor(call["ids"])}
    said: list[str] = []
    if rank == 1:
        Stage.forward = lambda *_, **__: _raise()  # type: ignore[method-assign]
    with planner.pipeline(folder, stages=(2, 3), timeout_s=20) as pipe:
        for _ in range(2):
            try:
                pipe.generate(**asked)
            except planner.PipelineError as error:
                said.append(str(error))
    return said

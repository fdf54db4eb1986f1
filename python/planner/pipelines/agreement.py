"""What the processes of a pipeline agree on before any of them reads a weight."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any, Final

import torch

from planner.devices.detect import free_devices, free_host_memory
from planner.devices.nodes import local_device, node_of
from planner.errors import InvalidInputError, PipelineError
from planner.names import listed
from planner.pipelines.runs import StageRun
from planner.pipelines.stage import PreparedStage
from planner.plans.plan import Plan
from planner.spelling import shown
from planner.units import format_bytes

__all__ = [
    "Offer",
    "Room",
    "Seat",
    "offer_of",
    "require_agreement",
    "require_count",
    "require_room",
    "require_seats",
    "room_of",
    "seat_device",
]

# What lists the devices that a process sees; the plan's own lines for torchrun set it where ranks and devices are in another order.
_VISIBLE: Final = "CUDA_VISIBLE_DEVICES"
_SAME: Final = {
    "plan": ("another plan", "give every rank the same file"),
    "options": ("other options of planner.pipeline", "call it with the same ones on every rank"),
    "torch": ("another torch", "install the same version everywhere"),
    "transformers": ("another transformers", "install the same version everywhere"),
}
"""What every rank must have as rank 0 has it, in words, and what helps."""


@dataclass(frozen=True, slots=True)
class Offer:
    """What a process comes with.

    Args:
        plan: a digest of stages, and of the plan that they are from.
        options: a digest of what else it was called with.
        torch: its version.
        transformers: its version.
    """

    plan: str
    options: str
    torch: str
    transformers: str


@dataclass(frozen=True, slots=True)
class Seat:
    """Where a process would run its stage.

    Args:
        host: its machine.
        device: the device there.
        boot: which start of which machine it is: several may be called "localhost".
    """

    host: str
    device: str
    boot: str = ""


@dataclass(frozen=True, slots=True)
class Room:
    """What a stage takes, and what there is.

    Args:
        host: its machine.
        device: where it will run.
        checkpoint: a digest of what its files hold.
        weight_bytes: what its weights take.
        free_bytes: what could be allocated there now; None where nobody says.
        boot: as of :class:`Seat`.
    """

    host: str
    device: str
    checkpoint: str
    weight_bytes: int
    free_bytes: int | None
    boot: str = ""


def offer_of(runs: Sequence[StageRun], plan: Plan | None, options: object) -> Offer:
    """What this process comes with."""
    said = repr([(run.layers, run.device) for run in runs])
    said += "" if plan is None else plan.to_json(provenance=False)
    return Offer(_digest(said), _digest(repr(options)), str(torch.__version__), _version_of("transformers"))


def _version_of(library: str) -> str:
    try:
        return version(library)
    except PackageNotFoundError:
        return "none"


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def require_count(runs: Sequence[StageRun], processes: int) -> None:
    """Raises PipelineError for more or fewer processes than stages."""
    if len(runs) != processes:
        stages = f"{len(runs)} stage{'s' if len(runs) > 1 else ''}"
        asked = f"{processes} process{'es' if processes > 1 else ''}"
        raise PipelineError(
            f"there {'are' if len(runs) > 1 else 'is'} {stages} and {asked}, and each stage needs one: start torchrun with"
            f" --nproc-per-node {len(runs)}, or on several machines with {len(runs)} in all, or plan for {processes} device"
            f"{'s' if processes > 1 else ''}"
        )


def require_agreement(offers: Sequence[Offer]) -> None:
    """Raises PipelineError where a rank came with other things than rank 0."""
    for what, (other, advice) in _SAME.items():
        odd = [rank for rank, offer in enumerate(offers) if getattr(offer, what) != getattr(offers[0], what)]
        if odd:
            raise PipelineError(f"{_ranks(odd)} came with {other} than rank 0: {advice}", rank=odd[0])


def require_seats(seats: Sequence[Seat], runs: Sequence[StageRun]) -> None:
    """Raises PipelineError for devices of several kinds, for one that two ranks would use, and for a plan's nodes elsewhere."""
    kinds = [torch.device(seat.device).type for seat in seats]
    odd = [rank for rank, kind in enumerate(kinds) if kind != kinds[0]]
    if odd:
        raise PipelineError(
            f"{_ranks(odd)} would run on {kinds[odd[0]]} and rank 0 on {kinds[0]}, and one backend of torch carries all: give"
            " device= where a rank has no accelerator of its own",
            **_fields(odd[0], runs),
        )
    taken: dict[Seat, int] = {}
    for rank, seat in enumerate(seats):
        if seat.device != "cpu" and seat in taken:
            raise PipelineError(
                f"ranks {taken[seat]} and {rank} would both run on {seat.device} of {seat.host}: each stage needs a device of its"
                " own; start no more processes on a machine than it has devices",
                **_fields(rank, runs),
            )
        taken[seat] = rank
    _require_nodes(seats, runs)


def _require_nodes(seats: Sequence[Seat], runs: Sequence[StageRun]) -> None:
    """Stages that a plan puts on one node must be on one machine, and those of others on others."""
    hosts: dict[str, tuple[str, str]] = {}
    nodes: dict[tuple[str, str], str] = {}
    for run, seat in zip(runs, seats, strict=True):
        node, host = "" if run.device is None else node_of(run.device), seat.host
        if not node or seat.device == "cpu":  # a rehearsal
            continue
        if hosts.setdefault(node, (host, seat.boot)) != (host, seat.boot):
            raise PipelineError(
                f"the plan has stage {run.index} on node {node} as others, and rank {run.index} is on {seat.host}, they on"
                f" {hosts[node][0]}: start as many processes on each machine as the plan has stages there, in its order of nodes",
                **_fields(run.index, runs),
            )
        if nodes.setdefault((host, seat.boot), node) != node:
            raise PipelineError(
                f"the plan has nodes {nodes[(host, seat.boot)]} and {node}, and ranks of both are on {seat.host}: start each node's"
                " processes on a machine of its own",
                **_fields(run.index, runs),
            )


def room_of(host: str, boot: str, device: torch.device, prepared: PreparedStage) -> Room:
    """What a stage takes beside what is free."""
    if device.type == "cpu":
        free: int | None = free_host_memory().free_bytes
    else:
        key: int | str = device.type if device.index is None else device.index
        free = next((each.free_bytes for each in free_devices() if each.device == key), None)
    return Room(host, str(device), prepared.fingerprint, prepared.weight_bytes, free, boot)


def require_room(rooms: Sequence[Room], runs: Sequence[StageRun]) -> None:
    """Raises PipelineError for ranks with other files, and for stages beyond what their device has free; those on one cpu share it."""
    odd = [rank for rank, room in enumerate(rooms) if room.checkpoint != rooms[0].checkpoint]
    if odd:
        raise PipelineError(
            f"{_ranks(odd)} found other tensors in the checkpoint, or another configuration, than rank 0: give every rank the same files",
            **_fields(odd[0], runs),
        )
    together: dict[tuple[str, str, str], list[int]] = {}
    for rank, room in enumerate(rooms):
        together.setdefault((room.host, room.device, room.boot), []).append(rank)
    for (host, device, _), ranks in together.items():
        needed = sum(rooms[rank].weight_bytes for rank in ranks)
        free = min((rooms[rank].free_bytes for rank in ranks), key=_or_endless)
        if free is not None and needed > free:
            raise PipelineError(
                f"{_ranks(ranks)} would hold {format_bytes(needed)} of weights on {device} of {host}, which has"
                f" {format_bytes(free)} free: fewer layers there, or plan with that as its budget",
                **_fields(ranks[0], runs),
            )


def _or_endless(value: int | None) -> float:
    return float("inf") if value is None else value


def _ranks(ranks: Sequence[int]) -> str:
    return f"rank {ranks[0]}" if len(ranks) == 1 else f"ranks {listed(str(rank) for rank in ranks)}"


def _fields(rank: int, runs: Sequence[StageRun]) -> dict[str, Any]:
    return {"rank": rank, "stage": runs[rank].index, "layers": runs[rank].layers, "step": None}


def _number(run: StageRun, local_rank: int | None) -> int:
    """Which accelerator of this machine: the plan's, unless a variable has put them in the order of ranks already."""
    planned = None if run.device is None else local_device(run.device)
    if isinstance(planned, int) and _VISIBLE not in os.environ:
        return planned
    return local_rank or 0


def seat_device(asked: str | torch.device | None, run: StageRun, local_rank: int | None) -> torch.device:
    """The device of a stage: the one asked for, the accelerator that the plan says or has the local rank's number, or the cpu.

    Raises:
        InvalidInputError: it is not there.
    """
    kind = torch.accelerator.current_accelerator(check_available=True)
    if asked is not None:
        try:
            device = torch.device(asked)
        except (RuntimeError, TypeError) as error:
            raise InvalidInputError(f"device must be one of torch's, not {shown(asked)}: {error}") from error
    elif kind is None:
        device = torch.device("cpu")
    else:
        device = torch.device(kind.type, _number(run, local_rank))
    if device.type == "cpu":
        return torch.device("cpu")
    many = torch.accelerator.device_count() if kind is not None and kind.type == device.type else 0
    if (device.index or 0) >= many:
        raise InvalidInputError(
            f"device {device} is not there: torch finds {many} of {device.type} on this machine, so that no more than {many} stages"
            " run here"
        )
    return torch.device(device.type, device.index or 0)

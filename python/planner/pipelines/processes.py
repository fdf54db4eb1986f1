"""The processes of a pipeline: how they find each other, and the connections that carry what one stage gives to the next."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from itertools import count
from pathlib import Path
from threading import Thread
from typing import Any, Final

import torch
import torch.distributed as dist

from planner.errors import InvalidInputError, PipelineError
from planner.names import listed

__all__ = ["Processes", "join_processes"]

# What torchrun gives each process.
_ENVIRONMENT: Final = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
_BOOT: Final = Path("/proc/sys/kernel/random/boot_id")
# Of the time-out, what a connection waits; the rest is for finding out who it waited for.
_SHARE: Final = 0.9
# What nccl's groups read when they are made.
_RAISING: Final = "TORCH_NCCL_BLOCKING_WAIT"


class _DefaultGroup:
    """The default group, where it was made here: it goes when the last pipeline in it does."""

    def __init__(self) -> None:
        self.is_ours = False
        self.users = 0
        self.numbers = count()

    def enter(self) -> None:
        self.users += 1

    def leave(self) -> None:
        self.users -= 1
        if self.is_ours and not self.users:
            self.is_ours = False
            if dist.is_initialized():
                dist.destroy_process_group()


_DEFAULT = _DefaultGroup()
# By torchrun's environment. Where a rank keeps the store itself, one that went with a pipeline might be met by others on their way to the next.
_STORES: dict[tuple[str, ...], tuple[dist.Store, int, int]] = {}


@dataclass(slots=True, eq=False)
class Processes:
    """The processes of one pipeline, before and after they are connected.

    Args:
        rank: which of them this is.
        count: how many there are.
        local_rank: which of those on this machine, None where nobody says.
        store: what they tell each other, of this pipeline alone.
        timeout_s: how long one waits for another.
        group: the connections of this pipeline; None before :meth:`connect`, and after :meth:`close`.
        host: what this machine is called.
        boot: what tells it from others of that name; "" where nothing does.
    """

    rank: int
    count: int
    local_rank: int | None
    store: dist.Store
    timeout_s: float
    group: dist.ProcessGroup | None = None
    host: str = field(default_factory=socket.gethostname)
    boot: str = field(default_factory=lambda: _boot())
    _found: dist.Store | None = None
    _is_open: bool = True

    def connect(self, device: torch.device) -> None:
        """Makes the connections, with what torch has for the device: nccl for cuda, gloo for the cpu.

        Every process has to call it. Joins the default group, or makes one where there is none.
        """
        backend = dist.get_default_backend_for_device(device)
        timeout = timedelta(seconds=_SHARE * self.timeout_s)
        if not dist.is_initialized():
            dist.init_process_group(
                backend, store=self._found, rank=self.rank, world_size=self.count, timeout=timeout
            )
            _DEFAULT.is_ours = True
        if device.type != "cpu":
            torch.accelerator.set_device_index(device)
        with _raising():
            self.group = dist.new_group(backend=backend, timeout=timeout)

    def cut(self) -> None:
        """Breaks the connections, so that who waits for this process gets an error at once."""
        group, self.group = self.group, None
        if group is not None:
            group.abort()
            dist.destroy_process_group(group)

    def close(self) -> None:
        """Ends the connections, and the default group where it was made here and no other pipeline uses it."""
        if self._is_open:
            self._is_open = False
            group, self.group = self.group, None
            if group is not None and dist.is_initialized():
                dist.destroy_process_group(group)
            _DEFAULT.leave()


def _boot() -> str:
    try:
        return _BOOT.read_text().strip()
    except OSError:  # no Linux
        return ""


@contextmanager
def _raising() -> Iterator[None]:
    """For groups that are made in here: a rank that is waited for too long is an error, and not the end of the process."""
    said = os.environ.get(_RAISING)
    os.environ[_RAISING] = "1"
    try:
        yield
    finally:
        if said is None:
            del os.environ[_RAISING]
        else:
            os.environ[_RAISING] = said


def join_processes(timeout_s: float) -> Processes:
    """Finds the other processes: in the default group, or by torchrun's environment; without either there is one process.

    Raises:
        InvalidInputError: a part of torchrun's environment, or a group that has no store.
        PipelineError: nobody answers at the address, or its port is in use.
    """
    found: Any
    if not dist.is_available():
        raise InvalidInputError("this torch was built without torch.distributed, which pipelines run on")
    if dist.is_initialized():
        group: Any = dist.group.WORLD
        if not hasattr(group, "get_group_store"):
            raise InvalidInputError(
                f"torch {torch.__version__} does not say the store of a group that was made before; let planner.pipeline make it,"
                " or take a later version"
            )
        found, rank, many = group.get_group_store(), dist.get_rank(), dist.get_world_size()
    else:
        found, rank, many = _from_environment(timeout_s)
    if not 0 <= rank < many:
        raise InvalidInputError(
            f"RANK is {rank} and WORLD_SIZE {many}: ranks go from 0 to one below that; start the script with torchrun"
        )
    number = next(_DEFAULT.numbers)
    local = os.environ.get("LOCAL_RANK", "")
    _DEFAULT.enter()
    return Processes(
        rank=rank,
        count=many,
        local_rank=int(local) if local.isdecimal() else None,
        store=dist.PrefixStore(f"planner/pipeline/{number}", found),
        timeout_s=timeout_s,
        _found=dist.PrefixStore(f"planner/group/{number}", found),
    )


def _from_environment(timeout_s: float) -> tuple[dist.Store, int, int]:
    lacking = [name for name in _ENVIRONMENT if not os.environ.get(name)]
    if len(lacking) == len(_ENVIRONMENT):
        return dist.HashStore(), 0, 1
    if lacking:
        raise InvalidInputError(
            f"{listed(lacking)} of torchrun's environment {'is' if len(lacking) == 1 else 'are'} not set: start the script with"
            " torchrun --nproc-per-node STAGES"
        )
    said = tuple(os.environ[name] for name in _ENVIRONMENT)
    if said in _STORES:
        return _STORES[said]
    place = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
    found: list[Any] = []
    wrong: list[Exception] = []

    def meet() -> None:
        try:
            found.append(next(dist.rendezvous("env://", timeout=timedelta(seconds=timeout_s))))
        except (
            RuntimeError,
            ValueError,
        ) as error:  # those of torch's stores, and of what it makes of the environment
            wrong.append(error)

    # torch waits for ever where something that is no store listens at the port.
    meeting = Thread(target=meet, name="planner: rendezvous", daemon=True)
    meeting.start()
    meeting.join(timeout_s)
    if found:
        store, rank, many = _STORES[said] = found[0]
        return store, rank, many
    error = wrong[0] if wrong else TimeoutError(f"no answer within timeout_s={timeout_s:g}")
    if isinstance(error, ValueError):
        raise InvalidInputError(f"torchrun's environment cannot be understood: {error}") from error
    raise _unreachable(place, error) from error


def _unreachable(place: str, error: Exception) -> PipelineError:
    if "EADDRINUSE" in str(error) or "already in use" in str(error):
        said = (
            f"port {place.rpartition(':')[2]} is in use on this machine, so that the other processes cannot come to it: give torchrun"
            " another one, as in --rdzv-endpoint HOST:29501, or --standalone where all processes are on one machine"
        )
    else:
        said = (
            f"the processes of the pipeline did not find each other at {place}, which has to be on the machine of rank 0: this one"
            " cannot reach it, not every process was started, or something else has the port"
        )
    whose = "torch says: " if isinstance(error, RuntimeError) else ""
    return PipelineError(f"{said}; {whose}{str(error).splitlines()[0]}")

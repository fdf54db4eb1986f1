"""A process that has the large libraries loaded, and forks as many as a pipeline has ranks, for each line on its stdin.

A line is JSON: the work ("module:function"), how many ranks, the arguments, a folder for results, a limit in seconds, and whether a rank is to
keep the store itself. The answer is a line with the exit codes. Whatever happens, none of the processes is left.
"""

from __future__ import annotations

import ctypes
import gc
import importlib
import json
import os
import pickle
import signal
import socket
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

LARGE = (
    "numpy",
    "torch",
    "torch.distributed.pipelining",
    "safetensors.torch",
    "transformers.modeling_utils",
    "planner.pipelines.api",
)
_DIE_WITH_PARENT = 1  # PR_SET_PDEATHSIG


def fork(task: Any) -> int:
    """A child that does a task and ends with its exit code, and not later than this process."""
    child = os.fork()
    if child:
        return child
    code = 70
    try:
        ctypes.CDLL(None).prctl(_DIE_WITH_PARENT, signal.SIGKILL)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        code = task()
    finally:
        os._exit(code)


def keep_store(place: Path) -> int:
    """What torchrun's agent does: keeps the store of the ranks, for as long as it lives."""
    import torch.distributed as dist

    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    (place / "port.new").write_text(str(store.port))
    (place / "port.new").rename(place / "port")
    while True:
        time.sleep(60)


def work(order: dict[str, Any], rank: int, place: Path, port: int) -> int:
    """One rank: its result, or its error, goes to a file."""
    environment = {
        "RANK": rank,
        "LOCAL_RANK": rank,
        "WORLD_SIZE": order["processes"],
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": port,
        "GLOO_SOCKET_IFNAME": "lo",
        "OMP_NUM_THREADS": 1,
    }
    if not order["keeps_store"]:
        environment["TORCHELASTIC_USE_AGENT_STORE"] = True
    os.environ.update({key: str(value) for key, value in environment.items()})
    log = os.open(place / f"{rank}.log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    os.dup2(log, 1)
    os.dup2(log, 2)
    import torch

    torch.set_num_threads(1)
    module, function = order["work"].split(":")
    began = time.monotonic()
    found: dict[str, Any] = {}
    try:
        found["value"] = getattr(importlib.import_module(module), function)(rank, **order["arguments"])
    except BaseException as error:
        import traceback

        traceback.print_exc()
        found["error"] = error
        found["cause"] = repr(error.__cause__)
    found |= {"began_s": began, "ended_s": time.monotonic()}
    sys.stdout.flush()
    sys.stderr.flush()
    (place / f"{rank}.new").write_bytes(pickle.dumps(found))
    (place / f"{rank}.new").rename(place / f"{rank}.found")
    return 1 if "error" in found else 0


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def run(order: dict[str, Any]) -> list[int | None]:
    """All ranks, to their end or the limit's."""
    place = Path(order["place"])
    children: dict[int, int] = {}
    keeper = 0
    try:
        if order["port"] or order["keeps_store"]:
            port = order["port"] or free_port()
        else:
            keeper = fork(lambda: keep_store(place))
            port = wait_for(place / "port")
        for rank in range(order["started"]):
            children[fork(lambda rank=rank: work(order, rank, place, port))] = rank
        return wait_all(children, order["limit_s"], set(order["unawaited"]))
    finally:
        for child in (*children, keeper):
            if child:
                with suppress(ProcessLookupError):
                    os.kill(child, signal.SIGKILL)
                with suppress(ChildProcessError):
                    os.waitpid(child, 0)


def wait_for(port: Path) -> int:
    until = time.monotonic() + 30
    while not port.exists():
        if time.monotonic() > until:
            raise TimeoutError("no store")
        time.sleep(0.005)
    return int(port.read_text())


def wait_all(children: dict[int, int], limit_s: float, unawaited: set[int]) -> list[int | None]:
    """Exit codes by rank; None of one that was still there at the limit, or when all others had ended."""
    codes: list[int | None] = [None] * len(children)
    left, until = set(children), time.monotonic() + limit_s
    while any(children[child] not in unawaited for child in left) and time.monotonic() < until:
        for child in list(left):
            found, status = os.waitpid(child, os.WNOHANG)
            if found:
                left.discard(child)
                codes[children[child]] = os.waitstatus_to_exitcode(status)
        time.sleep(0.005)
    return codes


def serve() -> None:
    for name in LARGE:
        importlib.import_module(name)
    gc.collect()
    gc.freeze()
    for line in sys.stdin:
        print(json.dumps(run(json.loads(line))), flush=True)


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    serve()
    os._exit(0)  # the libraries have nothing to say that anybody reads

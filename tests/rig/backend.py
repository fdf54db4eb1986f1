"""The virtual accelerators as torch knows them: the device type `virtual`, and the module `torch.virtual`."""

from __future__ import annotations

import atexit
import contextlib
import os
import time
import types
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import torch

from rig.build import load_extension

__all__ = ["NAME", "register"]

NAME = "virtual"
AUTOGRAD_S = 0.1


@cache
def register() -> types.ModuleType:
    """Registers the device type in this process, for good, and returns the extension.

    Guarantee: afterwards `torch.device(0)` is `virtual:0`, and `torch.accelerator` speaks of two devices.
    """
    extension = load_extension()
    torch.utils.rename_privateuse1_backend(NAME)
    torch._register_device_module(NAME, device_module(extension))
    extension.register_hooks()
    torch.utils.generate_methods_for_privateuse1_backend()
    atexit.register(let_autograd_finish)
    return extension


def let_autograd_finish() -> None:
    """Gives the threads of `backward`, one for each device, time to let go of the last graph.

    They need the interpreter for that, and torch aborts the process if it is already gone.
    """
    if any(name.startswith("pt_autograd") for name in thread_names()):
        time.sleep(AUTOGRAD_S)


def thread_names() -> Iterator[str]:
    """Of the threads of this process."""
    for number in os.listdir("/proc/self/task"):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # it has ended meanwhile
            yield (Path("/proc/self/task") / number / "comm").read_text()


def device_module(extension: Any) -> types.ModuleType:
    """`torch.virtual`, with the functions that `torch.cuda` has too."""
    module = types.ModuleType(f"torch.{NAME}", "Two virtual accelerators with real values.")
    for functions in (
        device_functions(extension),
        memory_functions(),
        stream_functions(),
        random_functions(),
    ):
        for name, function in functions.items():
            setattr(module, name, function)
    return module


def index_of(device: Any) -> int:
    """The number of a device, however it is spelt; of the current device for none."""
    if isinstance(device, int):
        return device
    index = None if device is None else torch.device(device).index
    return torch.accelerator.current_device_index() if index is None else index


def device_functions(extension: Any) -> dict[str, Any]:
    """Which devices there are, and which is the current one."""

    class device(torch.accelerator.device_index):
        def __init__(self, device: Any) -> None:
            super().__init__(index_of(device))

    return {
        "is_available": lambda: True,
        "is_initialized": lambda: True,
        "init": lambda: None,
        "_lazy_init": lambda: None,
        "_is_in_bad_fork": lambda: False,
        "device_count": extension.device_count,
        "current_device": extension.current_device,
        "set_device": lambda device: extension.set_device(index_of(device)),
        "device": device,
        "get_device_name": lambda device=None: f"virtual accelerator {index_of(device)}",
        "get_amp_supported_dtype": lambda: [torch.float16, torch.bfloat16],
        "is_bf16_supported": lambda: True,
    }


def memory_functions() -> dict[str, Any]:
    """torch's functions for any accelerator, under the names that each one's module has."""
    accelerator = torch.accelerator
    return {
        "mem_get_info": lambda device=None: accelerator.get_memory_info(index_of(device)),
        "memory_allocated": lambda device=None: accelerator.memory_allocated(index_of(device)),
        "max_memory_allocated": lambda device=None: accelerator.max_memory_allocated(index_of(device)),
        "memory_reserved": lambda device=None: accelerator.memory_reserved(index_of(device)),
        "max_memory_reserved": lambda device=None: accelerator.max_memory_reserved(index_of(device)),
        "memory_stats": lambda device=None: accelerator.memory_stats(index_of(device)),
        "reset_peak_memory_stats": lambda device=None: accelerator.reset_peak_memory_stats(index_of(device)),
        "empty_cache": accelerator.empty_cache,
        "OutOfMemoryError": torch.OutOfMemoryError,
    }


def stream_functions() -> dict[str, Any]:
    """Streams and events; a stream is its own context manager."""
    accelerator = torch.accelerator
    return {
        "Stream": torch.Stream,
        "Event": torch.Event,
        "stream": lambda stream: stream,
        "current_stream": lambda device=None: accelerator.current_stream(index_of(device)),
        "default_stream": lambda device=None: torch.Stream(
            stream_id=0,
            device_index=index_of(device),
            device_type=int(torch._C._autograd.DeviceType.PrivateUse1),
        ),
        "set_stream": accelerator.set_stream,
        "synchronize": lambda device=None: accelerator.synchronize(index_of(device)),
    }


def random_functions() -> dict[str, Any]:
    """Kernels run on the host, so its generator is the only one."""
    return {
        "manual_seed": lambda seed: None,
        "manual_seed_all": lambda seed: None,
        "get_rng_state": lambda device=None: torch.get_rng_state(),
        "set_rng_state": lambda state, device=None: torch.set_rng_state(state),
    }

"""What a model's code may ask about accelerators that are not there."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

__all__ = ["asked_here", "is_question"]

# Kernels are chosen by this; a plan is for accelerators of today.
CAPABILITY = (9, 0)

_lock = threading.Lock()
_threads: list[int] = []


class _Capability:
    """Stands in the place of torch's function, which raises where there is no such device; for other threads it still does."""

    def __init__(self, usual: Callable[..., Any]) -> None:
        self.usual = usual

    def __call__(self, device: Any = None) -> Any:
        is_asked_here = threading.get_ident() in _threads
        return CAPABILITY if is_asked_here and not _is_there(device) else self.usual(device)


def _is_there(device: Any) -> bool:
    index = device if isinstance(device, int) or device is None else torch.device(device).index
    return torch.cuda.is_available() and (index is None or index < torch.cuda.device_count())


def is_question(error: Exception) -> bool:
    """Whether an error is the driver's answer to somebody who asked for a device that is not there. Fake tensors ask for none."""
    words = str(error)
    return (
        isinstance(error, torch.AcceleratorError) or "NVIDIA driver" in words or words == "Invalid device id"
    )


@contextmanager
def asked_here() -> Iterator[None]:
    """Within, this thread is told what CUDA devices can do that the machine does not have.

    Guarantee: torch is as it was when the last thread has left.
    """
    this = threading.get_ident()
    try:
        with _lock:
            _threads.append(this)
            if not isinstance(torch.cuda.get_device_capability, _Capability):
                torch.cuda.get_device_capability = _Capability(torch.cuda.get_device_capability)
        yield
    finally:
        with _lock:
            if this in _threads:
                _threads.remove(this)
            found: Any = torch.cuda.get_device_capability
            if not _threads and isinstance(found, _Capability):
                torch.cuda.get_device_capability = found.usual

"""What a model's code may ask about accelerators that are not there."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch._subclasses import fake_tensor

__all__ = ["asked_here", "is_of_absent", "is_question", "is_there"]

# Kernels are chosen by this; a plan is for accelerators of today.
CAPABILITY = (9, 0)

_lock = threading.Lock()
_threads: list[int] = []


class _Answering:
    """Stands in the place of a function of torch's, which raises where there is no such device; for other threads it still does."""

    def __init__(self, usual: Callable[..., Any], answer: Any) -> None:
        self.usual = usual
        self.answer = answer

    def __call__(self, device: Any = None) -> Any:
        is_asked_here = threading.get_ident() in _threads
        return self.answer if is_asked_here and not is_there(device) else self.usual(device)


# Fake tensors have torch prepare a real device for them.
_ASKED = ((torch.cuda, "get_device_capability", CAPABILITY), (fake_tensor, "init_gpu_context", None))


def is_there(device: Any) -> bool:
    """Whether the machine has a CUDA device; None is the current one."""
    index = device if isinstance(device, int) or device is None else torch.device(device).index
    return torch.cuda.is_available() and (index is None or index < torch.cuda.device_count())


def is_question(error: Exception) -> bool:
    """Whether an error is the driver's answer to code that asked for a device that is not there. Fake tensors ask for none."""
    words = str(error)
    # The class is there since torch 2.8.
    is_drivers = type(error).__name__ == "AcceleratorError"
    return is_drivers or is_of_absent(error) or "NVIDIA driver" in words or words == "Invalid device id"


def is_of_absent(error: Exception) -> bool:
    """Whether torch has tried to make a device the current one that the machine does not have.

    Its guard around indexing does, on machines with any; on those without, fake tensors take the guard away.
    """
    return isinstance(error, RuntimeError) and "invalid device ordinal" in str(error)


@contextmanager
def asked_here() -> Iterator[None]:
    """Within, this thread gets answers for CUDA devices that the machine does not have.

    Guarantee: torch is as it was when the last thread has left.
    """
    this = threading.get_ident()
    try:
        with _lock:
            _threads.append(this)
            for owner, name, answer in _ASKED:
                usual = getattr(owner, name)
                if not isinstance(usual, _Answering):
                    setattr(owner, name, _Answering(usual, answer))
        yield
    finally:
        with _lock:
            if this in _threads:
                _threads.remove(this)
            for owner, name, _ in _ASKED:
                found: Any = getattr(owner, name)
                if not _threads and isinstance(found, _Answering):
                    setattr(owner, name, found.usual)

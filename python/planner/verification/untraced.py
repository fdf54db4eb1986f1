"""Fake tensors that a model's code takes for real ones: transformers makes masks of what it would leave out where it is not traced."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final

__all__ = ["as_if_real"]

_MODULE: Final = "transformers.utils.import_utils"
_NAME: Final = "is_fake_tensor"

_lock = threading.Lock()
_threads: list[int] = []


class _Denying:
    """Stands in the place of transformers' question whether a tensor is a fake one; for other threads it is still asked."""

    def __init__(self, usual: Callable[[Any], bool]) -> None:
        self.usual = usual

    def __call__(self, tensor: Any) -> bool:
        return threading.get_ident() not in _threads and self.usual(tensor)


@contextmanager
def as_if_real() -> Iterator[None]:
    """Within, transformers' code of this thread runs on fake tensors as it does on real ones, which are not traced.

    Guarantee: transformers is as it was when the last thread has left.
    """
    owner: Any = sys.modules.get(_MODULE)
    this = threading.get_ident()
    with _lock:
        _threads.append(this)
        usual = getattr(owner, _NAME, None)
        if usual is not None and not isinstance(usual, _Denying):
            setattr(owner, _NAME, _Denying(usual))
    try:
        yield
    finally:
        with _lock:
            _threads.remove(this)
            found = getattr(owner, _NAME, None)
            if not _threads and isinstance(found, _Denying):
                setattr(owner, _NAME, found.usual)

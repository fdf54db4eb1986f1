"""The line that called the package: where warnings point, and where words come from."""

from __future__ import annotations

import sys
import warnings
from types import FrameType


def caller() -> FrameType:
    """The nearest frame outside of the package."""
    frame = sys._getframe(1)
    # By the module's name, because code that dataclasses write has no file.
    while frame.f_back and f"{frame.f_globals.get('__name__')}.".startswith("planner."):
        frame = frame.f_back
    return frame


def warn_caller(message: str, category: type[Warning] = UserWarning) -> None:
    """Warns there: how deep below it the reason was found is no matter of the reader's."""
    frame = caller()
    registry = frame.f_globals.setdefault("__warningregistry__", {})
    module = frame.f_globals.get("__name__", "<string>")
    warnings.warn_explicit(message, category, frame.f_code.co_filename, frame.f_lineno, module, registry)

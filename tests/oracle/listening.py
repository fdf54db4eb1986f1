"""What a call says: log records and warnings of ours and of upstream, without the complaints about absent accelerators."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

LOGGERS = ("planner", "accelerate.utils.modeling", "transformers.integrations.accelerate")


class _Listener(logging.Handler):
    def __init__(self, heard: list[str]) -> None:
        super().__init__()
        self.heard = heard

    def emit(self, record: logging.LogRecord) -> None:
        if "is not available, available devices" not in record.getMessage():
            self.heard.append(f"{record.levelname} {record.getMessage()}")


@contextmanager
def heard() -> Iterator[list[str]]:
    """A list that holds, after the block, "INFO text", "WARNING text" of logs and then "WARN text" of warnings."""
    found: list[str] = []
    listener = _Listener(found)
    loggers = [logging.getLogger(name) for name in LOGGERS]
    before = [(logger.level, logger.disabled) for logger in loggers]
    for logger in loggers:
        logger.addHandler(listener)
        logger.setLevel(logging.INFO)
        logger.disabled = False
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            yield found
        found.extend(f"WARN {warning.message}" for warning in caught)
    finally:
        for logger, (level, disabled) in zip(loggers, before, strict=True):
            logger.removeHandler(listener)
            logger.setLevel(level)
            logger.disabled = disabled


def said(call: Any, *arguments: Any, **options: Any) -> list[str]:
    """What one call says."""
    with heard() as found:
        call(*arguments, **options)
    return found

"""Small files read within limits, and the one error for everything that is wrong with a checkpoint."""

from __future__ import annotations

import json
import os
import stat
from typing import Any

from planner.errors import CheckpointError

MOST_CONFIG_BYTES = 4 * 2**20


def fault(file: str, reason: str) -> CheckpointError:
    """The error about a file."""
    file, reason = printable(file), printable(reason)
    return CheckpointError(f"{file}: {reason}", file=file, reason=reason)


def printable(path: str) -> str:
    """A path as text that can be printed, whatever bytes its name is made of."""
    return path.encode(errors="backslashreplace").decode()


def system_reason(error: OSError | ValueError) -> str:
    """What the system says of a file that it does not give."""
    if isinstance(error, FileNotFoundError | NotADirectoryError):
        return "no such file"
    if isinstance(error, PermissionError):
        return "permission denied"
    return str(getattr(error, "strerror", None) or error)


def read_regular(path: str, most_bytes: int) -> bytes:
    """At most so many bytes of a regular file, which is opened without waiting for a writer.

    Raises:
        CheckpointError: missing, not to be read, or not a regular file.
    """
    try:
        number = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    except (OSError, ValueError) as error:
        raise fault(path, system_reason(error)) from error
    try:
        # Looked at before a file object is made of it, which is refused for a directory.
        mode = os.fstat(number).st_mode
        if not stat.S_ISREG(mode):
            raise fault(path, "a folder, not a file" if stat.S_ISDIR(mode) else "not a regular file")
    except BaseException:
        os.close(number)
        raise
    with open(number, "rb") as file:
        return file.read(most_bytes)


def read_json_object(path: str) -> dict[str, Any]:
    """The object in a small JSON file.

    Raises:
        CheckpointError: unreadable, over 4 MiB, not UTF-8, not JSON, too deep, or not an object.
    """
    content = read_regular(path, MOST_CONFIG_BYTES + 1)
    if len(content) > MOST_CONFIG_BYTES:
        raise fault(path, f"larger than {MOST_CONFIG_BYTES} bytes")
    try:
        read = json.loads(content.decode("utf-8-sig"))
    except RecursionError as error:
        raise fault(path, "JSON is nested too deep") from error
    except ValueError as error:
        raise fault(path, f"not JSON: {error}") from error
    if not isinstance(read, dict):
        raise fault(path, f"must hold a JSON object, not a {type(read).__name__}")
    return read

"""Whether a file that a checkpoint names lies inside it."""

from __future__ import annotations

import os
import re

from planner.checkpoint.reading import fault

_DRIVE = re.compile(r"[A-Za-z]:")


def resolve_inside(folder: str, name: str, said_by: str) -> str | None:
    """Where a file of a checkpoint really lies; None where there is none.

    Args:
        folder: the checkpoint's folder.
        name: the file's name, as an index or the folder says it.
        said_by: the file that says so, for messages.

    Raises:
        CheckpointError: the name is absolute, climbs out of the folder or cannot be a name; or it is a link to somewhere
            else than the folder, or the store of blobs beside the snapshots of a hub cache.

    Guarantee: names are judged before anything is opened.
    """
    _require_plain(name, said_by)
    path = os.path.join(folder, name)
    try:
        is_link = os.path.islink(path)
        if not is_link and "/" not in name:
            return path if os.path.lexists(path) else None
        real = os.path.realpath(path)
    except ValueError as error:
        raise fault(said_by, f"names a file that cannot be: {name!r}") from error
    if not any(_is_below(real, root) for root in _roots(folder)):
        raise fault(said_by, f"'{name}' leads out of the checkpoint, to {real}")
    return real if os.path.lexists(real) else None


def _require_plain(name: str, said_by: str) -> None:
    parts = name.split("/")
    is_climbing = any(part in ("", ".", "..") for part in parts)
    if is_climbing or "\\" in name or "\0" in name or _DRIVE.match(name):
        raise fault(
            said_by,
            f"names the file {name[:200]!r}; a checkpoint's files lie in its folder, by names without '..' and '\\'",
        )


def _roots(folder: str) -> tuple[str, ...]:
    """Folders where files of this one may lie: itself, and a hub cache's blobs for a snapshot of it or a folder in one."""
    real = inner = os.path.realpath(folder)
    while (above := os.path.dirname(inner)) != inner:
        store, snapshots = os.path.split(above)
        if snapshots == "snapshots" and os.path.basename(store).startswith("models--"):
            return (real, os.path.join(store, "blobs"))
        inner = above
    return (real,)


def _is_below(path: str, root: str) -> bool:
    return path.startswith(root.rstrip(os.sep) + os.sep)

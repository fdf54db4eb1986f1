"""From what was typed to a folder or a file: a path, or the name of a model in the hub's cache."""

from __future__ import annotations

import os
import re
import stat
from dataclasses import dataclass

from planner.checkpoint.hub_cache import cache_folder, find_snapshot, hub_name, is_store, snapshot_in
from planner.checkpoint.reading import fault, system_reason
from planner.errors import InvalidInputError
from planner.spelling import shown

_ADDRESS = re.compile(r"(?:https?://[^/]+|hf:/)/([\w.-]+/[\w.-]+)", re.ASCII)


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where a checkpoint lies.

    Args:
        name: what was given, for messages.
        folder: its folder.
        file: the one file in it that was named; None for the folder.
    """

    name: str
    folder: str
    file: str | None = None

    @property
    def path(self) -> str:
        """The folder, or the file in it."""
        return self.folder if self.file is None else os.path.join(self.folder, self.file)

    def names(self) -> list[str]:
        """Names in the folder, sorted; the file's alone, where it can be read and its folder cannot. Raises CheckpointError."""
        try:
            return sorted(os.listdir(self.folder))
        except OSError as error:
            if self.file is not None:
                return [self.file]
            raise fault(self.folder, system_reason(error)) from error


def locate(source: str | os.PathLike[str]) -> Place:
    """Where a checkpoint lies.

    Args:
        source: a folder (a snapshot of the hub's cache, or a repository's place in it, too), a file, or where nothing has
            that path, a repository's name on the hub, with ``@revision`` if it is not "main", that is in the hub's cache.

    Raises:
        InvalidInputError: no path.
        CheckpointError: nothing there. Fields: ``file``, ``reason``.
    """
    if not isinstance(source, str | os.PathLike):
        raise InvalidInputError(f"a checkpoint is a path, not {shown(source)}")
    path = os.fsdecode(source)
    try:
        mode = os.stat(path).st_mode
    except (OSError, ValueError) as error:
        reason = system_reason(error)
        if reason != "no such file":
            raise fault(path, reason) from error
        if os.path.lexists(path):  # whoever made the link meant what it led to, and no model of the hub
            raise fault(path, "a link to nothing") from error
        return _in_hub_cache(path, error)
    if stat.S_ISDIR(mode):
        folder = snapshot_in(path) if is_store(path) else path
        return Place(name=folder, folder=folder)
    folder, file = os.path.split(path)
    return Place(name=path, folder=folder or os.curdir, file=file)


def _in_hub_cache(path: str, missing: Exception) -> Place:
    """What has no path may have a name on the hub: a folder of that name wins, as it does everywhere else."""
    name = hub_name(path)
    if name is None:
        address = _ADDRESS.match(path)
        meant = f"; a model on the hub is named without its address: {address[1]}" if address else ""
        raise fault(path, f"no such file or folder{meant}") from missing
    snapshot = find_snapshot(name)
    if snapshot is None:
        raise fault(
            path,
            f"no such file or folder, and no model of that name in the hub's cache, {cache_folder()}; "
            f"`{name.download_command}` would put it there, --remote (in Python, remote=True) reads its headers from the hub",
        ) from missing
    return Place(name=snapshot, folder=snapshot)

"""From a path to the files of a checkpoint: a folder, a file, an index, or a configuration alone."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from planner import _core
from planner.checkpoint.hub_cache import cache_folder, find_snapshot, hub_name, is_store, snapshot_in
from planner.checkpoint.inside import resolve_inside
from planner.checkpoint.reading import fault, printable, read_json_object, read_regular, system_reason
from planner.errors import InvalidInputError
from planner.names import listed
from planner.spelling import shown

Headers = _core.Headers
"""What the headers of a checkpoint's files say, as columns."""

_SINGLE = "model.safetensors"
_CONFIG = "config.json"
_WEIGHTS_END = ".safetensors"
_INDEX_END = ".safetensors.index.json"
_PICKLED_ENDS = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".bin.index.json")
_NUMBERED = re.compile(r"(.*)-([0-9]{1,9})-of-([0-9]{1,9})\.safetensors")
_MOST_NUMBERED = 100_000


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointFiles:
    """What a path holds.

    Args:
        name: the path as it was given, for messages.
        weights: paths of safetensors files; none if there is only a configuration.
        index: which file holds what, if an index says so.
        config: content of ``config.json``, empty where there is none.
        config_path: where it lies, or would.
    """

    name: str
    weights: tuple[str, ...]
    index: _core.Index | None
    config: Mapping[str, Any]
    config_path: str

    def read_headers(self) -> Headers:
        """Names, types and sizes of all tensors. Raises CheckpointError."""
        return Headers.read(list(self.weights), [printable(path) for path in self.weights], self.index)


def find_files(source: str | os.PathLike[str]) -> CheckpointFiles:
    """The files of a checkpoint.

    Args:
        source: a folder (a snapshot of the hub's cache, or a repository's place in it, too), a safetensors file, an index,
            a ``config.json``, or where nothing has that path, a repository's name on the hub, with ``@revision`` if it is
            not "main", that is in the hub's cache.

    Raises:
        InvalidInputError: no path.
        CheckpointError: nothing there that can be planned from, files that are missing (all of them are named), or names in
            an index that leave the folder. Fields: ``file``, ``reason``.

    Source: which file comes first, ``_get_resolved_checkpoint_files``, transformers 5.23, modeling_utils.py.
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
        return _from_hub_cache(path, error)
    if stat.S_ISDIR(mode):
        return _from_folder(snapshot_in(path) if is_store(path) else path)
    folder = os.path.dirname(path) or os.curdir
    match _content(path):
        case "index":
            return _from_index(path, folder, path)
        case "config":
            return CheckpointFiles(
                name=path, weights=(), index=None, config=read_json_object(path), config_path=path
            )
        case _:
            return _found(path, folder, (path,))


def _from_hub_cache(path: str, missing: Exception) -> CheckpointFiles:
    """What has no path may have a name on the hub: a folder of that name wins, as it does everywhere else."""
    name = hub_name(path)
    if name is None:
        raise fault(path, "no such file or folder") from missing
    snapshot = find_snapshot(name)
    if snapshot is None:
        raise fault(
            path,
            f"no such file or folder, and no model of that name in the hub's cache, {cache_folder()}; "
            f"`{name.download_command}` would put it there, --remote (in Python, remote=True) reads its headers from the hub",
        ) from missing
    return _from_folder(snapshot)


def _from_folder(folder: str) -> CheckpointFiles:
    try:
        names = sorted(os.listdir(folder))
    except OSError as error:
        raise fault(folder, system_reason(error)) from error
    indices = [name for name in names if name.endswith(_INDEX_END)]
    weights = [name for name in names if name.endswith(_WEIGHTS_END)]
    if _SINGLE in weights:
        return _found(folder, folder, _resolved(folder, [_SINGLE], folder))
    if indices:
        index = _SINGLE + ".index.json"
        if index not in indices and len(indices) > 1:
            raise fault(folder, f"holds several indices, name one of them: {listed(indices, most=20)}")
        (path,) = _resolved(folder, [index if index in indices else indices[0]], folder)
        return _from_index(path, folder, folder)
    if weights:
        return _found(folder, folder, _resolved(folder, _all_numbered(folder, weights), folder))
    pickled = [name for name in names if name.endswith(_PICKLED_ENDS)]
    if pickled:
        raise fault(
            folder,
            f"holds only pickled weights ({listed(pickled, most=20)}), which run code when they are read; planner reads "
            "safetensors files only: save the model with save_pretrained, which writes them",
        )
    if _CONFIG not in names:
        raise fault(folder, "holds neither safetensors files nor a config.json")
    return _found(folder, folder, ())


def _from_index(path: str, folder: str, name: str) -> CheckpointFiles:
    index = _core.Index.read(path, printable(path))
    return _found(name, folder, _resolved(folder, index.files(), path), index)


def _found(
    name: str, folder: str, weights: tuple[str, ...], index: _core.Index | None = None
) -> CheckpointFiles:
    path = resolve_inside(folder, _CONFIG, folder)
    config = {} if path is None else read_json_object(path)
    return CheckpointFiles(
        name=name,
        weights=weights,
        index=index,
        config=config,
        config_path=path or os.path.join(folder, _CONFIG),
    )


def _resolved(folder: str, names: Sequence[str], said_by: str) -> tuple[str, ...]:
    paths = {name: resolve_inside(folder, name, said_by) for name in names}
    missing = [name for name, path in paths.items() if path is None]
    if missing:
        raise fault(said_by, f"{len(missing)} of {len(names)} files are missing: {listed(missing, most=20)}")
    return tuple(path for path in paths.values() if path is not None)


def _all_numbered(folder: str, names: Sequence[str]) -> list[str]:
    """Names of files, with all that must be there because others say "3 of 7"."""
    wanted = dict.fromkeys(names)
    for name in names:
        match = _NUMBERED.fullmatch(name)
        if match:
            stem, digits, count = match.groups()
            if int(count) > _MOST_NUMBERED:
                raise fault(os.path.join(folder, name), f"says that it is one of {count} files")
            wanted.update(
                dict.fromkeys(
                    f"{stem}-{number:0{len(digits)}d}-of-{count}{_WEIGHTS_END}"
                    for number in range(1, int(count) + 1)
                )
            )
    return list(wanted)


def _content(path: str) -> str:
    """What a file is, by its first bytes and, for JSON, its name."""
    start = read_regular(path, 64)
    if path.endswith(_INDEX_END):
        return "index"
    if path.endswith(_WEIGHTS_END) or start[8:9] == b"{":
        return "weights"
    if start.startswith((b"PK", b"\x80")) or path.endswith(_PICKLED_ENDS):
        raise fault(
            path, "pickled weights, which run code when they are read; planner reads safetensors files only"
        )
    if start.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"{"):
        return "index" if path.endswith(".index.json") else "config"
    raise fault(path, "neither a safetensors file, an index nor a config.json")

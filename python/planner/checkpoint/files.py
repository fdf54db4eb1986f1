"""The safetensors files of a checkpoint: of a folder, a file, an index, or a configuration alone."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from planner import _core
from planner.checkpoint.inside import resolve_inside
from planner.checkpoint.place import Place, locate
from planner.checkpoint.reading import fault, printable, read_json_object, read_regular
from planner.checkpoint.refused import refusal, refuse_folder
from planner.names import listed

Headers = _core.Headers
"""What the headers of a checkpoint's files say, as columns."""

StoredFile = _core.StoredFile
"""One open file of a checkpoint."""

_STEMS: Final = ("model", "diffusion_pytorch_model")  # transformers' and diffusers' names, in this order
_CONFIG: Final = "config.json"
WEIGHTS_END: Final = ".safetensors"
_INDEX_END: Final = ".safetensors.index.json"
_VARIANT: Final = re.compile(
    rf"(?:{'|'.join(_STEMS)})(?:\.(?P<single>\w+)\.safetensors|\.safetensors\.index\.(?P<index>\w+)\.json)"
)
_PREFERRED_VARIANT: Final = "fp16"
_NUMBERED: Final = re.compile(r"(.*)-([0-9]{1,9})-of-([0-9]{1,9})\.(safetensors|gguf)")
_MOST_NUMBERED: Final = 100_000


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointFiles:
    """What a path holds.

    Args:
        name: the path as it was given, for messages.
        weights: paths of safetensors files; none if there is only a configuration.
        index: which file holds what, if an index says so.
        config: content of ``config.json``, empty where there is none.
        config_path: where it lies, or would.
        variant: which variant these files are, where the folder has no others.
    """

    name: str
    weights: tuple[str, ...]
    index: _core.Index | None
    config: Mapping[str, Any]
    config_path: str
    variant: str | None = None

    def read_headers(self, more: Sequence[str] = ()) -> Headers:
        """Names, types and sizes of all tensors, with those of more files. Raises CheckpointError."""
        paths = [*self.weights, *more]
        return Headers.read(paths, [printable(path) for path in paths], self.index)

    def open_headers(self) -> tuple[list[StoredFile], Headers]:
        """The files, opened, and what their headers say, read from these very handles. Raises CheckpointError.

        Of more files than may well be open at once, the others are mapped and closed; whoever reads them opens them for the time.
        """
        most = most_handles()
        files = []
        for number, path in enumerate(self.weights):
            file = StoredFile.open(path, printable(path))
            if number >= most:
                file.map()
                file.close()
            files.append(file)
        return files, Headers.of_files(files, self.index)


def most_handles() -> int:
    """How many files a checkpoint may keep open: two handles each, one for reading past the page cache, leave others a third."""
    try:
        import resource
    except ImportError:  # this system has no such limit
        return _MOST_NUMBERED
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    if limit == resource.RLIM_INFINITY:
        return _MOST_NUMBERED
    try:
        used = len(os.listdir("/proc/self/fd"))
    except OSError:  # this system does not say
        used = 64
    return max(0, limit - used) // 3


def find_files(source: str | os.PathLike[str]) -> CheckpointFiles:
    """The files of a checkpoint.

    Args:
        source: what :func:`planner.checkpoint.place.locate` takes; a file may be a safetensors file, an index or a
            ``config.json``.

    Raises:
        InvalidInputError: no path.
        CheckpointError: nothing there that can be planned from, files that are missing (all of them are named), or names in
            an index that leave the folder. Fields: ``file``, ``reason``.

    Source: which file comes first, ``_get_resolved_checkpoint_files``, transformers 5.23, modeling_utils.py; diffusers' names
        and variants, ``_add_variant`` and ``from_pretrained``, diffusers 0.42, models/modeling_utils.py.
    """
    return files_at(locate(source))


def files_at(place: Place) -> CheckpointFiles:
    """The files of a checkpoint that lies there. Raises CheckpointError."""
    if place.file is None:
        return _from_folder(place)
    path = place.name
    match _content(place, path):
        case "index":
            return _from_index(path, place.folder, path)
        case "config":
            return CheckpointFiles(
                name=path, weights=(), index=None, config=read_json_object(path), config_path=path
            )
        case _:
            return _found(path, place.folder, (path,))


def _from_folder(place: Place) -> CheckpointFiles:
    folder, names = place.folder, place.names()
    indices = [name for name in names if name.endswith(_INDEX_END)]
    weights = [name for name in names if name.endswith(WEIGHTS_END)]
    for stem in _STEMS:
        if stem + WEIGHTS_END in weights:
            return _found(folder, folder, resolved(folder, [stem + WEIGHTS_END], folder))
        if stem + _INDEX_END in indices:
            indices = [stem + _INDEX_END]
            break
    if indices:
        if len(indices) > 1:
            raise fault(folder, f"holds several indices, name one of them: {listed(indices, most=20)}")
        (path,) = resolved(folder, indices, folder)
        return _from_index(path, folder, folder)
    variants = {
        match["single"] or match["index"]: match for name in names if (match := _VARIANT.fullmatch(name))
    }
    if variants:
        return _from_variant(folder, variants)
    if weights:
        return _found(folder, folder, resolved(folder, all_numbered(folder, weights), folder))
    refuse_folder(place, names)
    return _found(folder, folder, ())


def _from_variant(folder: str, variants: Mapping[str, re.Match[str]]) -> CheckpointFiles:
    """What a folder has under no name but a variant's."""
    if len(variants) > 1 and _PREFERRED_VARIANT not in variants:
        raise fault(folder, f"holds several variants, name a file of one of them: {listed(sorted(variants))}")
    variant = _PREFERRED_VARIANT if _PREFERRED_VARIANT in variants else next(iter(variants))
    match = variants[variant]
    (path,) = resolved(folder, [match.string], folder)
    if match["index"]:
        return _from_index(path, folder, folder, variant)
    return _found(folder, folder, (path,), variant=variant)


def _from_index(path: str, folder: str, name: str, variant: str | None = None) -> CheckpointFiles:
    index = _core.Index.read(path, printable(path))
    return _found(name, folder, resolved(folder, index.files(), path), index, variant)


def _found(
    name: str,
    folder: str,
    weights: tuple[str, ...],
    index: _core.Index | None = None,
    variant: str | None = None,
) -> CheckpointFiles:
    path = resolve_inside(folder, _CONFIG, folder)
    config = {} if path is None else read_json_object(path)
    return CheckpointFiles(
        name=name,
        weights=weights,
        index=index,
        config=config,
        config_path=path or os.path.join(folder, _CONFIG),
        variant=variant,
    )


def resolved(folder: str, names: Sequence[str], said_by: str) -> tuple[str, ...]:
    """Where files of a folder really lie. Raises CheckpointError: some are missing, all of which are named."""
    paths = {name: resolve_inside(folder, name, said_by) for name in names}
    missing = [name for name, path in paths.items() if path is None]
    if missing:
        raise fault(said_by, f"{len(missing)} of {len(names)} files are missing: {listed(missing, most=20)}")
    return tuple(path for path in paths.values() if path is not None)


def all_numbered(folder: str, names: Iterable[str]) -> list[str]:
    """Names of files, with all that must be there because others say "3 of 7"."""
    wanted = dict.fromkeys(names)
    for name in tuple(wanted):
        match = _NUMBERED.fullmatch(name)
        if match:
            stem, digits, count, end = match.groups()
            if int(count) > _MOST_NUMBERED:
                raise fault(os.path.join(folder, name), f"says that it is one of {count} files")
            wanted.update(
                dict.fromkeys(
                    f"{stem}-{number:0{len(digits)}d}-of-{count}.{end}" for number in range(1, int(count) + 1)
                )
            )
    return list(wanted)


def _content(place: Place, path: str) -> str:
    """What a file is, by its first bytes and, for JSON, its name."""
    start = read_regular(path, 64)
    if path.endswith(_INDEX_END) or _is_variant_index(path):
        return "index"
    if path.endswith(WEIGHTS_END) or start[8:9] == b"{":
        return "weights"
    refused = refusal(place, start)
    if refused is not None:
        raise fault(path, refused)
    if start.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"{"):
        return "index" if path.endswith(".index.json") else "config"
    raise fault(path, "neither a safetensors file, a GGUF file, an index nor a config.json")


def _is_variant_index(path: str) -> bool:
    match = _VARIANT.fullmatch(os.path.basename(path))
    return match is not None and match["index"] is not None

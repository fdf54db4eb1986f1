"""The files that a model is loaded from, judged by what they are and opened once."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import torch

from planner.checkpoint.adapter import is_adapter
from planner.checkpoint.files import CheckpointFiles, Headers, files_at
from planner.checkpoint.gguf import is_gguf
from planner.checkpoint.pipeline import is_pipeline
from planner.checkpoint.place import Place, locate
from planner.checkpoint.reading import fault
from planner.errors import CheckpointError
from planner.loading.open_files import OpenFiles, open_headers
from planner.loading.stored import TORCH_DTYPES, StoredTensor

__all__ = ["CheckpointSource", "find_weights", "open_checkpoint", "require_nothing", "stored_tensors"]

# Headers count its elements, and torch pairs of them, which are a byte.
_PAIRS: Final = "F4"
# Of what does not fit, in a message.
_MOST_SAID: Final = 5
_MOST_CHARACTERS: Final = 500


@dataclass(frozen=True, slots=True, eq=False)
class CheckpointSource:
    """An open checkpoint.

    Args:
        files: what the place holds.
        opened: its safetensors files.
        headers: what their headers say.
        rows: the same as tensors.
    """

    files: CheckpointFiles
    opened: OpenFiles
    headers: Headers
    rows: Sequence[StoredTensor]


def open_checkpoint(checkpoint: str | os.PathLike[str]) -> CheckpointSource:
    """Opens the safetensors files of one model.

    Args:
        checkpoint: a folder, a file, an index, or a name in the hub's cache.

    Raises:
        InvalidInputError: no path.
        CheckpointError: nothing there that can be loaded: what it is instead, and what does load it; files that are missing,
            malformed or hostile. Fields: ``file``, ``reason``, ``findings``.
    """
    files = find_weights(checkpoint)
    opened, headers = open_headers(files)
    return CheckpointSource(files, opened, headers, stored_tensors(headers, files.name))


def find_weights(checkpoint: str | os.PathLike[str]) -> CheckpointFiles:
    """The same, without opening its files. Raises: as :func:`open_checkpoint`."""
    place = locate(checkpoint)
    _refuse_others(place)
    files = files_at(place)
    if not files.weights:
        raise fault(files.name, "holds no safetensors files, so there is nothing to load")
    return files


def stored_tensors(headers: Headers, shown: str) -> list[StoredTensor]:
    """Rows of headers with torch's dtypes. Raises CheckpointError for a type that torch does not have."""
    rows = []
    for name, file, begin, end, kind, shape in headers.ranges():
        dtype = TORCH_DTYPES.get(kind)
        if dtype is None:
            raise fault(shown, f"holds '{name}' as {kind}, which torch {torch.__version__} has no dtype for")
        if kind == _PAIRS:
            if not shape or shape[-1] % 2:
                raise fault(
                    shown, f"holds '{name}' as {kind} of {list(shape)}, which cannot be cut into pairs"
                )
            shape = (*shape[:-1], shape[-1] // 2)
        rows.append(StoredTensor(name, file, begin, end, dtype, shape))
    return rows


def _refuse_others(place: Place) -> None:
    names = place.names()
    if is_adapter(place, names):
        what = "holds an adapter, not a model: load its base, and put the adapter on it with peft's PeftModel.from_pretrained"
    elif is_pipeline(place, names):
        what = "holds a pipeline of several models: load each from its folder inside"
    elif is_gguf(place, names):
        what = "holds GGUF files, whose packed tensors PyTorch has no modules for: llama.cpp runs them, and from_pretrained(…, gguf_file=…) unpacks them"
    else:
        return
    raise fault(place.name, what)


def require_nothing(findings: Sequence[str], name: str, advice: str = "") -> None:
    """Raises one error for everything that does not fit.

    Args:
        findings: what does not fit.
        name: of the checkpoint.
        advice: what would make it fit.

    Raises:
        CheckpointError: with all findings, of which the message has the beginnings. Fields: ``file``, ``reason``, ``findings``.
    """
    if not findings:
        return
    said = [_beginning(finding) for finding in findings[:_MOST_SAID]]
    if len(findings) > _MOST_SAID:
        said.append(f"and {len(findings) - _MOST_SAID} more")
    raise CheckpointError(
        f"{name} cannot be loaded into this model: {'; '.join(said)}" + (f". {advice}" if advice else ""),
        file=name,
        reason=said[0],
        findings=tuple(findings),
    )


def _beginning(finding: str) -> str:
    """A finding, without the end of a long list of names."""
    if len(finding) <= _MOST_CHARACTERS:
        return finding
    said = finding[: finding.rfind(", ", 0, _MOST_CHARACTERS)]
    return f"{said} and {finding.count(', ', len(said))} more"

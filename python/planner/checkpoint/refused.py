"""What is not planned from, by its name, and the command that makes something of it that is."""

from __future__ import annotations

import os
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from planner.checkpoint.hub_cache import repository_of
from planner.checkpoint.known import class_name
from planner.checkpoint.place import Place
from planner.checkpoint.reading import fault, read_json_object
from planner.names import counted, listed
from planner.units import format_bytes

_PICKLED_INDEX_END: Final = ".bin.index.json"
PICKLED_ENDS: Final = (".bin", ".pt", ".pth", ".ckpt", ".pkl", _PICKLED_INDEX_END)
_PICKLED_STARTS: Final = (b"PK", b"\x80")
_DISTRIBUTED_END: Final = ".distcp"
_DISTRIBUTED_METADATA: Final = ".metadata"
_ADAPTER: Final = "adapter_model.bin"
_ADAPTER_CONFIG: Final = "adapter_config.json"
_CONFIG: Final = "config.json"
_PLANNED_ENDS: Final = (".safetensors", ".gguf")
_MOST_LOOKED_INTO: Final = 200


def refuse_folder(place: Place, names: Sequence[str]) -> None:
    """Raises CheckpointError for a folder of another format, or of none; not for a configuration alone."""
    if _DISTRIBUTED_METADATA in names or any(name.endswith(_DISTRIBUTED_END) for name in names):
        raise fault(place.folder, _distributed(place.folder, names))
    pickled = [name for name in names if name.endswith(PICKLED_ENDS)]
    if pickled:
        what = f"holds only pickled weights ({listed(pickled, most=20)})"
        raise fault(place.folder, f"{what}, {_converted(place.folder, pickled)}")
    if _CONFIG not in names:
        raise fault(place.folder, _without_model(place, names))


def _without_model(place: Place, names: Sequence[str]) -> str:
    """What is missing in a folder without any model, or in which of the folders inside there is one."""
    if _ADAPTER_CONFIG in names:
        return f"holds {_ADAPTER_CONFIG} and no weights of the adapter: adapter_model.safetensors is missing"
    said = "holds neither safetensors files, nor GGUF files, nor a config.json"
    folders = [os.path.join(place.folder, name) for name in names[:_MOST_LOOKED_INTO]]
    inner = [folder for folder in folders if os.path.isdir(folder) and _has_model(folder)]
    return f"{said}; name a folder inside, which does: {listed(inner)}" if inner else said


def _has_model(folder: str) -> bool:
    try:
        names = os.listdir(folder)
    except OSError:
        return False  # what cannot be listed is no advice
    return any(name == _CONFIG or name.endswith(_PLANNED_ENDS) for name in names)


def refusal(place: Place, start: bytes) -> str | None:
    """Why a file is not planned from, if it is of a format that has a name; by its own name and first bytes."""
    file = place.file or ""
    if file.endswith(_DISTRIBUTED_END) or file == _DISTRIBUTED_METADATA:
        return f"belongs to the folder around it, {_distributed(place.folder, place.names())}"
    if file.endswith(_PICKLED_INDEX_END):
        pickled = [name for name in place.names() if name.endswith(PICKLED_ENDS)]
        return f"an index of pickled weights, {_converted(place.folder, pickled)}"
    if start.startswith(_PICKLED_STARTS) or file.endswith(PICKLED_ENDS):
        return f"pickled weights, {_converted(place.folder, [file])}"
    return None


def _distributed(folder: str, names: Sequence[str]) -> str:
    """A folder that torch.distributed.checkpoint has written; what it says of sizes is pickled, too."""
    files = [os.path.join(folder, name) for name in names if name.endswith(_DISTRIBUTED_END)]
    size = format_bytes(sum(os.path.getsize(file) for file in files if os.path.isfile(file)))
    whole = beside(folder, ".pt")
    command = (
        f"python -m torch.distributed.checkpoint.format_utils dcp_to_torch {_quoted(folder, whole)} && "
        f"{_tensors_command(whole)}"
    )
    return (
        f"a distributed checkpoint of torch: {counted(len(files), 'file')}, {size}; its metadata runs "
        f"code when it is read. This makes one safetensors file of it: {command}"
    )


def _converted(folder: str, files: Sequence[str]) -> str:
    """What pickled weights are, and what converts them: their class if a configuration names it, or torch alone."""
    said = "which run code when they are read; planner reads safetensors files only"
    weights = [file for file in files if not file.endswith(_PICKLED_INDEX_END)]
    if not weights:
        return f"{said}; the files that it lists are missing here"
    model = _class_in(folder) if _ADAPTER not in files else None
    if model is not None:
        target = beside(folder, "-safetensors")
        code = f"import sys; from transformers import {model} as M; M.from_pretrained(sys.argv[1]).save_pretrained(sys.argv[2])"
        return f"{said}. This writes them to {target}: {python_command(code, folder, target)}"
    each = "this writes one" if len(weights) == 1 else "this writes one of the first, and so of the others"
    return f"{said}; {each}: {_tensors_command(os.path.join(folder, weights[0]))}"


def _class_in(folder: str) -> str | None:
    path = os.path.join(folder, _CONFIG)
    name = class_name(read_json_object(path)) if os.path.isfile(path) else None
    return name if name is not None and name.isidentifier() else None


def _tensors_command(path: str) -> str:
    """What writes the tensors of a file with nothing but torch; a training's file has them below a name, beside other things."""
    code = (
        "import sys, torch; from safetensors.torch import save_file; "
        "found = torch.load(sys.argv[1], map_location='cpu', weights_only=True); "
        "parts = [{name: each for name, each in part.items() if torch.is_tensor(each)} "
        "for part in (found, *found.values()) if isinstance(part, dict)]; "
        "save_file({name: each.contiguous().clone() for name, each in max(parts, key=len).items()}, sys.argv[2])"
    )
    target = os.path.splitext(path)[0] + ".safetensors"
    return python_command(code, path, os.path.basename(target) if _is_of_cache(path) else target)


def beside(folder: str, end: str) -> str:
    """Where what is made of a folder is written: beside it, and nothing into the hub's cache."""
    repository = repository_of(Path(os.path.realpath(folder)))
    return os.path.basename(repository) + end if repository else os.path.normpath(folder) + end


def _is_of_cache(path: str) -> bool:
    return bool(repository_of(Path(os.path.realpath(os.path.dirname(path)))))


def python_command(code: str, *paths: str) -> str:
    """What runs code with paths as its arguments, as it is typed; the code has no double quotes."""
    return f'python -c "{code}" {_quoted(*paths)}'


def _quoted(*words: str) -> str:
    return " ".join(map(shlex.quote, words))

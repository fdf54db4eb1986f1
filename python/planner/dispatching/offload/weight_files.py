"""Weights in files: one ``<name>.dat`` each and an ``index.json``, as accelerate writes and reads them."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from planner.arguments import name_list, path_text, require_weights
from planner.dispatching.bases import weights_base
from planner.dispatching.tensors.resting import RestingPlace
from planner.errors import InvalidInputError, OffloadError
from planner.names import is_text
from planner.spelling import shown

__all__ = [
    "OffloadedWeightsLoader",
    "PrefixedDataset",
    "extract_submodules_state_dict",
    "load_offloaded_weight",
    "offload_state_dict",
    "offload_weight",
    "save_offload_index",
]

INDEX = "index.json"

if TYPE_CHECKING:

    class _PrefixedBase(Mapping[str, Any]): ...

    class _LoaderBase(Mapping[str, Any]): ...

else:
    _PrefixedBase = weights_base("PrefixedDataset")
    _LoaderBase = weights_base("OffloadedWeightsLoader")


def offload_weight(
    weight: torch.Tensor,
    weight_name: str,
    offload_folder: str | os.PathLike[str],
    index: dict[str, Any] | None = None,
) -> dict[str, Any] | None:
    """Writes a tensor to ``<folder>/<name>.dat``.

    Args:
        weight: the tensor.
        weight_name: its name; a plain file name.
        offload_folder: an existing folder.
        index: gets a row with dtype and shape.

    Returns:
        The index.

    Raises:
        OffloadError: a name that leads out of the folder, or a folder that cannot be written to. Fields: ``name``.
        InvalidInputError: no tensor, path or index.

    Source: accelerate 1.15, utils/offload.py: the same bytes and rows, also for dtypes that NumPy does not know.
    """
    if not isinstance(weight, torch.Tensor):
        raise InvalidInputError(f"expected a tensor to offload, got {shown(weight)}")
    if not isinstance(index, dict | None):
        raise InvalidInputError(f"index must be a dict of rows by name; got {shown(index)}")
    path = _data_file(offload_folder, weight_name)
    bytes_of = _flat_bytes(weight.detach().cpu())
    try:
        # A new file in its place: a reader that has the old one mapped keeps it, and a link is not followed.
        path.unlink(missing_ok=True)
        path.write_bytes(bytes_of)
    except OSError as error:
        path.unlink(missing_ok=True)
        raise OffloadError(f"cannot offload '{weight_name}': {error}", name=weight_name) from error
    if index is not None:
        index[weight_name] = {"dtype": str(weight.dtype).removeprefix("torch."), "shape": list(weight.shape)}
    return index


def _flat_bytes(tensor: torch.Tensor) -> bytes:
    # As bytes, because NumPy has no bfloat16 and no float8.
    flat = tensor.contiguous().flatten().view(torch.uint8)
    return bytes(flat.numpy().tobytes()) if flat.numel() else b""


def _data_file(folder: str | os.PathLike[str], name: str) -> Path:
    if not is_text(name) or name in ("", ".", "..") or any(mark in name for mark in ("/", "\\", "\0")):
        raise OffloadError(
            f"cannot offload {shown(name)}: the name of a weight must be a plain file name, so that its file lies in the folder",
            name=name,
        )
    return Path(path_text(folder, "the folder for weights")) / f"{name}.dat"


def load_offloaded_weight(
    weight_file: str | os.PathLike[str], weight_info: Mapping[str, Any]
) -> torch.Tensor:
    """Reads a tensor that :func:`offload_weight` wrote.

    Args:
        weight_file: the file.
        weight_info: its row of the index.

    Returns:
        The tensor on the CPU, in memory of its own.

    Raises:
        OffloadError: the file is missing, or its length does not fit dtype and shape. Fields: ``name``.
        InvalidInputError: no path, or no row.

    Source: accelerate 1.15, utils/offload.py.
    """
    path = Path(path_text(weight_file, "the file of a weight"))
    if not (isinstance(weight_info, Mapping) and {"shape", "dtype"} <= weight_info.keys()):
        raise InvalidInputError(f"the row of {path.name} must have dtype and shape; got {shown(weight_info)}")
    shape, dtype = weight_info["shape"], getattr(torch, str(weight_info["dtype"]), None)
    if not isinstance(dtype, torch.dtype):
        raise OffloadError(
            f"{path.name}: the index says dtype {weight_info['dtype']!r}, which torch does not have",
            name=path.stem,
        )
    try:
        empty = torch.empty(tuple(shape), dtype=dtype)
    except (TypeError, RuntimeError, ValueError) as error:
        raise OffloadError(
            f"{path.name}: the index says shape {shown(shape)}, which no tensor has", name=path.stem
        ) from error
    try:
        found = path.read_bytes()
    except OSError as error:
        raise OffloadError(f"cannot read '{path.stem}': {error}", name=path.stem) from error
    if len(found) != empty.nbytes:
        raise OffloadError(
            f"{path.name} has {len(found)} bytes, but dtype {weight_info['dtype']} and shape {list(shape)} need {empty.nbytes}; "
            "write it again",
            name=path.stem,
        )
    if not found:
        return empty
    return torch.frombuffer(bytearray(found), dtype=dtype).reshape(shape)


def save_offload_index(index: Mapping[str, Any] | None, offload_folder: str | os.PathLike[str]) -> None:
    """Adds rows to the ``index.json`` of a folder; nothing for no rows.

    Raises:
        InvalidInputError: there is a file of that name that is no index; or no folder, or no rows.

    Guarantee: the file is replaced as a whole; a reader sees the old or the new one.

    Source: accelerate 1.15, utils/offload.py.
    """
    if not isinstance(index, Mapping | None):
        raise InvalidInputError(f"index must map names to rows; got {shown(index)}")
    if not index:
        return
    path = Path(path_text(offload_folder, "the folder for weights")) / INDEX
    merged = {**(read_index(offload_folder) if path.is_file() else {}), **index}
    # Renaming is atomic, so no reader sees half of an index.
    half = path.with_name(f".{INDEX}.{os.getpid()}")
    try:
        half.write_text(json.dumps(merged, indent=2), encoding="utf-8")
        half.replace(path)
    except (OSError, TypeError, ValueError) as error:
        raise InvalidInputError(f"cannot write {path}: {error}") from error


def read_index(folder: str | os.PathLike[str]) -> dict[str, Any]:
    """The rows of a folder's index.

    Raises:
        InvalidInputError: the file is missing or no index.
    """
    path = Path(path_text(folder, "the folder for weights")) / INDEX
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise InvalidInputError(f"{path} cannot be read as an index of offloaded weights: {error}") from error
    if not isinstance(rows, dict):
        raise InvalidInputError(f"{path} is no index of offloaded weights: it holds a {type(rows).__name__}")
    return rows


def offload_state_dict(save_dir: str | os.PathLike[str], state_dict: Mapping[str, torch.Tensor]) -> None:
    """Writes tensors and their index to a folder, which is made if it is not there.

    Raises:
        OffloadError: as :func:`offload_weight`. Fields: ``name``.
        InvalidInputError: no mapping to tensors, or a folder that cannot be made.

    Source: accelerate 1.15, utils/offload.py.
    """
    folder = path_text(save_dir, "the folder for weights")
    if not isinstance(state_dict, Mapping):
        raise InvalidInputError(f"state_dict must map names to weights; got {shown(state_dict)}")
    try:
        os.makedirs(folder, exist_ok=True)
    except OSError as error:
        raise InvalidInputError(f"the folder for weights cannot be made: {error}") from error
    index: dict[str, Any] = {}
    for name, tensor in state_dict.items():
        offload_weight(tensor, name, folder, index)
    save_offload_index(index, folder)


class PrefixedDataset(_PrefixedBase):
    """A mapping seen from below a prefix.

    Args:
        dataset: the mapping.
        prefix: what is put before a key.

    Source: accelerate 1.15, utils/offload.py.
    """

    def __init__(self, dataset: Mapping[str, Any], prefix: str) -> None:
        require_weights(dataset, "dataset")
        self.dataset = dataset
        self.prefix = prefix

    def __getitem__(self, key: str) -> Any:
        return self.dataset[f"{self.prefix}{key}"]

    def __contains__(self, key: object) -> bool:
        # Mapping's own would read the tensor.
        return f"{self.prefix}{key}" in self.dataset

    def is_in_file(self, key: str) -> bool:
        """Whether a value is read from a file when it is asked for."""
        return RestingPlace(self.dataset, f"{self.prefix}{key}").is_in_file

    def __iter__(self) -> Iterator[str]:
        return iter([key for key in self.dataset if key.startswith(self.prefix)])

    def __len__(self) -> int:
        return len(self.dataset)


class OffloadedWeightsLoader(_LoaderBase):
    """Weights from memory, and from a folder or from safetensors files; those in memory first.

    Args:
        state_dict: tensors in memory.
        save_folder: a folder that :func:`offload_state_dict` wrote.
        index: rows with dtype and shape, or with a safetensors file; by default that of the folder.
        device: where tensors from safetensors files are put.

    Raises:
        InvalidInputError: none of the first three is given, one is no mapping, or the index cannot be read.

    Source: accelerate 1.15, utils/offload.py.
    """

    def __init__(
        self,
        state_dict: Mapping[str, Any] | None = None,
        save_folder: str | os.PathLike[str] | None = None,
        index: Mapping[str, Any] | None = None,
        device: Any = None,
    ) -> None:
        if state_dict is None and save_folder is None and index is None:
            raise InvalidInputError(
                "Need either a `state_dict`, a `save_folder` or an `index` containing offloaded weights."
            )
        for name, rows in {"state_dict": state_dict, "index": index}.items():
            if not isinstance(rows, Mapping | None):
                raise InvalidInputError(f"{name} must map names to weights; got {shown(rows)}")
        self.state_dict: Mapping[str, Any] = {} if state_dict is None else state_dict
        # A relative folder must be the same one after the process has changed its own.
        if save_folder is not None:
            save_folder = os.path.abspath(path_text(save_folder, "the folder for weights"))
        self.save_folder = save_folder
        if index is None:
            index = {} if save_folder is None else read_index(save_folder)
        self.index = index
        self.all_keys = list(dict.fromkeys((*self.state_dict, *self.index)))
        self.device = device

    def __getitem__(self, key: str) -> Any:
        if key in self.state_dict:
            return self.state_dict[key]
        row = self.index[key]
        if row.get("safetensors_file") is not None:
            return self._from_safetensors(key, row)
        assert self.save_folder is not None
        return load_offloaded_weight(_data_file(self.save_folder, key), row)

    def __contains__(self, key: object) -> bool:
        return key in self.state_dict or key in self.index

    def is_in_file(self, key: str) -> bool:
        """Whether a value is read from a file when it is asked for."""
        if key in self.state_dict:
            return RestingPlace(self.state_dict, key).is_in_file
        return key in self.index

    def _from_safetensors(self, key: str, row: Mapping[str, Any]) -> Any:
        from safetensors import safe_open

        with safe_open(row["safetensors_file"], framework="pt", device="cpu") as file:
            tensor = file.get_tensor(row.get("weight_name", key))
        if "dtype" in row:
            tensor = tensor.to(getattr(torch, row["dtype"]))
        return tensor.to("cpu" if self.device is None else self.device)

    def __iter__(self) -> Iterator[str]:
        return iter(self.all_keys)

    def __len__(self) -> int:
        return len(self.all_keys)


def extract_submodules_state_dict(
    state_dict: Mapping[str, Any], submodule_names: Iterable[str]
) -> dict[str, Any]:
    """The entries of a state dict that belong to some modules; "" is the whole model.

    Raises:
        InvalidInputError: no mapping, or no names.

    Source: accelerate 1.15, utils/offload.py, which leaves out everything for "".

    Example:
        >>> extract_submodules_state_dict({"a.1.w": 1, "a.10.w": 2}, ["a.1"])
        {'a.1.w': 1}
    """
    if not isinstance(state_dict, Mapping):
        raise InvalidInputError(f"state_dict must map names to weights; got {shown(state_dict)}")
    if not all(map(is_text, state_dict)):
        raise InvalidInputError(f"state_dict has keys that are no names: {shown(list(state_dict))}")
    result: dict[str, Any] = {}
    for module in name_list(submodule_names, "submodule_names"):
        result.update(
            {
                key: value
                for key, value in state_dict.items()
                if not module or key == module or key.startswith(module + ".")
            }
        )
    return result

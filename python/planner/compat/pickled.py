"""Pickled checkpoints, read as a header is: where each tensor lies in the file, and nothing of what is in it.

The pickle runs in torch's own ``weights_only`` reader, and of what that allows only what makes tensors from the file's bytes: there are
functions among it that make as much as a few bytes say. Storages are on the meta device, so no tensor takes memory here.
"""

from __future__ import annotations

import io
import struct
from collections.abc import Callable, Mapping
from typing import Any, Final, NamedTuple

import torch
from torch._weights_only_unpickler import Unpickler, get_globals_in_pkl

from planner.checkpoint.reading import fault
from planner.compat.zip_entries import Bytes, Entry, data_begin, find_entries
from planner.errors import CheckpointError
from planner.names import is_text, listed
from planner.spelling import shown as spelled

__all__ = ["Pickled", "PickledTensor", "read_pickled"]

_MAGIC: Final = 0x1950A86A20F9469CFC6C
_VERSION: Final = 1001
_MOST_PICKLE_BYTES: Final = 100_000_000
_ENTRY: Final = "/data.pkl"
_TENSOR_MAKERS: Final = frozenset(
    {
        "collections.OrderedDict",
        "torch.Size",
        "torch._utils._rebuild_parameter",
        "torch._utils._rebuild_tensor_v2",
        "torch._utils._rebuild_tensor_v3",
        "torch.storage.UntypedStorage",
    }
)


class PickledTensor(NamedTuple):
    """One tensor as it lies in a pickled checkpoint.

    Args:
        name: its name.
        begin: offset of its first byte in the file.
        end: offset behind its last one.
        dtype: its elements.
        shape: its shape.
        strides: in elements; None where they are those of a tensor that lies in order, without gaps.
    """

    name: str
    begin: int
    end: int
    dtype: torch.dtype
    shape: tuple[int, ...]
    strides: tuple[int, ...] | None


class Pickled(NamedTuple):
    """What a pickled checkpoint holds.

    Args:
        tensors: its tensors, in their order.
        others: names of what else lies beside them.
    """

    tensors: tuple[PickledTensor, ...]
    others: tuple[str, ...]


class _Storage(NamedTuple):
    """What a pickle says of one storage, and its stand-in without bytes."""

    begin: int
    size_bytes: int
    typed: Any


def read_pickled(read: Bytes, size_bytes: int, shown: str) -> Pickled:
    """Where the tensors of a pickled checkpoint lie.

    Args:
        read: reads the file.
        size_bytes: its size.
        shown: its name, for messages.

    Raises:
        CheckpointError: no state dict that ``torch.save`` has written; the pickle asks for more than tensors of the file; something is
            compressed, or larger than the file says. Fields: ``file``, ``reason``.

    Guarantee: nothing of the pickle's choice is imported or called, and no tensor is read or made.

    Cost: as ``torch.load``'s for the names, independent of the tensors' bytes.
    """
    start = read(0, min(size_bytes, 4))
    state, storages = (_from_zip if start[:2] == b"PK" else _from_stream)(read, size_bytes, shown)
    if not isinstance(state, Mapping):
        raise fault(shown, f"holds {spelled(state)}, not a dict of tensors by name")
    tensors: list[PickledTensor] = []
    others: list[str] = []
    for name, value in state.items():
        if is_text(name) and type(value) in (torch.Tensor, torch.nn.Parameter):
            tensors.append(_located(name, value, storages, shown))
        else:
            others.append(name if is_text(name) else spelled(name))
    return Pickled(tuple(tensors), tuple(others))


def _from_zip(read: Bytes, size_bytes: int, shown: str) -> tuple[Any, dict[int, _Storage]]:
    entries = find_entries(read, size_bytes, shown)
    pickles = [name for name in entries if name.endswith(_ENTRY) and name.count("/") == 1]
    if len(pickles) != 1:
        raise fault(shown, "a zip file without the one 'data.pkl' that torch.save writes")
    root = pickles[0].removesuffix(_ENTRY)
    if f"{root}/constants.pkl" in entries:
        raise fault(shown, "a TorchScript archive, which holds code and no state dict")

    def content(entry: Entry) -> bytes:
        if entry.size_bytes > _MOST_PICKLE_BYTES:
            raise fault(
                shown, f"'{entry.name}' has {entry.size_bytes} bytes; at most {_MOST_PICKLE_BYTES} are read"
            )
        begin = data_begin(read, entry, shown)
        return read(begin, begin + entry.size_bytes)

    order = entries.get(f"{root}/byteorder")
    if order is not None and content(order) != b"little":
        raise fault(shown, "written on a machine with another order of bytes")
    storages = _Storages(shown)

    def locate(key: str, wanted_bytes: int) -> int:
        entry = entries.get(f"{root}/data/{key}")
        if entry is None or wanted_bytes > entry.size_bytes:
            has = "no bytes" if entry is None else f"{entry.size_bytes} bytes"
            raise fault(
                shown,
                f"asks for {wanted_bytes} bytes of storage {spelled(key)}, for which the file has {has}",
            )
        return data_begin(read, entry, shown)

    state = _unpickled(
        io.BytesIO(content(entries[pickles[0]])), shown, lambda said: storages.add(said, locate)
    )
    return state, storages.found


def _from_stream(read: Bytes, size_bytes: int, shown: str) -> tuple[Any, dict[int, _Storage]]:
    """The format of torch before 1.6: some pickles, and the storages behind them."""
    stream = io.BufferedReader(_Head(read, size_bytes))

    def plain() -> Any:
        return _unpickled(stream, shown, None)

    if plain() != _MAGIC or plain() != _VERSION:
        raise fault(shown, "a pickle that torch.save has not written")
    system = plain()
    if isinstance(system, dict) and system.get("little_endian", True) is not True:
        raise fault(shown, "written on a machine with another order of bytes")
    storages = _Storages(shown)
    state = _unpickled(stream, shown, lambda said: storages.add(said, None))
    keys = plain()
    if not isinstance(keys, list):
        raise fault(shown, f"lists its storages as {spelled(keys)}")
    at = stream.tell()
    begins: dict[Any, int] = {}
    for key in keys:
        typed = storages.by_key.get(key) if is_text(key) else None
        if typed is None:
            raise fault(shown, f"has a storage {spelled(key)} that no tensor asks for")
        count = struct.unpack("<q", read(at, at + 8))[0] if at + 8 <= size_bytes else 0
        stored_bytes = count * typed.typed.dtype.itemsize
        if not typed.size_bytes <= stored_bytes <= size_bytes - at - 8:
            raise fault(
                shown,
                f"asks for {typed.size_bytes} bytes of storage {spelled(key)}, for which the file has {stored_bytes}",
            )
        begins[key] = at + 8
        at += 8 + stored_bytes
    if begins.keys() != storages.by_key.keys():
        raise fault(
            shown, f"has no bytes for the storages {listed(sorted(storages.by_key.keys() - begins.keys()))}"
        )
    return state, {
        storage.typed._untyped_storage._cdata: storage._replace(begin=begins[key])
        for key, storage in storages.by_key.items()
    }


class _Head(io.RawIOBase):
    """The first bytes of a file as a stream."""

    def __init__(self, read: Bytes, size_bytes: int) -> None:
        self._read, self._at = read, 0
        self._end = min(size_bytes, _MOST_PICKLE_BYTES)

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        if whence != io.SEEK_SET:
            offset += self._at if whence == io.SEEK_CUR else self._end
        self._at = offset
        return offset

    def readinto(self, buffer: Any) -> int:
        end = min(self._at + len(buffer), self._end)
        content = self._read(self._at, end) if end > self._at else b""
        buffer[: len(content)] = content
        self._at += len(content)
        return len(content)


class _Storages:
    """The storages that a pickle asks for, by its keys."""

    def __init__(self, shown: str) -> None:
        self.shown = shown
        self.by_key: dict[str, _Storage] = {}

    @property
    def found(self) -> dict[int, _Storage]:
        """By the address of the stand-in."""
        return {storage.typed._untyped_storage._cdata: storage for storage in self.by_key.values()}

    def add(self, said: Any, locate: Callable[[str, int], int] | None) -> Any:
        """The stand-in for the storage that a pickle asks for."""
        kind, key, _, count, *view = (
            said[1:] if isinstance(said, tuple) and len(said) in (5, 6) else (None,) * 4
        )
        dtype = torch.uint8 if kind is torch.UntypedStorage else getattr(kind, "dtype", None)
        if (
            not isinstance(dtype, torch.dtype)
            or not is_text(key)
            or type(count) is not int
            or count < 0
            or any(view)
        ):
            raise fault(self.shown, f"asks for a storage as torch.save does not: {spelled(said)}")
        size_bytes = count * dtype.itemsize
        known = self.by_key.get(key)
        if known is not None:
            if (known.size_bytes, known.typed.dtype) != (size_bytes, dtype):
                raise fault(self.shown, f"asks for storage {spelled(key)} in two sizes or dtypes")
            return known.typed
        begin = 0 if locate is None else locate(key, size_bytes)
        untyped: Any = torch.UntypedStorage
        typed_storage: Any = torch.storage.TypedStorage
        typed = typed_storage(wrap_storage=untyped(size_bytes, device="meta"), dtype=dtype, _internal=True)
        self.by_key[key] = _Storage(begin, size_bytes, typed)
        return typed


def _unpickled(stream: Any, shown: str, storage: Callable[[Any], Any] | None) -> Any:
    """The next pickle of a stream. Raises CheckpointError."""
    try:
        begin = stream.tell()
        asked = [name for name in get_globals_in_pkl(stream) if not _makes_tensors(name)]
        if asked:
            raise fault(
                shown,
                f"its pickle asks for {listed(sorted(asked), most=5)}, which is more than tensors of a state dict need; where you trust "
                "the file, torch.load it and write its tensors with safetensors.torch.save_file",
            )
        stream.seek(begin)
        unpickler: Any = Unpickler(stream, encoding="utf-8")
        if storage is not None:
            unpickler.persistent_load = storage
        return unpickler.load()
    except CheckpointError:
        raise
    except Exception as error:
        words = str(error).partition("\n")[0] or type(error).__name__
        raise fault(shown, f"its pickle cannot be read: {words[:200]}") from error


def _makes_tensors(name: str) -> bool:
    """Whether something that a pickle asks for makes tensors of the file's bytes, or is a dtype or a storage's class."""
    if name in _TENSOR_MAKERS:
        return True
    module, _, last = name.rpartition(".")
    is_dtype = isinstance(getattr(torch, last, None), torch.dtype)
    return module == "torch" and (is_dtype or last.endswith("Storage"))


def _located(name: str, tensor: torch.Tensor, storages: Mapping[int, _Storage], shown: str) -> PickledTensor:
    """Where a tensor lies. Raises CheckpointError: it has no bytes, or too few."""
    storage = storages.get(tensor.untyped_storage()._cdata) if tensor.layout is torch.strided else None
    if storage is None or tensor.is_conj() or tensor.is_neg():
        raise fault(shown, f"'{name}' is not made of bytes of the file")
    shape, strides, size = tuple(tensor.shape), tensor.stride(), tensor.dtype.itemsize
    before = int(tensor.storage_offset())
    begin = storage.begin + before * size
    if tensor.is_contiguous():
        extent, gaps = tensor.numel(), None
    else:
        extent, gaps = (
            sum((length - 1) * stride for length, stride in zip(shape, strides, strict=True)) + 1,
            strides,
        )
    behind = (before + max(extent, tensor.numel())) * size
    if tensor.numel() and behind > storage.size_bytes:
        raise fault(
            shown,
            f"'{name}' is {list(shape)} of {tensor.dtype} and ends at byte {behind} of a storage that has {storage.size_bytes}",
        )
    return PickledTensor(name, begin, begin + extent * size, tensor.dtype, shape, gaps)

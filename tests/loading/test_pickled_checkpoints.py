"""Pickled checkpoints are read as headers are: nothing in them runs, nothing is expanded, nothing is larger than the file."""

from __future__ import annotations

import io
import os
import pickle
import random
import struct
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch

from planner.compat.pickled import Pickled, PickledTensor, read_pickled
from planner.errors import CheckpointError

FORMATS = {"zip": {}, "legacy": {"_use_new_zipfile_serialization": False}}


def saved(value: Any, kind: str = "zip") -> bytes:
    file = io.BytesIO()
    torch.save(value, file, **FORMATS[kind])
    return file.getvalue()


def found_in(content: bytes) -> Pickled:
    def read(begin: int, end: int) -> bytes:
        assert 0 <= begin <= end <= len(content)
        return content[begin:end]

    return read_pickled(read, len(content), "weights.bin")


def reason_of(content: bytes) -> str:
    with pytest.raises(CheckpointError) as caught:
        found_in(content)
    assert caught.value.file == "weights.bin"
    return caught.value.reason


def tensor_of(content: bytes, row: PickledTensor) -> torch.Tensor:
    flat = torch.frombuffer(bytearray(content[row.begin : row.end] or b"\0" * 16), dtype=row.dtype)
    if row.begin == row.end:
        return flat[:0].reshape(row.shape)
    return flat.view(row.shape) if row.strides is None else flat.as_strided(row.shape, row.strides)


def zipped(entries: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", compression) as archive:
        for name, content in entries.items():
            archive.writestr(name, content)
    return file.getvalue()


def entries_of(content: bytes) -> dict[str, bytes]:
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def pickle_of(entries: dict[str, bytes]) -> str:
    return next(name for name in entries if name.endswith("/data.pkl"))


class Asks:
    """Pickles as a call of a function."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> Any:
        return self.call


@pytest.mark.parametrize("kind", FORMATS)
def test_every_tensor_is_where_torch_has_written_it(kind: str) -> None:
    whole = torch.randn(3, 4)
    state = {
        "whole": whole,
        "tied": whole,
        "rows": whole[1:],
        "turned": torch.randn(4, 5).t(),
        "columns": torch.randn(4, 6)[:, 1:4],
        "empty": torch.empty(0, 3),
        "one": torch.tensor(3.0),
        "half": torch.randn(3).bfloat16(),
        "quarter": torch.randn(4).to(torch.float8_e4m3fn),
        "numbers": torch.arange(5),
        "truth": torch.tensor([True, False]),
        "complex": torch.randn(2, dtype=torch.complex64),
        "parameter": torch.nn.Parameter(torch.randn(2)),
    }
    content = saved({**state, "epoch": 3, "inner": {"a": whole}}, kind)
    found = found_in(content)
    assert found.others == ("epoch", "inner")
    assert [row.name for row in found.tensors] == list(state)
    for row in found.tensors:
        expected = state[row.name].detach()
        assert (row.shape, row.dtype) == (tuple(expected.shape), expected.dtype)
        assert tensor_of(content, row).tolist() == expected.tolist(), row


def test_a_state_dict_of_a_module_is_read() -> None:
    content = saved(torch.nn.Linear(2, 3).state_dict())
    assert [(row.name, row.shape) for row in found_in(content).tensors] == [
        ("weight", (3, 2)),
        ("bias", (3,)),
    ]


@pytest.mark.parametrize("kind", FORMATS)
def test_nothing_that_a_pickle_names_is_called(kind: str, tmp_path: Path) -> None:
    trace = tmp_path / "ran"
    reason = reason_of(saved({"a": Asks(os.mkdir, str(trace))}, kind))
    assert "asks for posix.mkdir" in reason
    assert not trace.exists()


@pytest.mark.parametrize(
    "bomb",
    [
        Asks(bytearray, 10**11),  # torch's weights_only allows it
        Asks(torch.FloatTensor, 10**11),
        Asks(torch._utils._rebuild_meta_tensor_no_storage, torch.float32, (10**6, 10**6), (1, 1), False),
    ],
    ids=["bytearray", "tensor", "meta"],
)
def test_nothing_is_made_that_the_file_has_no_bytes_for(bomb: Asks) -> None:
    assert "asks for" in reason_of(saved({"a": bomb}))


def test_a_compressed_entry_is_refused_before_anything_is_expanded() -> None:
    entries = entries_of(saved({"a": torch.zeros(1 << 20)}))
    content = zipped(entries, zipfile.ZIP_DEFLATED)
    assert len(content) < 1 << 16
    assert "is compressed" in reason_of(content)


def test_a_file_that_says_it_is_larger_than_it_is_takes_no_memory(tmp_path: Path) -> None:
    program = """
import resource, sys, torch
from planner.compat.pickled import read_pickled
from planner.errors import CheckpointError
content = open(sys.argv[1], "rb").read()
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
try:
    read_pickled(lambda begin, end: content[begin:end], len(content), "x")
    raise SystemExit("was read")
except CheckpointError as error:
    print(error.reason)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024, "MiB")
"""
    entries = entries_of(saved({"a": torch.zeros(4)}))
    name = pickle_of(entries)
    huge = 1 << 31
    asked = entries[name].replace(b"K\x04tq", b"J" + struct.pack("<i", huge - 1) + b"tq")
    assert asked != entries[name]
    path = tmp_path / "bomb.bin"
    path.write_bytes(zipped({**entries, name: asked}))
    done = subprocess.run([sys.executable, "-c", program, path], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr[-2000:]
    said, grown = done.stdout.splitlines()
    assert "asks for 8589934588 bytes of storage '0', for which the file has 16 bytes" in said
    assert int(grown.split()[0]) < 64


@pytest.mark.parametrize(
    ("size", "stride", "offset"),
    [((5,), (1,), 0), ((4,), (1,), 1), ((1 << 40,), (0,), 0), ((2, 2), (3, 1), 0)],
)
def test_a_tensor_larger_than_its_storage_is_refused(
    size: tuple[int, ...], stride: tuple[int, ...], offset: int
) -> None:
    class Larger:
        def __init__(self, tensor: torch.Tensor) -> None:
            self.tensor = tensor

        def __reduce__(self) -> Any:
            function, (storage, _, _, _, *more) = self.tensor.__reduce_ex__(2)[:2]
            return function, (storage, offset, size, stride, *more)

    assert "a storage that has 16" in reason_of(saved({"a": Larger(torch.zeros(4))}))


def test_entries_that_share_bytes_are_refused() -> None:
    content = bytearray(zipped({"a/data.pkl": b"x" * 4000, "a/data/0": b"y" * 4000}))
    rows = content.rindex(b"PK\1\2")
    first = content.index(b"PK\1\2")
    copies = bytes(content[rows : content.index(b"PK\5\6")])
    renamed = [copies.replace(b"a/data/0", b"a/data/%d" % number) for number in range(1, 9)]
    end = bytearray(content[-22:])
    directory = bytes(content[first : len(content) - 22]) + b"".join(renamed)
    struct.pack_into("<2H2L", end, 8, 10, 10, len(directory), first)
    assert "larger together" in reason_of(bytes(content[:first]) + directory + bytes(end))


@pytest.mark.parametrize(
    ("entries", "said"),
    [
        ({}, "without the one 'data.pkl'"),
        ({"a/data.pkl": b"", "b/data.pkl": b""}, "without the one 'data.pkl'"),
        ({"a/data.pkl": b"", "a/constants.pkl": b""}, "TorchScript"),
        ({"a/data.pkl": b"", "a/byteorder": b"big"}, "another order of bytes"),
        ({"a/data.pkl": b""}, "cannot be read"),
        ({"a/data.pkl": pickle.dumps([1], 2)}, "not a dict of tensors"),
        ({"a/data.pkl": b"\x80\x02}r\xff\xff\xff\xff."}, None),
        ({"a/data.pkl": b"\x80\x02" + b"(" * 100_000 + b"."}, "cannot be read"),
        ({"a/data.pkl": b"\x80\x02X\xff\xff\xff\x7f."}, "cannot be read"),
    ],
)
def test_an_archive_that_torch_does_not_write_is_refused(entries: dict[str, bytes], said: str | None) -> None:
    content = zipped(entries)
    if said is None:
        assert found_in(content) == Pickled((), ())
    else:
        assert said in reason_of(content)


@pytest.mark.parametrize("kind", FORMATS)
def test_a_file_that_is_cut_is_refused(kind: str) -> None:
    content = saved({"a": torch.zeros(1000)}, kind)
    for length in range(0, len(content), 37):
        reason_of(content[:length])


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_whatever_bytes_are_flipped_tensors_lie_in_the_file_or_it_is_refused(kind: str) -> None:
    content = saved({"a": torch.zeros(3), "b": torch.zeros(2, 2).t()}, kind)
    chance = random.Random(16)
    for _ in range(1500):
        broken = bytearray(content)
        for _ in range(chance.randint(1, 3)):
            broken[chance.randrange(len(broken))] = chance.randrange(256)
        try:
            found = found_in(bytes(broken))
        except CheckpointError:
            continue
        assert all(0 <= row.begin <= row.end <= len(broken) for row in found.tensors)

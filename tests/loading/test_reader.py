"""The core's reader: files opened once, their bytes as memory, and spans of them in buffers."""

from __future__ import annotations

import os
import random
import sys
import threading
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from planner._core import Headers, PageBuffer, StoredFile, cached_bytes, read_spans
from planner.errors import CheckpointError, OffloadError

SIZE_BYTES = 3_000_001


@pytest.fixture
def content() -> bytes:
    return random.Random(0).randbytes(SIZE_BYTES)


@pytest.fixture
def file(tmp_path: Path, content: bytes) -> StoredFile:
    path = tmp_path / "weights"
    path.write_bytes(content)
    return StoredFile.open(str(path), "weights")


def cut(file: StoredFile, size_bytes: int) -> None:
    os.truncate(file.path, size_bytes)


@pytest.mark.parametrize("direct", [True, False])
@pytest.mark.parametrize("threads", [1, 3])
def test_drawn_spans_are_the_files_bytes_and_nothing_else_is_written(
    file: StoredFile, content: bytes, direct: bool, threads: int
) -> None:
    """Against a slice of what was written, at begins and places of every alignment."""
    drawn = random.Random(threads)
    buffer = PageBuffer(2 * SIZE_BYTES)
    memory = memoryview(buffer)
    for _ in range(10):
        expected = bytearray(drawn.randbytes(1) * len(memory))
        memory[:] = expected
        spans, at = [], 0
        for _ in range(drawn.randrange(6)):
            begin = drawn.randrange(SIZE_BYTES)
            end = min(SIZE_BYTES, begin + drawn.choice([0, 1, 511, 4096, 70_000, 900_000]))
            at += drawn.choice([0, 3, 4096 - at % 4096])
            spans.append((0, begin, end, at))
            expected[at : at + end - begin] = content[begin:end]
            at += end - begin
        asked = sum(end - begin for _, begin, end, _ in spans)
        drawn.shuffle(spans)
        read, directly = read_spans([file], spans, buffer, direct, threads)
        assert (read, memory == expected) == (asked, True)
        assert directly in (0, asked if direct else 0)


def test_any_memory_that_can_be_written_to_is_a_buffer(file: StoredFile, content: bytes) -> None:
    """Of arrays too; what cannot be written to, or lies in pieces, is refused."""
    array, numbers = bytearray(10), torch.zeros(4, dtype=torch.int32)
    read_spans([file], [(0, 5, 15, 0)], array, True, 1)
    read_spans([file], [(0, 7, 23, 0)], memoryview(numbers.numpy()), False, 1)
    assert (bytes(array), numbers.numpy().tobytes()) == (content[5:15], content[7:23])
    for refused in (bytes(10), memoryview(array)[::2]):
        with pytest.raises(BufferError, match="cannot be written to as one piece"):
            read_spans([file], [(0, 0, 2, 0)], refused, True, 1)


@pytest.mark.parametrize(
    ("span", "words"),
    [
        ((1, 0, 1, 0), "there is no file number 1"),
        ((0, 5, 4, 0), "from byte 5 to 4 ends before it begins"),
        ((0, 0, 10, 2**21 - 9), "10 bytes at 2097143 of a buffer that has 2097152"),
        ((0, 0, 1, 2**64 - 1), "of a buffer that has"),
        ((0, 0, 2**64 - 1, 0), "of a buffer that has"),
        ((0, 0, 10, 15), "two spans are to be written to byte 20"),
    ],
)
def test_spans_that_cannot_be_meant_are_refused_before_anything_is_read(
    file: StoredFile, span: tuple[int, int, int, int], words: str
) -> None:
    """The numbers are in the message."""
    buffer = PageBuffer(1)
    with pytest.raises(ValueError, match=words):
        read_spans([file], [(0, 40, 50, 20), span], buffer, True, 2)
    assert not any(memoryview(buffer))


@pytest.mark.parametrize("direct", [True, False])
def test_a_file_that_was_cut_is_an_error_with_its_name_and_byte(file: StoredFile, direct: bool) -> None:
    """Also where only the last page is affected."""
    cut(file, 9_000)
    with pytest.raises(OffloadError, match="weights: ends at byte 9000; bytes 8000 to 9001") as caught:
        read_spans([file], [(0, 8_000, 9_001, 0)], PageBuffer(1), direct, 2)
    assert caught.value.name == "weights"
    assert file.change() == f"is 9000 bytes now, was {SIZE_BYTES} when it was opened"
    with pytest.raises(CheckpointError, match="weights: is 9000 bytes now"):
        file.map()


def test_a_file_that_is_written_to_in_place_is_noticed(file: StoredFile) -> None:
    """By the time of the write, at equal size."""
    assert file.change() is None
    with open(file.path, "r+b") as other:
        other.write(b"others")
    os.utime(file.path, ns=(0, file.identity[3] + 1))
    assert file.change() == "was written to since it was opened"


def test_a_name_that_another_file_takes_changes_nothing_but_opening_again(
    file: StoredFile, content: bytes, tmp_path: Path
) -> None:
    """What is open stays; what was closed is not mistaken."""
    (tmp_path / "other").write_bytes(content)
    os.replace(tmp_path / "other", file.path)
    buffer = PageBuffer(SIZE_BYTES)
    assert read_spans([file], [(0, 0, SIZE_BYTES, 0)], buffer, True, 2)[0] == SIZE_BYTES
    assert bytes(memoryview(buffer)[:SIZE_BYTES]) == content
    assert file.change() is None
    file.close()
    with pytest.raises(CheckpointError, match="weights: is another file now"):
        file.reopen()


def test_a_closed_file_is_opened_for_each_use(file: StoredFile, content: bytes) -> None:
    """So that a checkpoint may have more files than may be open; no handle stays."""
    file.close()
    memory = bytearray(10)
    assert read_spans([file], [(0, 5, 15, 0)], memory, True, 1)[0] == 10
    assert memory == content[5:15]
    assert cached_bytes(file, 0, 1)[1] > 0
    assert file.change() is None
    assert not file.is_open
    file.reopen()
    assert (file.is_open, file.change()) == (True, None)


def test_of_a_closed_file_another_one_in_its_place_is_not_read(file: StoredFile, tmp_path: Path) -> None:
    """What is mapped of it stays as it was, so nothing has changed; but its bytes cannot be read again."""
    file.close()
    other = tmp_path / "other"
    other.write_bytes(b"another")
    other.replace(file.path)
    assert file.change() is None
    with pytest.raises(CheckpointError, match="weights: is another file now"):
        read_spans([file], [(0, 0, 1, 0)], bytearray(1), True, 1)


def test_a_mapping_is_private_and_outlives_handle_and_file(tmp_path: Path, content: bytes) -> None:
    """One object for each file; what is written to it reaches nobody else."""
    path = tmp_path / "weights"
    path.write_bytes(content)
    file = StoredFile.open(str(path), "weights")
    mapping = file.map()
    assert (file.map() is mapping, len(mapping)) == (True, SIZE_BYTES)
    file.close()
    assert file.map() is mapping
    tensor = torch.frombuffer(mapping, dtype=torch.uint8, count=1000, offset=7)
    del file, mapping
    assert tensor.numpy().tobytes() == content[7:1007]
    tensor.add_(1)
    assert path.read_bytes() == content


def test_whatever_is_no_regular_file_is_refused_without_waiting(tmp_path: Path) -> None:
    """A pipe would wait for somebody who writes."""
    os.mkfifo(tmp_path / "pipe")
    for name, words in [("pipe", "a pipe"), (".", "a directory"), ("nowhere", "no such file")]:
        with pytest.raises(CheckpointError, match=words) as caught:
            StoredFile.open(str(tmp_path / name), "shown")
        assert caught.value.file == "shown"


def test_headers_say_where_each_tensor_lies(tmp_path: Path) -> None:
    """Read from handles, also of files that are gone; the ranges are the tensors."""
    tensors = {"b": torch.randn(3, 5), "a": torch.arange(7), "none": torch.empty(0, 4, dtype=torch.bfloat16)}
    save_file(tensors, tmp_path / "one")
    save_file({"c": torch.tensor(2.5)}, tmp_path / "two")
    expected = load_file(tmp_path / "one") | load_file(tmp_path / "two")
    files = [StoredFile.open(str(tmp_path / name), name) for name in ("one", "two")]
    contents = [(tmp_path / name).read_bytes() for name in ("one", "two")]
    for name in ("one", "two"):
        (tmp_path / name).unlink()
    ranges = Headers.of_files(files, None).ranges()
    assert {name: (kind, shape) for name, *_, kind, shape in ranges} == {
        "a": ("I64", (7,)),
        "b": ("F32", (3, 5)),
        "none": ("BF16", (0, 4)),
        "c": ("F32", ()),
    }
    for name, number, begin, end, _, shape in ranges:
        stored = contents[number][begin:end]
        wanted = expected[name]
        assert (len(stored), shape) == (wanted.nbytes, tuple(wanted.shape))
        if stored:
            assert torch.equal(torch.frombuffer(bytearray(stored), dtype=wanted.dtype).view(shape), wanted)


def test_headers_of_a_broken_file_name_it(tmp_path: Path) -> None:
    """As those that are read by path."""
    (tmp_path / "broken").write_bytes(b"\x09\0\0\0\0\0\0\0{}")
    with pytest.raises(CheckpointError, match="broken: truncated: a header of 9 bytes in a file of 10"):
        Headers.of_files([StoredFile.open(str(tmp_path / "broken"), "broken")], None)


def test_a_buffer_is_known_to_be_free_by_its_references() -> None:
    """Each tensor in it holds one; memory is zeroed, aligned and rounded up."""
    buffer = PageBuffer(5)
    assert (buffer.size_bytes, len(buffer)) == (2**21, 2**21)
    assert 0 <= buffer.huge_bytes() <= buffer.size_bytes
    free = sys.getrefcount(buffer)
    tensor = torch.frombuffer(buffer, dtype=torch.float32)
    view = tensor[3:5]
    assert (tensor.data_ptr() % 2**21, tensor.count_nonzero(), sys.getrefcount(buffer)) == (0, 0, free + 1)
    del tensor
    assert sys.getrefcount(buffer) == free + 1
    del view
    assert sys.getrefcount(buffer) == free
    with pytest.raises(MemoryError, match="1152921504606846976 bytes"):
        PageBuffer(2**60)


def test_what_is_cached_is_counted_in_whole_pages(file: StoredFile) -> None:
    """All of a file that was just written; nothing of an empty span."""
    page = os.sysconf("SC_PAGESIZE")
    assert cached_bytes(file, 10, 10) == cached_bytes(file, SIZE_BYTES, SIZE_BYTES + 9) == (0, 0)
    cached, asked = cached_bytes(file, 1, SIZE_BYTES)
    assert asked == -(-SIZE_BYTES // page) * page
    assert cached == (asked if sys.platform == "linux" else 0)


def test_closing_while_others_read_is_no_error_of_theirs(file: StoredFile, content: bytes) -> None:
    """They have their handle, or are told that it is closed; nobody reads another file."""
    faults: list[str] = []

    def read() -> None:
        buffer = PageBuffer(SIZE_BYTES)
        for _ in range(30):
            try:
                read_spans([file], [(0, 0, SIZE_BYTES, 0)], buffer, True, 2)
            except CheckpointError as error:
                faults.extend([] if "closed" in str(error) else [str(error)])
            else:
                faults.extend([] if memoryview(buffer)[:SIZE_BYTES] == content else ["other bytes"])

    threads = [threading.Thread(target=read) for _ in range(3)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        file.close()
        file.reopen()
    assert not faults


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_forked_child_reads_as_its_parent_does(file: StoredFile, content: bytes) -> None:
    """While another thread of the parent reads: nothing is locked that the child needs."""
    done = threading.Event()

    def read() -> None:
        buffer = PageBuffer(SIZE_BYTES)
        while not done.is_set():
            read_spans([file], [(0, 0, SIZE_BYTES, 0)], buffer, True, 2)

    thread = threading.Thread(target=read)
    thread.start()
    try:
        for _ in range(10):
            child = os.fork()
            if child == 0:
                memory = bytearray(50_000)
                read_spans([file], [(0, 3, 50_003, 0)], memory, True, 2)
                os._exit(0 if memory == content[3:50_003] else 1)
            assert os.waitpid(child, 0)[1] == 0
    finally:
        done.set()
        thread.join()

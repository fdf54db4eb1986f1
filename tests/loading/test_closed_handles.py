"""Of more files than may be open, handles are closed; another file may then have their name."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from planner.checkpoint.files import StoredFile
from planner.errors import PlannerError
from planner.loading.open_files import OpenFiles
from planner.loading.streaming.files import FileReads
from planner.loading.streaming.layout import Span


def closed(path: Path) -> StoredFile:
    file = StoredFile.open(str(path), str(path))
    file.map()
    file.close()
    return file


def renamed_over(path: Path) -> None:
    save_file({"x": torch.zeros(5000)}, path.with_suffix(".new"))
    os.replace(path.with_suffix(".new"), path)


def span(file: int, path: Path, at: int) -> Span:
    return Span(file, 8, path.stat().st_size, at)


@pytest.mark.parametrize("direct", [False, True])
@pytest.mark.parametrize("replace", [renamed_over, os.unlink])
def test_a_closed_file_whose_name_is_anothers_is_used_from_its_mapping(
    replace: Callable[[Path], None], direct: bool, tmp_path: Path
) -> None:
    paths = [tmp_path / "a.safetensors", tmp_path / "b.safetensors"]
    for path in paths:
        save_file({"x": torch.randn(4000)}, path)
    wanted = [path.read_bytes()[8:] for path in paths]
    spans = [span(0, paths[0], 0), span(1, paths[1], len(wanted[0]))]
    reads = FileReads(OpenFiles([closed(path) for path in paths]))
    replace(paths[1])
    memory = bytearray(sum(map(len, wanted)))
    assert reads.read_spans(spans, memory, direct=direct)[0] == len(memory)
    assert bytes(memory) == b"".join(wanted)
    assert reads.cached_bytes(1, 8, 16000) == (15992, 15992)
    reads.page_in(spans)


@pytest.mark.parametrize("direct", [False, True])
def test_a_closed_file_that_was_written_to_is_an_error(direct: bool, tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    save_file({"x": torch.randn(4000)}, path)
    whole = span(0, path, 0)
    reads = FileReads(OpenFiles([closed(path)]))
    with path.open("ab") as file:
        file.write(b"more")
    with pytest.raises(PlannerError, match="bytes now"):
        reads.read_spans([whole], bytearray(whole.end), direct=direct)
    with pytest.raises(PlannerError, match="bytes now"):
        reads.cached_bytes(0, 8, 16000)

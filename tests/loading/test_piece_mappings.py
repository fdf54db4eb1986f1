"""Experts that lie in files in pieces: had without copying where pages allow it, and the same values everywhere."""

from __future__ import annotations

import copy
import gc
import mmap
import pickle
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import nn

import planner
from planner._core import StoredFile, map_pieces
from planner.errors import CheckpointError, OffloadError
from planner.loading import piece_mappings
from planner.loading.open_files import OpenFiles
from planner.loading.piece_mappings import PieceMappings, can_be_mapped
from planner.loading.recipe import Pieces
from planner.loading.stored import StoredTensor
from planner.loading.weights import source_view

PAGE = mmap.PAGESIZE
CONTENT = random.Random(0).randbytes(200 * PAGE + 77)


@pytest.fixture
def files(tmp_path: Path) -> list[StoredFile]:
    found = []
    for number in range(2):
        path = tmp_path / f"weights-{number}"
        path.write_bytes(CONTENT[number:])
        found.append(StoredFile.open(str(path), path.name))
    return found


@pytest.mark.parametrize("seed", range(60))
def test_drawn_pieces_are_the_files_bytes(files: list[StoredFile], seed: int) -> None:
    """Pieces of every length that begin in step with pages are mapped; others are not."""
    drawn = random.Random(seed)
    at = drawn.randrange(PAGE)
    phase, pieces, expected = at, [], b""
    for _ in range(drawn.randrange(1, 8)):
        size = drawn.choice([0, 1, PAGE - 1, PAGE, PAGE + 1, 3 * PAGE, drawn.randrange(20 * PAGE)])
        begin = drawn.randrange(100) * PAGE + at % PAGE
        number = drawn.randrange(2)
        pieces.append((number, begin, begin + size))
        expected += CONTENT[number:][begin : begin + size]
        at += size
    found = map_pieces(files, pieces)
    assert found is not None
    mapping, first = found
    assert first == (phase if expected else 0)
    for file in files:
        Path(file.path).unlink()  # what is mapped stays
    memory = memoryview(mapping)
    assert memory[first : first + len(expected)] == expected
    if expected:
        memory[first] ^= 255  # private: no file has it, and nobody else
        assert memoryview(files[0].map())[:100] == CONTENT[:100]


def test_what_pages_do_not_allow_or_files_do_not_have(files: list[StoredFile]) -> None:
    assert map_pieces(files, [(0, 0, PAGE), (0, 3 * PAGE + 1, 5 * PAGE)]) is None
    for wrong in ((0, 5, 4), (0, 0, len(CONTENT) + 1), (2, 0, 1)):
        with pytest.raises(ValueError):
            map_pieces(files, [wrong])
    with open(files[1].path, "r+b") as file:
        file.write(b"another")
    with pytest.raises(CheckpointError, match="written to"):
        map_pieces(files, [(0, 0, PAGE), (1, PAGE, 2 * PAGE)])


def pieces_of(begins: Sequence[int], nbytes: int, dtype: torch.dtype = torch.float32) -> Pieces:
    count = nbytes // dtype.itemsize
    rows = [StoredTensor(str(begin), 0, begin, begin + nbytes, dtype, (count,)) for begin in begins]
    places = tuple((row, number * nbytes) for number, row in enumerate(rows))
    return Pieces(dtype, (len(rows), count), places)


def test_which_are_mapped(files: list[StoredFile]) -> None:
    """Large enough, in step, and where elements can be looked at."""
    large = 16 * PAGE
    assert can_be_mapped(pieces_of([64, 64 + 20 * PAGE], large))
    assert not can_be_mapped(pieces_of([64, 64 + 20 * PAGE], large - 4))
    assert not can_be_mapped(pieces_of([64, 68 + 20 * PAGE], large))
    assert not can_be_mapped(pieces_of([66, 66 + 20 * PAGE], large))
    assert can_be_mapped(pieces_of([66, 66 + 20 * PAGE], large, torch.bfloat16))


@pytest.mark.parametrize("phase", range(0, 64, 8))
def test_answers_are_those_of_pieces_in_new_memory(tmp_path: Path, phase: int) -> None:
    """Bit for bit, wherever in a page the files have them: kernels of float32 add in another order where memory is not aligned."""
    size, count = 128, 3
    values = torch.randn(count, size, size, generator=torch.Generator().manual_seed(0))
    path = tmp_path / "weights"
    path.write_bytes(bytes(phase) + values.numpy().tobytes())
    files = OpenFiles([StoredFile.open(str(path), path.name)])
    nbytes = size * size * 4
    rows = [
        StoredTensor(str(at), 0, at, at + nbytes, torch.float32, (size, size))
        for at in range(phase, phase + count * nbytes, nbytes)
    ]
    recipe = Pieces(torch.float32, (count, size, size), tuple((row, row.begin - phase) for row in rows))
    found = source_view(files, recipe)
    assert found.equal(values)
    assert files.pieces.is_mapped(recipe) == (phase % 16 == 0)
    for expert in range(count):
        x = torch.randn(1, size, generator=torch.Generator().manual_seed(expert))
        assert nn.functional.linear(x, found[expert]).equal(nn.functional.linear(x, values[expert]))


def test_no_more_than_a_process_may_have(files: list[StoredFile], monkeypatch: pytest.MonkeyPatch) -> None:
    """The answer for one tensor never changes; what goes gives its mappings back."""
    monkeypatch.setattr(piece_mappings, "_MOST_PIECES", 5)
    monkeypatch.setattr(piece_mappings, "_taken", {})
    first, second = (pieces_of([at, at + 30 * PAGE], 16 * PAGE) for at in (0, 64))
    third = pieces_of([128, 128 + 30 * PAGE], 16 * PAGE)
    one, other = PieceMappings(files), PieceMappings(files)
    assert [one.has(first), other.has(second), one.has(third), one.has(first)] == [True, True, False, True]
    del one
    gc.collect()
    assert [other.has(third), PieceMappings(files).has(third)] == [True, False]


HIDDEN = 128


@pytest.fixture
def experts(tmp_path: Path) -> Path:
    """A Mixtral in its repository's form, whose experts are large enough."""
    torch.manual_seed(0)
    config = transformers.MixtralConfig(
        hidden_size=HIDDEN,
        intermediate_size=HIDDEN,
        vocab_size=64,
        num_attention_heads=2,
        num_key_value_heads=2,
        num_hidden_layers=2,
        num_local_experts=4,
    )
    transformers.MixtralForCausalLM(config).save_pretrained(tmp_path / "model")
    return tmp_path / "model"


IDS = torch.arange(12).view(1, 12)


def output(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(IDS).logits  # type: ignore[no-any-return]


@pytest.mark.parametrize("placed", ["cpu", "disk"])
def test_experts_are_mapped_and_not_copied(experts: Path, placed: str) -> None:
    want = output(transformers.MixtralForCausalLM.from_pretrained(experts))
    model = planner.load(experts, plan={"model.layers": placed, "": "cpu"}, read="cached")
    report = planner.load_report(model)
    assert report is not None
    assert {row.way for row in report.tensors} == {"view", "pieces", "initialised"}
    assert (report.read_bytes, report.copied_bytes) == (0, 0)
    for _ in range(3):
        assert output(model).equal(want)
    if placed == "disk":
        planner.undispatch(model)
        assert output(model).equal(want)


@pytest.mark.parametrize("placed", ["cpu", "disk"])
def test_what_is_written_into_mapped_experts_stays(experts: Path, placed: str, tmp_path: Path) -> None:
    """In the model, in what is saved of it, and in no file."""
    before = {path.name: path.read_bytes() for path in experts.iterdir()}
    model = planner.load(experts, plan={"model.layers": placed, "": "cpu"}, read="cached")
    experts_of = model.model.layers[1].mlp.experts
    with planner.align_module_device(experts_of), torch.no_grad():
        experts_of.down_proj[2].mul_(3.0)
    changed = output(model)
    reference = transformers.MixtralForCausalLM.from_pretrained(experts)
    with torch.no_grad():
        reference.model.layers[1].mlp.experts.down_proj[2].mul_(3.0)
    assert changed.equal(output(reference))
    model.save_pretrained(tmp_path / "saved")
    assert output(transformers.MixtralForCausalLM.from_pretrained(tmp_path / "saved")).equal(changed)
    planner.disk_offload(model, tmp_path / "offload", execution_device="cpu")
    assert output(model).equal(changed)
    assert {path.name: path.read_bytes() for path in experts.iterdir()} == before


def test_a_file_that_is_written_to_is_an_error_before_it_is_read(experts: Path) -> None:
    model = planner.load(experts, plan={"model.layers": "disk", "": "cpu"}, read="cached")
    output(model)
    with open(experts / "model.safetensors", "r+b") as file:
        file.seek(100_000)
        file.write(b"other weights")
    with pytest.raises(OffloadError, match="written to"):
        output(model)


@pytest.mark.parametrize("placed", ["cpu", "disk"])
@pytest.mark.parametrize(
    "part", ["model.layers.1.mlp.experts.down_proj", "model.layers.1.self_attn.q_proj.weight"]
)
def test_what_is_written_into_a_deep_copy_is_its_own(experts: Path, placed: str, part: str) -> None:
    """Neither of both sees what the other one's weights become, and what was written before is in both."""
    model = planner.load(experts, plan={"model.layers": placed, "": "cpu"}, read="cached")
    module_name, _, name = part.rpartition(".")

    def write(written: Any, factor: float, *, counted: bool) -> None:
        module = written.get_submodule(module_name)
        with planner.align_module_device(module), torch.no_grad():
            tensor = getattr(module, name)
            (tensor if counted else tensor.data).mul_(factor)

    write(model, 3.0, counted=False)
    first = output(model)
    copied, pickled = copy.deepcopy(model), pickle.loads(pickle.dumps(model))
    assert output(copied).equal(first) and output(pickled).equal(first)
    write(copied, -1.0, counted=True)
    second = output(copied)
    assert not second.equal(first)
    assert output(model).equal(first)
    write(model, -2.0, counted=True)
    assert not output(model).equal(first)
    assert output(copied).equal(second) and output(pickled).equal(first)

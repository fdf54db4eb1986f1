"""A stage reads its own tensors and no others, and is judged before anything is read."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import planner
from pipelines.stage_models import FAMILIES, family, save, stages_of
from planner.checkpoint import files
from planner.pipelines.runs import stage_runs
from planner.pipelines.stage import PreparedStage, prepare_stage

INDEX = "model.safetensors.index.json"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A copy of a model of several files that may be changed."""
    return Path(shutil.copytree(family("llama").folder, tmp_path / "llama"))


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Names of files of weights, as they are opened."""
    names: list[str] = []
    real = files.StoredFile

    def open_noted(path: str, shown: str) -> Any:
        names.append(Path(path).name)
        return real.open(path, shown)

    monkeypatch.setattr(files, "StoredFile", SimpleNamespace(open=open_noted))
    yield names


def prepared(folder: Path, counts: tuple[int, ...], index: int) -> PreparedStage:
    return prepare_stage(folder, stage_runs(counts), index)


def placed(folder: Path) -> dict[str, str]:
    found: dict[str, str] = json.loads((folder / INDEX).read_text())["weight_map"]
    return found


def stored_bytes(folder: Path, names: set[str]) -> int:
    """Bytes of some tensors, as safetensors' own reader has them."""
    place = placed(folder)
    total = 0
    for name in names:
        with safe_open(folder / place[name], "pt") as file:
            total += file.get_tensor(name).nbytes
    return total


def names_of(folder: Path, layers: range, *more: str) -> set[str]:
    starts = tuple(f".{kind}.{number}." for kind in ("layers", "h") for number in layers)
    return {
        name for name in placed(folder) if any(start in f".{name}" for start in starts) or name.endswith(more)
    }


@pytest.mark.parametrize(
    ("name", "first", "last"),
    [
        ("llama", ("embed_tokens.weight",), ("model.norm.weight", "lm_head.weight")),
        ("qwen3_tied", ("embed_tokens.weight",), ("model.norm.weight", "embed_tokens.weight")),
        ("gpt2", ("wte.weight", "wpe.weight"), ("ln_f.weight", "ln_f.bias", "wte.weight")),
        ("mixtral", ("embed_tokens.weight",), ("model.norm.weight", "lm_head.weight")),
        ("gpt_oss", ("embed_tokens.weight",), ("model.norm.weight", "lm_head.weight")),
        ("mamba", ("embeddings.weight",), ("norm_f.weight", "embeddings.weight")),
    ],
)
def test_each_stage_reads_its_own_tensors_and_what_is_tied_at_both_ends(
    name: str, first: tuple[str, ...], last: tuple[str, ...]
) -> None:
    folder = family(name).folder
    stages = stages_of(folder, (1, 3, 1))
    wanted = [
        names_of(folder, range(1), *first),
        names_of(folder, range(1, 4)),
        names_of(folder, range(4, 5), *last),
    ]
    assert set.union(*wanted) == set(placed(folder))
    assert [stage.read_bytes for stage in stages] == [stored_bytes(folder, names) for names in wanted]


def test_experts_that_are_stored_one_by_one_are_those_of_the_stage() -> None:
    folder = family("mixtral").folder
    assert any(".experts.3." in name for name in placed(folder)), "the files have them one by one"
    whole = family("mixtral").model.model.layers[3].mlp.experts.gate_up_proj
    _, last = stages_of(folder, (2, 3))
    mine: Any = last.model.model
    assert torch.equal(mine.layers[1].mlp.experts.gate_up_proj, whole)


@pytest.mark.parametrize("index", range(3))
def test_no_file_is_opened_in_which_a_stage_has_nothing(index: int, opened: list[str]) -> None:
    folder = family("llama").folder
    ends = [("embed_tokens.weight",), (), ("model.norm.weight", "lm_head.weight")]
    layers = [range(1), range(1, 4), range(4, 5)]
    prepared(folder, (1, 3, 1), index).read()
    place = placed(folder)
    wanted = {place[name] for name in names_of(folder, layers[index], *(ends[index] or ("nothing",)))}
    assert set(opened) == wanted
    assert len(opened) == len(wanted) < len(set(place.values()))


def test_weights_of_a_stage_are_memory_of_its_own_and_on_its_device(folder: Path) -> None:
    stage = prepared(folder, (2, 3), 1).read()
    before = {name: tensor.clone() for name, tensor in stage.model.state_dict().items()}
    for file in folder.glob("*.safetensors"):
        file.write_bytes(bytes(file.stat().st_size))
    for name, tensor in stage.model.state_dict().items():
        assert torch.equal(tensor, before[name])
    tensors = [*stage.model.parameters(), *stage.model.buffers()]
    assert {tensor.device for tensor in tensors} == {torch.device("cpu")}


def test_nothing_is_read_before_it_is_asked_for_and_progress_is_told(folder: Path) -> None:
    stage = prepared(folder, (2, 3), 0)
    assert all(parameter.is_meta for parameter in stage.model.parameters())
    told: list[tuple[int, int]] = []
    made = stage.read(lambda done_bytes, total_bytes: told.append((done_bytes, total_bytes)))
    assert told[-1] == (stage.weight_bytes, stage.weight_bytes) == (made.read_bytes, made.read_bytes)


def test_a_dtype_counts_for_what_is_handed_on(folder: Path) -> None:
    runs = stage_runs((2, 3))
    stages = [prepare_stage(folder, runs, run.index, dtype="bfloat16").read() for run in runs]
    assert {stage.dtype for stage in stages} == {torch.bfloat16}
    hidden = stages[0].forward(torch.tensor([[5, 6, 7]]), cache=stages[0].new_cache())
    assert hidden.dtype == torch.bfloat16


def test_weights_wider_than_the_configuration_says_count_as_they_are(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "dtype": "bfloat16"}))
    stages = stages_of(folder, (2, 3))
    assert {stage.dtype for stage in stages} == {torch.float32}


def test_one_file_without_an_index(tmp_path: Path, opened: list[str]) -> None:
    with torch.random.fork_rng():
        saved = save(FAMILIES["gpt2"](), most="1GB")
    stages = stages_of(saved.folder, (2, 3))
    assert not (saved.folder / INDEX).exists()
    tied = saved.model.transformer.wte.weight.nbytes
    whole_bytes = sum(parameter.nbytes for parameter in saved.model.parameters())
    assert sum(stage.read_bytes for stage in stages) == whole_bytes + tied


def test_both_names_of_a_tie_in_the_files_with_different_values(tmp_path: Path) -> None:
    """Then they are not tied, as in transformers; each stage reads its own."""
    with torch.random.fork_rng():
        saved = save(FAMILIES["qwen3_tied"](), most="1GB")
    file = saved.folder / "model.safetensors"
    tensors = load_file(file)
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"] + 1
    save_file(tensors, file, {"format": "pt"})
    first, last = stages_of(saved.folder, (2, 3))
    assert torch.equal(
        first.model.get_parameter("model.embed_tokens.weight"), tensors["model.embed_tokens.weight"]
    )
    assert torch.equal(last.model.get_parameter("lm_head.weight"), tensors["lm_head.weight"])


# ---- What does not fit


def changed(folder: Path, name: str, tensor: torch.Tensor | None) -> None:
    file = folder / placed(folder)[name]
    tensors = load_file(file)
    if tensor is None:
        del tensors[name]
    else:
        tensors[name] = tensor
    save_file(tensors, file, {"format": "pt"})


def test_a_shard_that_was_cut_is_refused_by_the_stage_that_needs_it(folder: Path) -> None:
    file = folder / placed(folder)["model.layers.4.mlp.up_proj.weight"]
    file.write_bytes(file.read_bytes()[:-100])
    prepared(folder, (1, 3, 1), 0)
    with pytest.raises(planner.CheckpointError, match=file.name):
        prepared(folder, (1, 3, 1), 2)


def test_a_shape_that_does_not_fit_is_named_before_anything_is_read(folder: Path) -> None:
    changed(folder, "model.layers.0.mlp.up_proj.weight", torch.zeros(48, 31))
    with pytest.raises(
        planner.CheckpointError, match=r"layers.0.mlp.up_proj.weight' is \[48, 31\] in the files"
    ):
        prepared(folder, (1, 4), 0)


def test_a_tensor_that_the_index_lists_and_no_file_has(folder: Path) -> None:
    changed(folder, "model.layers.0.mlp.up_proj.weight", None)
    with pytest.raises(
        planner.CheckpointError, match=r"no file has 'model\.layers\.0\.mlp\.up_proj\.weight'"
    ):
        prepared(folder, (1, 4), 0)


def test_names_that_the_model_has_no_place_for_are_refused_by_every_stage(folder: Path) -> None:
    index = json.loads((folder / INDEX).read_text())
    index["weight_map"]["model.layers.2.strange.weight"] = next(iter(index["weight_map"].values()))
    (folder / INDEX).write_text(json.dumps(index))
    for stage in range(2):
        with pytest.raises(
            planner.CheckpointError, match=r"no place for 'model\.layers\.2\.strange\.weight'"
        ):
            prepared(folder, (1, 4), stage)


def test_a_file_that_changes_between_judging_and_reading_is_not_read(folder: Path) -> None:
    stage = prepared(folder, (2, 3), 0)
    file = folder / placed(folder)["model.layers.0.mlp.up_proj.weight"]
    with file.open("r+b") as handle:
        handle.seek(-1, 2)
        handle.write(b"\x01\x02\x03")
    with pytest.raises(planner.OffloadError, match=file.name):
        stage.read()
    assert all(parameter.is_meta for parameter in stage.model.parameters())

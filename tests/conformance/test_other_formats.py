"""What is not planned from has a name, and the command that makes something of it that is: typed as it is printed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import planner

torch = pytest.importorskip("torch")

TENSORS_BYTES = 4 * (6 + 4)


def refused(source: Path) -> str:
    with pytest.raises(planner.CheckpointError) as caught:
        planner.plan(source, max_memory={"cpu": "1GiB"})
    return caught.value.reason


def typed(reason: str) -> None:
    """Runs the command that a message ends in."""
    command = reason[reason.index("python -") :].replace("python -", f"{sys.executable} -")
    done = subprocess.run(command, shell=True, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


def total_bytes(source: Path) -> int:
    return planner.plan(source, max_memory={"cpu": "1GiB"}).source.total_bytes


def tensors() -> dict[str, Any]:
    weight = torch.zeros(2, 3)
    return {"fc.weight": weight.T, "head.weight": torch.zeros(4)}


@pytest.mark.parametrize("below", [None, "state_dict", "model_ema"])
def test_a_file_of_tensors_is_converted_by_torch_alone(below: str | None, tmp_path: Path) -> None:
    """Also the file of a training, which has its step and its optimizer beside them."""
    folder = tmp_path / "with a space"
    folder.mkdir()
    beside = {"step": 7, "optimizer": {"state": {0: {"mean": torch.zeros(9)}}, "rate": torch.zeros(1)}}
    found = {**tensors(), "step": 7} if below is None else {below: tensors(), **beside}
    torch.save(found, folder / "x.pth")
    reason = refused(folder / "x.pth")
    assert reason.startswith("pickled weights, which run code when they are read")
    assert "holds only pickled weights (x.pth)" in refused(folder)
    typed(reason)
    assert total_bytes(folder / "x.safetensors") == total_bytes(folder) == TENSORS_BYTES


def test_an_index_of_pickled_files_is_converted_by_its_files(tmp_path: Path) -> None:
    index = tmp_path / "pytorch_model.bin.index.json"
    index.write_text("{}")
    for source in (index, tmp_path):
        assert "the files that it lists are missing here" in refused(source)
    name = "pytorch_model-00001-of-00001.bin"
    torch.save(tensors(), tmp_path / name)
    reason = refused(index)
    assert reason.startswith("an index of pickled weights") and str(tmp_path / name) in reason
    typed(reason)
    assert total_bytes(tmp_path) == TENSORS_BYTES


def test_a_folder_around_models_names_them(tmp_path: Path) -> None:
    for name in ("checkpoint-10", "checkpoint-20", "logs"):
        (tmp_path / name).mkdir()
    for name in ("checkpoint-10", "checkpoint-20"):
        (tmp_path / name / "config.json").write_text("{}")
    inner = f"{tmp_path}/checkpoint-10, {tmp_path}/checkpoint-20"
    assert refused(tmp_path).endswith(f"name a folder inside, which does: {inner}")


@pytest.mark.parametrize("name", ["config.json", "model_index.json", "adapter_config.json"])
def test_a_folder_in_the_place_of_a_file_is_refused_by_name(name: str, tmp_path: Path) -> None:
    (tmp_path / name).mkdir()
    (tmp_path / "adapter_model.safetensors").write_bytes(b"")
    before = set(os.listdir("/dev/fd"))
    with pytest.raises(planner.CheckpointError) as caught:
        planner.plan(tmp_path, max_memory={"cpu": "1GiB"})
    assert caught.value.file == str(tmp_path / name) and caught.value.reason == "a folder, not a file"
    assert set(os.listdir("/dev/fd")) == before


def test_a_folder_of_a_known_class_is_converted_by_transformers(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.GPT2Config(
        n_embd=8, n_layer=1, n_head=2, vocab_size=8, n_positions=4, bos_token_id=1, eos_token_id=1
    )
    model = transformers.GPT2LMHeadModel(config)
    folder = tmp_path / "gpt"
    folder.mkdir()
    model.save_pretrained(folder)
    expected = total_bytes(folder)
    (folder / "model.safetensors").unlink()
    torch.save(model.state_dict(), folder / "pytorch_model.bin")
    reason = refused(folder)
    assert f"This writes them to {folder}-safetensors" in reason
    typed(reason)
    assert total_bytes(tmp_path / "gpt-safetensors") == expected


def test_a_distributed_checkpoint_is_named_with_its_size_and_not_read(tmp_path: Path) -> None:
    import torch.distributed.checkpoint as dcp

    folder = tmp_path / "step-10"
    dcp.save(tensors(), checkpoint_id=folder, no_dist=True)
    (data,) = folder.glob("*.distcp")
    reason = refused(folder)
    size = planner.units.format_bytes(data.stat().st_size)
    assert reason.startswith(f"a distributed checkpoint of torch: 1 file, {size}")
    for part in (folder / ".metadata", data):
        assert "belongs to the folder around it, a distributed checkpoint" in refused(part)
    typed(reason)
    assert total_bytes(tmp_path / "step-10.safetensors") == TENSORS_BYTES


def test_metadata_that_would_run_code_is_not_run(tmp_path: Path) -> None:
    (tmp_path / ".metadata").write_bytes(b"cos\nsystem\n(S'touch exploded'\ntR.")
    assert "0 files, 0 B" in refused(tmp_path)
    assert not Path("exploded").exists()


def test_a_pickled_adapter_is_converted_in_its_place(tmp_path: Path) -> None:
    base = tmp_path / "base"
    base.mkdir()
    torch.save(tensors(), base / "x.pt")
    typed(refused(base))
    folder = tmp_path / "adapter"
    folder.mkdir()
    (folder / "adapter_config.json").write_text(
        json.dumps({"peft_type": "LORA", "base_model_name_or_path": str(base)})
    )
    lora = {f"base_model.model.fc.lora_{part}.weight": torch.zeros(2) for part in "AB"}
    torch.save(lora, folder / "adapter_model.bin")
    reason = refused(folder)
    assert "holds only pickled weights (adapter_model.bin)" in reason
    typed(reason)
    assert total_bytes(folder) == TENSORS_BYTES + 16


def test_safetensors_win_beside_other_formats(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    save_file({"fc.weight": torch.zeros(6)}, tmp_path / "model.safetensors")
    torch.save(tensors(), tmp_path / "pytorch_model.bin")
    (tmp_path / "x.gguf").write_bytes(b"GGUF")
    (tmp_path / ".metadata").write_bytes(b"")
    assert total_bytes(tmp_path) == 24


def test_nothing_is_written_into_the_cache_of_the_hub(tmp_path: Path) -> None:
    snapshot = tmp_path / "models--org--name" / "snapshots" / ("a" * 40)
    snapshot.mkdir(parents=True)
    torch.save(tensors(), snapshot / "pytorch_model.bin")
    assert refused(snapshot).endswith(f"{snapshot}/pytorch_model.bin pytorch_model.safetensors")
    (snapshot / "config.json").write_text(json.dumps({"architectures": ["GPT2LMHeadModel"]}))
    assert refused(snapshot).endswith(f"{snapshot} name-safetensors")

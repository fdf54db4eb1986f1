"""Formats other than safetensors, from the command to what it prints."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from checkpoint_files import write_tensors
from gguf_files import GgufTensors, total_of, write_gguf

TENSORS: GgufTensors = {
    "token_embd.weight": ("Q4_K", [256, 64]),
    **{f"blk.{n}.attn_q.weight": ("Q4_K", [256, 256]) for n in range(4)},
    "output_norm.weight": ("F32", [256]),
}


def planner(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "planner", *map(str, arguments)], capture_output=True, text=True, timeout=120
    )


def test_a_gguf_file_is_planned_and_its_plan_checked(tmp_path: Path) -> None:
    model = write_gguf(tmp_path / "tiny-Q4_K_M.gguf", TENSORS)
    saved = tmp_path / "plan.json"
    made = planner("plan", model, "-d", "0=100KiB", "-d", "cpu=1GiB", "--json", "-o", saved)
    assert made.returncode == 0, made.stderr
    assert "blk.3" in made.stdout
    assert planner("check", model, saved).stdout.strip().endswith("valid")
    sizes = planner("sizes", model, "--json")
    assert json.loads(sizes.stdout)["total_bytes"] == total_of(TENSORS)


def test_what_cannot_be_planned_says_what_to_type(tmp_path: Path) -> None:
    (tmp_path / "pytorch_model.bin").write_bytes(b"PK")
    done = planner("plan", tmp_path, "-d", "0=1GiB")
    assert done.returncode == 2
    assert "holds only pickled weights (pytorch_model.bin)" in done.stderr
    assert f"{tmp_path}/pytorch_model.bin {tmp_path}/pytorch_model.safetensors" in done.stderr


def test_an_adapter_without_its_base_says_what_to_type(tmp_path: Path) -> None:
    lora = {"base_model.model.fc.lora_A.weight": ("F32", [4], 16)}
    write_tensors(tmp_path / "adapter_model.safetensors", lora)
    said = {"peft_type": "LORA", "base_model_name_or_path": "no-such-org/no-such-base"}
    (tmp_path / "adapter_config.json").write_text(json.dumps(said))
    done = planner("plan", tmp_path, "-d", "0=1GiB")
    assert done.returncode == 2
    assert "a LoRA and no model: it changes no-such-org/no-such-base" in done.stderr
    assert "`hf download no-such-org/no-such-base`" in done.stderr

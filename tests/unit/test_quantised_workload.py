"""Quantised models with a workload: recorded as if nothing was packed, and what kernels unpack beside that."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import planner
from planner import Plan
from tiny_folders import llama, saved_in

WORK = {"context_length": 64, "batch_size": 2, "allocator_margin": 0}
GPTQ = {"quant_method": "gptq", "bits": 4, "group_size": 32}


def packed_in(
    folder: Path, quantization: Mapping[str, Any] = GPTQ, dtype: torch.dtype = torch.float16
) -> Path:
    """A folder whose blocks' linear weights are stored as GPTQ has them: eight in an int32."""
    saved_in(folder, dtype=dtype)
    config = json.loads((folder / "config.json").read_text())
    model: Any = llama().to(dtype)
    tensors: dict[str, torch.Tensor] = {}
    linear = {name for name, module in model.model.layers.named_modules() if isinstance(module, nn.Linear)}
    for name, tensor in model.state_dict().items():
        module = name.removesuffix(".weight")
        if module.removeprefix("model.layers.") not in linear:
            tensors[name] = tensor
            continue
        rows, columns = tensor.shape
        assert columns % 8 == 0  # whole integers
        tensors[f"{module}.qweight"] = torch.zeros((columns // 8, rows), dtype=torch.int32)
        tensors[f"{module}.scales"] = torch.zeros((-(-columns // 32), rows), dtype=dtype)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps({**config, "quantization_config": quantization}))
    return folder


def planned(source: Any, **settings: Any) -> Plan:
    return planner.plan(source, max_memory={0: 1 << 26}, workload=WORK, **settings)


def linear_elements() -> int:
    """Of the linear weights of one block."""
    block = llama().model.layers[0]
    return sum(module.weight.numel() for module in block.modules() if isinstance(module, nn.Linear))


def test_packed_weights_are_recorded_as_if_they_were_not(tmp_path: Path) -> None:
    plain = planned(saved_in(tmp_path / "plain", dtype=torch.float16))
    packed = planned(packed_in(tmp_path / "packed"))
    assert packed.demands.method == plain.demands.method == "recorded"
    for name, demand in packed.demands.blocks.items():
        before = plain.demands.blocks[name]
        assert demand.exec_bytes == before.exec_bytes
        more = demand.needs_bytes - before.needs_bytes
        unpacked = 2 * linear_elements() if ".layers." in name else 0
        assert unpacked <= more <= 1.3 * unpacked, (name, more, unpacked)
    assert any("gptq 4-bit are counted as unpacked" in note for note in packed.demands.notes)
    assert packed.devices[0].peak_bytes < plain.devices[0].peak_bytes + 3 * linear_elements()
    assert set(packed.predicted_peaks) == {"prefill", "decode"}
    assert packed.predicted_peaks["decode"][0] < packed.predicted_peaks["prefill"][0]


def test_a_plan_in_a_format_counts_what_its_kernels_unpack() -> None:
    model = llama().to(torch.float16)
    plain, packed = planned(model), planned(model, dtype="nf4")
    for name, demand in packed.demands.blocks.items():
        more = demand.needs_bytes - plain.demands.blocks[name].needs_bytes
        assert more == (2 * linear_elements() if ".layers." in name else 0), name


def test_kernels_that_multiply_packed_weights_unpack_nothing(tmp_path: Path) -> None:
    folder = packed_in(tmp_path, {"quant_method": "fp8", "weight_block_size": [32, 32]})
    plan = planned(folder)
    plain = planned(saved_in(tmp_path / "plain", dtype=torch.float16))
    assert {name: each.needs_bytes for name, each in plan.demands.blocks.items()} == {
        name: each.needs_bytes for name, each in plain.demands.blocks.items()
    }
    assert any("multiply packed weights" in note for note in plan.demands.notes)


def test_a_wider_type_to_compute_in_is_counted_and_told(tmp_path: Path) -> None:
    said = {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_compute_dtype": "float32"}
    wide = planned(packed_in(tmp_path / "wide", said))
    same = planned(packed_in(tmp_path / "same", {**said, "bnb_4bit_compute_dtype": "float16"}))
    block = next(name for name in wide.demands.blocks if ".layers." in name)
    more = wide.demands.blocks[block].needs_bytes - same.demands.blocks[block].needs_bytes
    assert more >= 2 * linear_elements()
    assert any("compute in float32" in note for note in wide.demands.notes)


@pytest.mark.parametrize("said", [{"quant_method": "spiral"}, {"quant_method": "torchao", "quant_type": {}}])
def test_a_quantiser_whose_bits_are_not_known_is_refused_by_name(
    tmp_path: Path, said: dict[str, Any]
) -> None:
    folder = packed_in(tmp_path, said)
    with pytest.raises(planner.UnknownMemoryError, match=said["quant_method"]) as caught:
        planned(folder)
    assert caught.value.unknown == said["quant_method"]
    assert planner.plan(folder, max_memory={0: 1 << 26}).devices[0].used_bytes


def test_nothing_packed_is_no_guess(tmp_path: Path) -> None:
    folder = Path(saved_in(tmp_path, dtype=torch.float16))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "quantization_config": GPTQ}))
    with pytest.raises(planner.UnknownMemoryError, match="which weights it packed"):
        planned(folder)


def test_without_torch_the_same_is_added_to_the_formula(tmp_path: Path) -> None:
    folder = packed_in(tmp_path)
    program = (
        "import planner, sys\n"
        f"plan = planner.plan({str(folder)!r}, max_memory={{0: 1 << 26}}, workload={WORK!r})\n"
        "print(plan.demands.method, any('as unpacked' in note for note in plan.demands.notes), 'torch' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=True
    )
    assert done.stdout.split() == ["formula", "True", "False"]

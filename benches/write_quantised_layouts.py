"""Writes what quantisers save of a small Llama: names, element types and shapes, as tests/conformance/quantised_layouts.json.

Run: python benches/write_quantised_layouts.py, where bitsandbytes and torchao are installed; what is not is left as it was.
"""

from __future__ import annotations

import json
import struct
import tempfile
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoModelForCausalLM,
    BitsAndBytesConfig,
    LlamaConfig,
    LlamaForCausalLM,
    TorchAoConfig,
)

LAYOUTS = Path(__file__).parent.parent / "tests" / "conformance" / "quantised_layouts.json"
SIZES = {
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 64,
}


def quantisers() -> Iterator[tuple[str, Callable[[], Any]]]:
    """By name, how a quantiser is told what to do."""
    if find_spec("bitsandbytes"):
        nf4 = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True}
        yield "bitsandbytes nf4, nested", lambda: BitsAndBytesConfig(**nf4)
        yield "bitsandbytes fp4", lambda: BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="fp4")
        yield "bitsandbytes int8", lambda: BitsAndBytesConfig(load_in_8bit=True)
    if find_spec("torchao"):
        from torchao.quantization import Float8WeightOnlyConfig, Int8WeightOnlyConfig

        yield "torchao int8", lambda: TorchAoConfig(Int8WeightOnlyConfig())
        yield "torchao fp8", lambda: TorchAoConfig(Float8WeightOnlyConfig())


def saved(folder: Path) -> dict[str, Any]:
    """The configuration and the tensors of a saved model."""
    raw = (folder / "model.safetensors").read_bytes()
    (length,) = struct.unpack("<Q", raw[:8])
    header = json.loads(raw[8 : 8 + length])
    header.pop("__metadata__", None)
    tensors = {name: [row["dtype"], row["shape"]] for name, row in sorted(header.items())}
    return {"config": json.loads((folder / "config.json").read_text()), "tensors": tensors}


def main() -> None:
    layouts = json.loads(LAYOUTS.read_text()) if LAYOUTS.exists() else {}
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as name:
        plain = Path(name, "plain")
        LlamaForCausalLM(LlamaConfig(**SIZES)).to(torch.bfloat16).save_pretrained(plain)
        for number, (quantiser, told) in enumerate(quantisers()):
            model = AutoModelForCausalLM.from_pretrained(
                plain, quantization_config=told(), dtype=torch.bfloat16, device_map="cpu"
            )
            model.save_pretrained(Path(name, str(number)))
            layouts[quantiser] = saved(Path(name, str(number)))
    LAYOUTS.write_text(json.dumps(layouts, indent=1) + "\n")


if __name__ == "__main__":
    main()

"""Writes what quantisers save of small models, beside the models before: tests/conformance/formats.json.

Names, element types and shapes. bitsandbytes saves folders on the CPU. What needs kernels that a CPU does not have is computed:
fp8 and mxfp4 from transformers' own modules (`quantize_to_mxfp4`: a byte of scale for 32 elements); int4 as `Int4Tensor.from_hp` of
torchao 0.18; GPTQ and AWQ as gptqmodel 7.7 registers buffers (nn_modules/qlinear/__init__.py).

Run: python benches/write_formats.py, where bitsandbytes is installed.
"""

from __future__ import annotations

import json
import math
import re
import struct
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import BitsAndBytesConfig, FineGrainedFP8Config
from transformers.integrations import finegrained_fp8
from transformers.integrations import mxfp4 as mxfp4_modules
from transformers.quantizers.base import get_keys_to_not_convert
from transformers.quantizers.quantizers_utils import should_convert_module

RECORD = Path(__file__).parent.parent / "tests" / "conformance" / "formats.json"
SIZES = {
    "hidden_size": 512,
    "intermediate_size": 1024,
    "num_hidden_layers": 1,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 64,
    "vocab_size": 1000,
}
Tensors = dict[str, list[Any]]


def models() -> Iterator[tuple[str, Any]]:
    """Models by name."""
    yield "llama", transformers.LlamaForCausalLM(transformers.LlamaConfig(**SIZES))
    tied = transformers.Qwen2Config(**SIZES, tie_word_embeddings=True)
    yield "qwen2, tied, with biases", transformers.Qwen2ForCausalLM(tied)
    yield "mixtral", transformers.MixtralForCausalLM(transformers.MixtralConfig(**SIZES, num_local_experts=4))
    experts = {"num_experts": 8, "moe_intermediate_size": 768, "num_experts_per_tok": 2}
    yield "qwen3_moe", transformers.Qwen3MoeForCausalLM(transformers.Qwen3MoeConfig(**SIZES, **experts))
    gpt2 = {
        "n_embd": 512,
        "n_layer": 1,
        "n_head": 8,
        "vocab_size": 1000,
        "bos_token_id": 1,
        "eos_token_id": 1,
    }
    yield "gpt2", transformers.GPT2LMHeadModel(transformers.GPT2Config(**gpt2))
    oss = transformers.GptOssConfig(**SIZES, num_local_experts=4, num_experts_per_tok=2)
    yield "gpt_oss", transformers.GptOssForCausalLM(oss)
    t5 = {"d_model": 512, "d_ff": 1024, "num_layers": 1, "num_heads": 8, "d_kv": 64, "vocab_size": 1000}
    yield "t5", transformers.T5ForConditionalGeneration(transformers.T5Config(**t5))


def quantisers() -> Iterator[tuple[str, Callable[[], Any]]]:
    """By format, how a quantiser that runs here is told of it."""
    four = {"load_in_4bit": True}
    yield "int8", lambda: BitsAndBytesConfig(load_in_8bit=True)
    yield "nf4", lambda: BitsAndBytesConfig(**four, bnb_4bit_quant_type="nf4")
    yield "fp4", lambda: BitsAndBytesConfig(**four, bnb_4bit_quant_type="fp4")
    nested = {**four, "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True}
    yield "nf4-double-quant", lambda: BitsAndBytesConfig(**nested)


def saved(folder: Path) -> Tensors:
    """Tensors of a saved model."""
    raw = (folder / "model.safetensors").read_bytes()
    (length,) = struct.unpack("<Q", raw[:8])
    header = json.loads(raw[8 : 8 + length])
    header.pop("__metadata__", None)
    return {name: [row["dtype"], row["shape"]] for name, row in sorted(header.items())}


WORDS = {
    torch.bfloat16: "BF16",
    torch.float16: "F16",
    torch.float32: "F32",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.uint8: "U8",
    torch.int32: "I32",
}


def listed(model: Any) -> Tensors:
    """Tensors of a live model, each once, as they would be saved."""
    found: Tensors = {}
    seen: set[int] = set()
    scratch = {
        f"{prefix}.{name}"
        for prefix, part in model.named_modules()
        for name in part._non_persistent_buffers_set
    }
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if name not in scratch and id(tensor) not in seen:
            seen.add(id(tensor))
            found[name] = [WORDS[tensor.dtype], list(tensor.shape)]
    return found


def fp8(model: Any) -> Tensors:
    """transformers' own modules; norms of bfloat16 as all of the model, which is not loaded here."""
    with torch.device("meta"):
        other = type(model)(model.config).to(torch.bfloat16)
    finegrained_fp8.replace_with_fp8_linear(other, kept(model), quantization_config=FineGrainedFP8Config())
    other.tie_weights()
    return listed(other)


def mxfp4(model: Any, plain: Tensors) -> Tensors:
    """Blocks of 32 elements in 16 bytes, and a byte of scale for each; of gpt-oss' experts alone."""
    found = dict(plain)
    packed_shapes = {
        name: part.shape for name, part in mxfp4_modules.Mxfp4GptOssExperts(model.config).named_parameters()
    }
    for name in [name for name in plain if name.endswith(("experts.gate_up_proj", "experts.down_proj"))]:
        found.pop(name)
        experts, rows, half = packed_shapes[name.rpartition(".")[2]]
        found[f"{name}_blocks"] = ["U8", [experts, rows, half // 16, 16]]
        found[f"{name}_scales"] = ["U8", [experts, rows, half // 16]]
    return found


def int4(model: Any, plain: Tensors) -> Tensors:
    """Linear modules in groups of 128."""
    found = dict(plain)
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear) and should_convert_module(name, kept(model)):
            rows, columns = module.weight.shape
            if columns % 128 == 0:
                found.pop(f"{name}.weight")
                found[f"{name}._weight_qdata"] = ["I8", [rows, columns // 2]]
                found[f"{name}._weight_scale"] = ["BF16", [columns // 128, rows]]
                found[f"{name}._weight_zero_point"] = ["BF16", [columns // 128, rows]]
    return found


def kept(model: Any) -> list[str]:
    """Keys of modules that transformers' quantisers leave alone."""
    return [*get_keys_to_not_convert(model), *model._keep_in_fp32_modules]


def in_groups(model: Any, plain: Tensors, method: str, bits: int, group: int) -> Tensors:
    """Linear modules of blocks as gptqmodel lays them out, each expert by itself."""
    found = dict(plain)
    for name, shape in linear_shapes(model):
        for gone in [each for each in plain if each.rpartition(".")[0] == name and "bias" not in each]:
            found.pop(gone)
        if name.endswith(".experts"):
            for number in range(model.config.num_local_experts):
                for part, (rows, columns) in expert_shapes(model.config).items():
                    stored = one(method, bits, group, rows, columns)
                    found |= {f"{name}.{number}.{part}.{piece}": row for piece, row in stored.items()}
        else:
            found |= {f"{name}.{part}": row for part, row in one(method, bits, group, *shape).items()}
    return found


def linear_shapes(model: Any) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Linear modules of blocks with outputs and inputs, and experts."""
    for name, module in model.named_modules():
        is_in_block = re.search(r"\.[0-9]+\.", name)
        if is_in_block and type(module).__name__ == "Linear":
            yield name, tuple(module.weight.shape)
        elif is_in_block and type(module).__name__ == "Conv1D":
            yield name, tuple(reversed(module.weight.shape))
        elif name.endswith(".experts"):
            yield name, ()


def expert_shapes(config: Any) -> dict[str, tuple[int, int]]:
    """Outputs and inputs of one expert's modules."""
    width = getattr(config, "moe_intermediate_size", None) or config.intermediate_size
    inner, outer = (width, config.hidden_size), (config.hidden_size, width)
    return {"gate_proj": inner, "up_proj": inner, "down_proj": outer}


def one(method: str, bits: int, group: int, rows: int, columns: int) -> Tensors:
    """One linear module."""
    groups = math.ceil(columns / group)
    scales = {"qzeros": ["I32", [groups, math.ceil(rows * bits / 32)]], "scales": ["F16", [groups, rows]]}
    if method == "awq":
        return {"qweight": ["I32", [columns, math.ceil(rows * bits / 32)]], **scales}
    return {"qweight": ["I32", [math.ceil(columns * bits / 32), rows]], **scales, "g_idx": ["I32", [columns]]}


def computed(name: str, model: Any) -> Iterator[tuple[str, Tensors]]:
    """Formats whose quantisers do not run here, as far as they take the model."""
    plain = listed(model)
    if name == "gpt_oss":
        yield "mxfp4", mxfp4(model, plain)
    elif name != "gpt2":  # it has no linear module but its head
        yield "fp8", fp8(model)
    if name != "gpt2":
        yield "int4", int4(model, plain)
    if name not in ("t5", "gpt_oss"):
        for bits, group in ((4, 128), (3, 64), (8, 32)):
            yield f"gptq-{bits}bit-g{group}", in_groups(model, plain, "gptq", bits, group)
        if name != "gpt2":
            yield "awq-4bit-g128", in_groups(model, plain, "awq", 4, 128)


def main() -> None:
    record = {}
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as name:
        for model_name, made in models():
            plain, model = Path(name, model_name), made.to(torch.bfloat16)
            model.save_pretrained(plain)
            formats = dict(computed(model_name, model))
            for quantiser, told in quantisers():
                loaded = type(model).from_pretrained(
                    plain, quantization_config=told(), dtype=torch.bfloat16, device_map="cpu"
                )
                loaded.save_pretrained(Path(name, f"{model_name} {quantiser}"))
                formats[quantiser] = saved(Path(name, f"{model_name} {quantiser}"))
            config = json.loads((plain / "config.json").read_text())
            record[model_name] = {"config": config, "plain": saved(plain), "formats": formats}
    rows = json.dumps(record, separators=(",", ":"), sort_keys=True)
    RECORD.write_text(rows.replace('},"', '},\n"') + "\n")


if __name__ == "__main__":
    main()

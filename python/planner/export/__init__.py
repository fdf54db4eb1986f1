"""Plans in the words of other engines: what to start, with which arguments, so that stages are cut where the plan has them."""

from planner.export.command import Command
from planner.export.to_deepspeed import deepspeed
from planner.export.to_huggingface import huggingface
from planner.export.to_llama_cpp import llama_cpp
from planner.export.to_megatron import megatron
from planner.export.to_sglang import sglang
from planner.export.to_tensorrt_llm import tensorrt_llm
from planner.export.to_torchtitan import torchtitan
from planner.export.to_vllm import vllm

__all__ = [
    "Command",
    "deepspeed",
    "huggingface",
    "llama_cpp",
    "megatron",
    "sglang",
    "tensorrt_llm",
    "torchtitan",
    "vllm",
]

"""Closed sets of words, each said once: for the settings' schema, the keywords of `plan()` and the records of a plan."""

from __future__ import annotations

from typing import Literal, TypeAlias

# ---- What a user chooses; see planner.settings.schema.Settings

Objective: TypeAlias = Literal["latency", "throughput", "pipeline"]
StrategyName: TypeAlias = Literal[
    "auto", "sequential", "balanced", "balanced_low_0", "latency", "throughput", "pipeline"
]
RunOrder: TypeAlias = Literal["given", "any"]
LongSteps: TypeAlias = Literal["fetch", "fetch_all", "host"]
Maximise: TypeAlias = Literal["speed", "cache"]
Engine: TypeAlias = Literal[
    "planner", "vllm", "sglang", "megatron", "tensorrt_llm", "torchtitan", "deepspeed", "llama_cpp"
]
Mode: TypeAlias = Literal["any", "no_disk", "gpu_only"]
Granularity: TypeAlias = Literal["block", "module", "part", "expert"]
BlockGranularity: TypeAlias = Literal["block", "expert"]  # what the core knows of it
Fill: TypeAlias = Literal["even", "fewest", "in_order"]
Reserve: TypeAlias = Literal["always", "if_offloaded"]
ExecuteOffloaded: TypeAlias = Literal["accelerator", "cpu"]
Cache: TypeAlias = Literal["dynamic", "static", "offloaded", "none"]
Logits: TypeAlias = Literal["last", "all"]
AttentionKernel: TypeAlias = Literal["fused", "efficient", "math"]
Dialect: TypeAlias = Literal["accelerate", "transformers"]

# ---- How a caller of ours plans; see planner.planning.problem.Problem

FilesAsDisk: TypeAlias = Literal["never", "without_budgets", "unless_named"]
ShareCounting: TypeAlias = Literal["in_needs", "beside", "not_at_all"]

# ---- What a plan says

SourceKind: TypeAlias = Literal["module", "checkpoint", "config"]
DeviceKind: TypeAlias = Literal["accelerator", "cpu", "disk"]
RankName: TypeAlias = Literal["default", "computed", "imported", "user", "derived"]
Phase: TypeAlias = Literal["prefill", "decode"]
DemandMethod: TypeAlias = Literal["recorded", "formula"]
SearchStage: TypeAlias = Literal["in_order", "other_order", "tie_position", "scattered", "offload"]
Stage: TypeAlias = SearchStage | Literal["sequential", "balanced", "balanced_low_0"] | Objective
PieceWay: TypeAlias = Literal["resident", "fetched", "beside", "tied"]
RateKind: TypeAlias = Literal["link", "memory", "flops", "weights"]
SequentialRule: TypeAlias = Literal["fits", "tied", "bound", "fallback", "split", "split_tied", "next_device"]
AutoRule: TypeAlias = Literal["resident", "offloaded", "oversized", "first_block", "no_room", "fused_experts"]
TimedRule: TypeAlias = Literal["as_auto", "experts_as_part"]
ReasonRule: TypeAlias = SequentialRule | AutoRule | TimedRule

Asked: TypeAlias = Literal["context_length", "batch_size"]
Limit: TypeAlias = Literal["proven", "undecided", "model", "asked"]

# ---- What a machine says

RateOrigin: TypeAlias = Literal["measured", "table", "user"]

# ---- How a plan says it

Style: TypeAlias = Literal["python", "shell"]

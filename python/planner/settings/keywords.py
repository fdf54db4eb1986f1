"""The settings as keyword arguments, in types: what `plan()` takes, field for field as in the schema."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol, SupportsIndex, TypeAlias, TypedDict, Union

from planner.choices import (
    AttentionKernel,
    Cache,
    Engine,
    ExecuteOffloaded,
    Fill,
    Granularity,
    Logits,
    LongSteps,
    Maximise,
    Mode,
    Reserve,
    RunOrder,
    StrategyName,
)

if TYPE_CHECKING:
    import torch


class MachineLike(Protocol):
    """What has rates: :class:`planner.devices.machine.Machine`."""

    def to_json(self) -> str:
        """As JSON."""


# What is read as each; see planner.settings.schema. Keys of mappings are devices or names: a Mapping's key type would refuse a
# dict[int, int] where int | str is meant.
DeviceLike: TypeAlias = Union[int, str, "torch.device"]
ByteSizeLike: TypeAlias = float | str | SupportsIndex
DTypeLike: TypeAlias = Union[str, "torch.dtype"]


class StrategyKeywords(TypedDict, total=False):
    """A strategy with its options; see the classes of :data:`planner.settings.schema.Strategy`."""

    type: StrategyName
    fill: Fill
    search_steps: int
    fallback_allocation: bool
    reserve: Reserve
    tokens: int | None
    order: RunOrder
    long_steps: LongSteps
    parts: bool
    microbatches: int
    maximise: Maximise


class ModelKeywords(TypedDict, total=False):
    """Facts about the model; see :class:`planner.settings.schema.Model`."""

    model_type: str | None
    dtype: DTypeLike | None
    num_hidden_layers: int | None
    hidden_size: int | None
    num_attention_heads: int | None
    num_key_value_heads: int | None
    head_dim: int | None
    max_position_embeddings: int | None
    num_experts: int | None
    num_experts_per_tok: int | None
    quant_method: str | None


class WorkloadKeywords(TypedDict, total=False):
    """What a model will be run on; see :class:`planner.settings.workload.Workload`."""

    context_length: int | str
    batch_size: int
    prompt_length: int | str | None
    num_beams: int
    encoder_length: int | str | None
    cache: Cache
    cache_dtype: DTypeLike | None
    logits: Logits
    attention_kernel: AttentionKernel
    is_padded: bool
    inputs: Mapping[str, Sequence[int | str]]
    allocator_margin: ByteSizeLike | None


class LoadSettings(TypedDict, total=False):
    """Settings of a plan that say nothing of how a model is loaded."""

    strategy: StrategyName | StrategyKeywords
    max_memory: Mapping[Any, ByteSizeLike] | None
    headroom: Mapping[Any, ByteSizeLike] | None
    mode: Mode
    special_dtypes: Mapping[str, DTypeLike]
    no_split_module_classes: Sequence[str]
    no_split_modules: Sequence[str]
    granularity: Granularity
    pin: Mapping[str, DeviceLike]
    forbid: Mapping[str, Sequence[DeviceLike]]
    keep_together: Sequence[Sequence[str]]
    execute_offloaded: ExecuteOffloaded
    staging_blocks: int
    workload: WorkloadKeywords | None
    machine: MachineLike | Mapping[str, Any] | str | os.PathLike[str] | None
    engine: Engine | None


class PlanSettings(LoadSettings, total=False):
    """All settings of a plan; see :class:`planner.settings.schema.Settings`."""

    dtype: DTypeLike | None
    offload_folder: str | os.PathLike[str] | None
    offload_buffers: bool
    model: ModelKeywords

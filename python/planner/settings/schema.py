"""The planner's own settings: one schema, first user of the engine. A field enters with the code that reads it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Final

from planner.choices import Engine, ExecuteOffloaded, Granularity, Mode
from planner.config.annotations import parse_type
from planner.config.schema import config, setting
from planner.config.types import Leaf
from planner.settings.dtypes import DTYPES, FORMATS, read_dtype, read_element_type
from planner.settings.sizes import read_bytes, read_size_or_share, refuse_bare_number, write_size
from planner.settings.strategies import (
    MOST,
    Auto,
    Balanced,
    BalancedLow0,
    Latency,
    Pipeline,
    Sequential,
    Strategy,
    Throughput,
    counted,
)
from planner.settings.workload import Workload
from planner.spelling import NAMED, device_words, known_device, node_device, shown

__all__ = [
    "DTYPES",
    "FORMATS",
    "SETTINGS",
    "Auto",
    "Balanced",
    "BalancedLow0",
    "Latency",
    "Model",
    "Pipeline",
    "Sequential",
    "Settings",
    "Strategy",
    "Throughput",
    "Workload",
    "read_budget_row",
    "read_bytes",
    "read_device",
    "read_dtype",
    "read_element_type",
]


def read_device(value: object) -> int | str:
    """One spelling for each device: the number of an accelerator, or ``cpu``, ``disk``, ``mps``; behind a computer's name, of several.

    Returns:
        A back end that only torch knows stays as text, as in ``virtual:1``: reading a configuration does not need torch.

    Raises:
        ValueError: not a device.

    Example:
        >>> [read_device(value) for value in (0, "0", "cuda:0", "xpu:1", "cpu", "virtual:1", "a/cuda:1")]
        [0, 0, 0, 1, 'cpu', 'virtual:1', 'a/1']
    """
    device = known_device(value)
    if device is not None:
        return device
    on_node = node_device(value)
    if on_node is not None:
        return f"{on_node[0]}/{on_node[1]}"
    kind, number = device_words(value) or ("", None)
    if not kind or kind in NAMED:
        raise ValueError(f"expected a device such as 0, 'cuda:0', 'cpu' or 'disk', got {shown(value)}")
    return kind if number is None else f"{kind}:{int(number)}"


def read_budget_row(row: object) -> dict[int | str, int]:
    """Budgets by device, read as those of ``max_memory``; None is all that there is.

    Raises:
        ValueError: no budgets, or one device twice.

    Example:
        >>> read_budget_row({"cuda:0": "1KB", "cpu": 2.5})
        {0: 1000, 'cpu': 2}
    """
    if row is not None and not isinstance(row, Mapping):
        raise ValueError(f"expected budgets such as {{0: '80GiB', 'cpu': '200GiB'}}, got {shown(row)}")
    found: dict[int | str, int] = {}
    for key, size in (row or {}).items():
        device = read_device(key)
        if device in found:
            raise ValueError(f"device {device!r} is named twice")
        found[device] = read_bytes(size)
    return found


def _read_name(value: object) -> str:
    """A name of a module, tensor or class: a str that is text. Raises ValueError."""
    if type(value) is not str or value.encode(errors="ignore").decode() != value:
        raise ValueError(f"expected a name, got {shown(value)}")
    return value


_Device = Annotated[int | str, Leaf("a device", read_device)]


def _read_machine(value: object) -> str:
    """A path as it is; of a machine its JSON, which stands for it in a plan. Raises ValueError."""
    if isinstance(value, str) and value.strip():
        return value
    if isinstance(value, os.PathLike):
        return str(os.fspath(value))
    to_json = getattr(value, "to_json", None)
    if to_json is None:
        raise ValueError(f"expected the path of a machine's file, or a machine, got {shown(value)}")
    return " ".join(str(to_json()).split())


_Bytes = Annotated[int, Leaf("a size in bytes", read_bytes, write_size, refuse=refuse_bare_number)]
_Headroom = Annotated[
    int | str,
    Leaf("bytes or a share such as '10%'", read_size_or_share, write_size, refuse=refuse_bare_number),
]
_DType = Annotated[str, Leaf("an element type", read_element_type)]
_LoadedAs = Annotated[str, Leaf("an element type or a format", read_dtype)]
_Name = Annotated[str, Leaf("a name", _read_name)]
_Staged = Annotated[int, counted(1, 1000)]
_Machine = Annotated[str, Leaf("the path of a machine's file, or a machine", _read_machine)]
_Fact = Annotated[int, counted(0, MOST)]


def _head_dim(model: Any, root: object) -> int | None:
    if model.hidden_size is None or not model.num_attention_heads:
        return None
    return int(model.hidden_size) // int(model.num_attention_heads)


@config
class Model:
    """Facts about the model, filled by the import from its ``config.json``; None where it is not known.

    They decide no plan: they stand in it, for the estimate of run-time memory, which reads each of them.

    Args:
        model_type: the family, which tells the kind of cache.
        dtype: what keys, values and activations are computed in.
        num_hidden_layers: layers with a cache.
        hidden_size: numbers in an activation of one token.
        num_attention_heads: heads of a layer.
        num_key_value_heads: heads whose keys and values are cached.
        head_dim: numbers in a key.
        max_position_embeddings: the longest context.
        num_experts: of a mixture, the experts that a router chooses from in one layer.
        num_experts_per_tok: of these, how many one token is sent to.
        quant_method: how weights are packed, and so what they are unpacked into.
    """

    model_type: str | None = None
    dtype: _DType | None = None
    num_hidden_layers: _Fact | None = None
    hidden_size: _Fact | None = None
    num_attention_heads: _Fact | None = None
    num_key_value_heads: _Fact | None = None
    head_dim: _Fact | None = setting(default=None, compute=_head_dim)
    max_position_embeddings: _Fact | None = None
    num_experts: _Fact | None = None
    num_experts_per_tok: _Fact | None = None
    quant_method: str | None = None


@config
class Settings:
    """Everything that decides a plan, apart from the model itself.

    Args:
        strategy: how devices are filled.
        max_memory: budget by device; empty or None for all that is detected, else only what is named.
        headroom: what stays free of a budget, by device, "all" for every device without an entry of its own, for which a
            single value is short; None for a tenth of what was detected and nothing of what was given.
        mode: whether something may lie on cpu and disk ("any"), not on disk ("no_disk"), or on accelerators only.
        dtype: what the weights will be loaded as: an element type, or a quantiser's format such as "nf4", with what it keeps wide
            and the scales it adds; None for what they are.
        special_dtypes: element type by name of a tensor, against ``dtype``.
        no_split_module_classes: classes, or base classes, whose modules stay on one device; empty for the model's own. The
            root is taken apart whatever its class.
        no_split_modules: paths of modules that stay on one device; "" is the whole model.
        granularity: what a block is: "block", "module" (blocks that would be offloaded are taken apart, unless they were
            named here), "part" (the MLP or the experts of a block, which keep nothing, apart from the rest of it), "expert" (each
            expert is a block).
        pin: device by path of a module, or by glob: ``*`` is any characters, ``"*.experts"`` all modules of that name. What a glob
            matches inside a block becomes a block of its own; of pins that meet, that of the inner name counts, and before a glob
            what is written out.
        forbid: devices that a module may not lie on, by path or glob.
        keep_together: groups of paths and globs that share a device.
        execute_offloaded: where offloaded blocks run.
        staging_blocks: blocks for which room is kept at once while they are streamed.
        offload_folder: where disk offload would go; without it disk is not detected.
        offload_buffers: whether buffers are offloaded with the parameters.
        model: facts about the model.
        workload: what the model will be run on, whose caches and activations count then; None, the default, counts weights alone.
        machine: what devices do in a second, for strategies that go by time: the path of a file, as `planner probe` writes it, its
            text, a `planner.Machine`, or a mapping of what its file says (in a file of settings, a path: relative to the working
            directory, as all paths are); None for the table of known cards.
        engine: what runs the plan, where it is not this process: each stage has whole layers, at least one; what comes before the
            layers goes with the first and what comes after with the last, tied embeddings with both, which counts them twice; nothing
            is offloaded, but for "llama_cpp", which has the input embedding and the first layers on the host. None for anything.
    """

    strategy: Strategy = Auto()
    max_memory: Mapping[_Device, _Bytes] | None = setting(default={}, whole=True)
    headroom: Mapping[_Device, _Headroom] | None = setting(default=None, scalar_key="all")
    mode: Mode = "any"
    dtype: _LoadedAs | None = None
    special_dtypes: Mapping[_Name, _DType] = setting(default={})
    no_split_module_classes: tuple[_Name, ...] = ()
    no_split_modules: tuple[_Name, ...] = ()
    granularity: Granularity = "block"
    pin: Mapping[_Name, _Device] = setting(default={})
    forbid: Mapping[_Name, tuple[_Device, ...]] = setting(default={})
    keep_together: tuple[tuple[_Name, ...], ...] = ()
    execute_offloaded: ExecuteOffloaded = "accelerator"
    staging_blocks: _Staged = 1
    offload_folder: Path | None = None
    offload_buffers: bool = False
    model: Model = Model()
    workload: Workload | None = None
    machine: _Machine | None = None
    engine: Engine | None = None


SETTINGS: Final = parse_type(Settings)
"""The schema as a type, for code that reads paths."""

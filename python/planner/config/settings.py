"""The planner's own settings: one schema, first user of the engine. A field enters with the code that reads it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Final, Literal

from planner.config.kinds import Leaf, parse_type
from planner.config.problem import suggestion
from planner.config.schema import config, setting
from planner.units import parse_bytes

__all__ = [
    "DTYPES",
    "SETTINGS",
    "Auto",
    "Balanced",
    "BalancedLow0",
    "Bytes",
    "DType",
    "Device",
    "Model",
    "Sequential",
    "Settings",
    "Strategy",
    "read_device",
    "read_dtype",
]

_DEVICE = re.compile(r"[a-z]+(:[0-9]{1,9})?")

DTYPES: Final = (
    *("float64", "float32", "float16", "bfloat16"),
    *(
        "float8_e4m3fn",
        "float8_e4m3fnuz",
        "float8_e5m2",
        "float8_e5m2fnuz",
        "float8_e8m0fnu",
        "float4_e2m1fn_x2",
    ),
    *(
        "int64",
        "int32",
        "int16",
        "int8",
        "uint64",
        "uint32",
        "uint16",
        "uint8",
        "bool",
        "complex64",
        "complex128",
    ),
)
"""torch's names of element types; listed here because reading a configuration must not need torch."""

_SHORT_DTYPES: Final = {"fp64": "float64", "fp32": "float32", "fp16": "float16", "bf16": "bfloat16"}


def read_device(said: object) -> int | str:
    """One spelling for each device: the number of an accelerator, or ``cpu``, ``disk``, ``mps``, ``xpu:1``.

    Raises:
        ValueError: not a device, or ``cuda`` without a number.

    Example:
        >>> [read_device(said) for said in (0, "0", "cuda:0", "cpu")]
        [0, 0, 0, 'cpu']
    """
    if type(said) is int and said >= 0:
        return said
    name = said if type(said) is str else ""
    number = name.removeprefix("cuda:")
    if re.fullmatch("[0-9]{1,9}", number):
        return int(number)
    if name == "cuda" or not _DEVICE.fullmatch(name):
        raise ValueError(f"expected a device such as 0, 'cuda:0', 'cpu' or 'disk', got {str(said)[:80]!r}")
    return name


def read_bytes(said: object) -> int:
    """Bytes from a count or a size in words. Raises ValueError."""
    if type(said) is str:
        return parse_bytes(said)
    if type(said) is not int or said < 0:
        raise ValueError(f"expected a number of bytes or a size such as '10GiB', got {str(said)[:80]!r}")
    return said


def read_room(said: object) -> int | str:
    """Bytes, or a share of the budget as in "10%". Raises ValueError."""
    if type(said) is str and said.rstrip().endswith("%"):
        share = said.rstrip()[:-1].strip()
        if not re.fullmatch(r"[0-9]{1,3}(\.[0-9]{1,6})?", share) or float(share) > 100:
            raise ValueError(f"expected a share from 0% to 100%, got {said[:80]!r}")
        return f"{float(share):g}%"
    return read_bytes(said)


def read_dtype(said: object) -> str:
    """torch's name of an element type, from the name, with or without ``torch.``, or from the object itself.

    Raises:
        ValueError: no such type.

    Example:
        >>> read_dtype("torch.bfloat16"), read_dtype("fp16")
        ('bfloat16', 'float16')
    """
    is_torch = (type(said).__module__, type(said).__qualname__) == ("torch", "dtype")
    name = str(said).removeprefix("torch.") if is_torch or type(said) is str else ""
    name = _SHORT_DTYPES.get(name, name)
    if name not in DTYPES:
        raise ValueError(
            f"expected an element type such as 'float16', got {str(said)[:80]!r}{suggestion(name, DTYPES)}"
        )
    return name


Device = Annotated[int | str, Leaf("a device", read_device)]
Bytes = Annotated[int, Leaf("a size in bytes", read_bytes)]
Room = Annotated[int | str, Leaf("bytes or a share such as '10%'", read_room)]
DType = Annotated[str, Leaf("an element type", read_dtype)]


@config(tag="sequential")
class Sequential:
    """Fill the devices one after the other."""

    fallback_allocation: bool = False
    reserve: Literal["always", "if_offloaded"] = "always"


@config(tag="balanced")
class Balanced(Sequential):
    """Spread the model evenly over the accelerators."""


@config(tag="balanced_low_0")
class BalancedLow0(Sequential):
    """Spread evenly, but leave the first accelerator room for what generation needs."""


@config(tag="auto")
class Auto:
    """As little offloaded as can be, proven where the search ends."""

    fill: Literal["even", "fewest", "in_order"] = "even"
    search_steps: int = 120_000


Strategy = Auto | Sequential | Balanced | BalancedLow0
"""All strategies. ``type`` picks one: ``strategy: balanced`` is short for ``strategy: {type: balanced}``."""


def _head_dim(model: Any, root: object) -> int | None:
    if model.hidden_size is None or not model.num_attention_heads:
        return None
    return int(model.hidden_size) // int(model.num_attention_heads)


@config
class Model:
    """Facts about the model, filled by the import from its ``config.json``; None means that nobody said it."""

    model_type: str | None = None
    dtype: DType | None = None
    num_hidden_layers: int | None = None
    hidden_size: int | None = None
    num_attention_heads: int | None = None
    num_key_value_heads: int | None = None
    head_dim: int | None = setting(default=None, compute=_head_dim)
    max_position_embeddings: int | None = None
    tie_word_embeddings: bool | None = None
    quant_method: str | None = None


@config
class Settings:
    """Everything that decides a plan, apart from the model itself.

    Args:
        strategy: how devices are filled.
        max_memory: budget by device; empty for all that is detected, else only what is named.
        headroom: what stays free of a budget, by device, "all" for every device without a word of its own; None for a tenth
            of what was detected and nothing of what was said.
        mode: whether something may lie on cpu and disk ("any"), not on disk ("no_disk"), or on accelerators only.
        dtype: what the weights will be loaded as; None for what they are.
        special_dtypes: element type by name of a tensor, against ``dtype``.
        no_split_module_classes: classes, or base classes, whose modules stay on one device; empty for the model's own.
        no_split_modules: paths of modules that stay on one device.
        granularity: what a block is: "block", "module" (blocks that would be offloaded are taken apart, unless they were
            named here), "expert" (each expert is a block).
        pin: device by path of a module.
        forbid: devices that a module may not lie on, by path.
        keep_together: groups of paths that share a device.
        execute_offloaded: where offloaded blocks run.
        staging_blocks: blocks for which room is kept at once while they are streamed.
        offload_folder: where disk offload would go; without it disk is not detected.
        offload_buffers: whether buffers are offloaded with the parameters.
        model: facts about the model.
    """

    strategy: Strategy = Auto()
    max_memory: Mapping[Device, Bytes] = setting(default={}, whole=True)
    headroom: Mapping[Device, Room] | None = None
    mode: Literal["any", "no_disk", "gpu_only"] = "any"
    dtype: DType | None = None
    special_dtypes: Mapping[str, DType] = setting(default={})
    no_split_module_classes: tuple[str, ...] = ()
    no_split_modules: tuple[str, ...] = ()
    granularity: Literal["block", "module", "expert"] = "block"
    pin: Mapping[str, Device] = setting(default={})
    forbid: Mapping[str, tuple[Device, ...]] = setting(default={})
    keep_together: tuple[tuple[str, ...], ...] = ()
    execute_offloaded: Literal["accelerator", "cpu"] = "accelerator"
    staging_blocks: int = 1
    offload_folder: Path | None = None
    offload_buffers: bool = False
    model: Model = Model()


SETTINGS: Final = parse_type(Settings)
"""The schema as a type, for code that reads paths."""

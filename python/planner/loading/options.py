"""What `load` was asked to do, checked before a file is opened."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Final, Literal, get_args

import torch

from planner.arguments import path_text
from planner.errors import InvalidInputError
from planner.loading.targets import CastRule, Leniency
from planner.names import text_set
from planner.plans.plan import Plan
from planner.settings.dtypes import read_dtype
from planner.spelling import shown

__all__ = [
    "Convert",
    "Copy",
    "LoadOptions",
    "Progress",
    "Read",
    "cast_rule",
    "planned_dtypes",
    "wanted_dtype",
]

Read = Literal["auto", "cached", "direct"]
Convert = Literal["fetch", "store"]
Copy = Literal["auto"] | bool
Progress = Callable[[int, int], object]
"""Gets bytes that are done, and bytes in all."""

_NONE: Final[Mapping[str, Any]] = MappingProxyType({})
_LOADED_AS: Final = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
_SPECIAL: Final = "special_dtypes."
# Packed numbers, which mean nothing without the scales beside them.
_PACKED_BITS: Final = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadOptions:
    """How a checkpoint is loaded.

    Args:
        dtype_of: the dtype that each tensor becomes.
        leniency: what may be missing or too much.
        rename: names in the files to names in the model.
        copy: whether what stays on the CPU is copied out of the files; "auto" where their file system is slow or remote.
        read: how offloaded blocks are read: through the page cache, past it, or as fits each block.
        convert: whether what is on disk in another form than in memory is made at each fetch, or written once.
        offload_folder: where it is written to.
        progress: what is told of bytes done and bytes in all; None for a bar on a terminal.
        free_bytes: memory on the CPU that the plan has left for buffers; None where there is no plan that says so.
    """

    dtype_of: CastRule
    leniency: Leniency
    rename: Mapping[str, str] | Callable[[str], str | None] | None = None
    copy: Copy = "auto"
    read: Read = "auto"
    convert: Convert = "fetch"
    offload_folder: str | None = None
    progress: Progress | None = None
    free_bytes: int | None = None

    @classmethod
    def of(
        cls,
        *,
        dtype_of: CastRule,
        strict: Any,
        allow_missing: Any,
        allow_unexpected: Any,
        rename: Any,
        copy: Any,
        read: Any,
        convert: Any,
        offload_folder: Any,
        progress: Any,
    ) -> LoadOptions:
        """Options as a caller says them. Raises InvalidInputError."""
        _require_word("read", read, get_args(Read))
        _require_word("convert", convert, get_args(Convert))
        _require_flag("strict", strict)
        if copy != "auto":
            _require_flag("copy", copy, " or 'auto'")
        if not (rename is None or isinstance(rename, Mapping) or callable(rename)):
            raise InvalidInputError(f"rename maps names in files to names in the model, not {shown(rename)}")
        if not (progress is None or callable(progress)):
            raise InvalidInputError(
                f"progress is called with bytes done and bytes in all; {shown(progress)} cannot be called"
            )
        if convert == "store" and offload_folder is None:
            raise InvalidInputError(
                "convert='store' writes what is converted to a folder: name it with offload_folder=…"
            )
        return cls(
            dtype_of=dtype_of,
            leniency=Leniency(
                strict=strict,
                allow_missing=tuple(sorted(text_set(allow_missing, "allow_missing"))),
                allow_unexpected=tuple(sorted(text_set(allow_unexpected, "allow_unexpected"))),
            ),
            rename=rename,
            copy=copy,
            read=read,
            convert=convert,
            offload_folder=None
            if offload_folder is None
            else os.path.abspath(path_text(offload_folder, "offload_folder")),
            progress=progress,
        )


def cast_rule(dtype: Any, special_dtypes: Mapping[str, Any] = _NONE) -> CastRule:
    """The dtype of each tensor: as it is stored ("auto"), or one for all floating tensors that are not packed.

    Args:
        dtype: "auto", a dtype or its name.
        special_dtypes: the same by name of a tensor, before the general one.

    Raises:
        InvalidInputError: another word, or a dtype that no model computes in.
    """
    general = wanted_dtype(dtype)
    special = {name: wanted_dtype(each) for name, each in special_dtypes.items()}
    if general is None and not special:
        return _as_stored

    def cast_some(name: str, stored: torch.dtype, _found: Any) -> torch.dtype:
        is_plain = stored.is_floating_point and stored.itemsize * 8 > _PACKED_BITS
        return (special.get(name, general) or stored) if is_plain else stored

    return cast_some


def planned_dtypes(plan: Plan, dtype: Any) -> tuple[Any, Mapping[str, Any]]:
    """What a plan was made for, where a load says nothing else: its dtype, and those of single tensors."""
    said = {path: setting.value for path, setting in plan.settings.items()}
    if dtype == "auto":
        dtype = said.get("dtype") or "auto"
    # A plan lists what is in a mapping one by one.
    special = {
        path.removeprefix(_SPECIAL): value for path, value in said.items() if path.startswith(_SPECIAL)
    }
    return dtype, special


def wanted_dtype(dtype: Any) -> torch.dtype | None:
    """The one dtype that floating tensors become; None for "auto". Raises InvalidInputError."""
    if isinstance(dtype, str) and dtype == "auto":
        return None
    named = dtype if isinstance(dtype, torch.dtype) else _named_dtype(dtype)
    if named not in _LOADED_AS:
        words = ", ".join(str(each).removeprefix("torch.") for each in _LOADED_AS)
        raise InvalidInputError(
            f"dtype is 'auto' (as stored) or one of {words}; got {shown(dtype)} (a quantiser's format is made by from_pretrained)"
        )
    return named


def _as_stored(_name: str, stored: torch.dtype, _found: Any) -> torch.dtype:
    return stored


def _named_dtype(dtype: Any) -> torch.dtype | None:
    try:
        found = getattr(torch, read_dtype(dtype), None)
    except ValueError:
        return None
    return found if isinstance(found, torch.dtype) else None


def _require_word(what: str, word: Any, words: Iterable[str]) -> None:
    if not (isinstance(word, str) and word in words):
        raise InvalidInputError(f"{what} is one of {', '.join(map(repr, words))}, not {shown(word)}")


def _require_flag(what: str, flag: Any, or_else: str = "") -> None:
    if not isinstance(flag, bool):
        raise InvalidInputError(f"{what} is True or False{or_else}, not {shown(flag)}")

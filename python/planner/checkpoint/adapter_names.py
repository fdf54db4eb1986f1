"""Tensors of an adapter in the base model that it changes: each is counted in the module that it belongs to.

A device map is about the base model, which is loaded with it before peft wraps any module; so a module that peft makes, such as
``q_proj.lora_A.default``, has no key of its own. Its tensor stands as ``q_proj.lora_A``, beside ``q_proj.weight``.

Source: names as saved by ``get_peft_model_state_dict``, sizes as ``cast_adapter_dtype`` makes them, peft 0.21.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final, Self

from planner.checkpoint.files import Headers

_PREFIX: Final = "base_model."
_MODEL: Final = "base_model.model."
_COPIED: Final = ("weight", "bias")
_WRAPPED: Final = "base_layer"
_COPY: Final = "modules_to_save"
# Of these floats peft makes 32 bits when it loads them, whatever the base model is in.
_MADE_OF: Final = ("F32", "F16", "BF16", "F8_E4M3", "F8_E5M2")
_MADE_BITS: Final = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterFile:
    """The tensors of an adapter.

    Args:
        path: where they lie.
        copied: ends of names of the modules that it has copies of, beside the base's own (``modules_to_save``).
    """

    path: str
    copied: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterNames:
    """Names of an adapter's tensors.

    Args:
        stored: as the adapter's file has them.
        copied: ends of names of the modules that it has copies of.
    """

    stored: frozenset[str] = field(default_factory=frozenset)
    copied: tuple[str, ...] = ()

    @classmethod
    def among(cls, names: Iterable[str], adapter: AdapterFile | None) -> Self:
        """Those among the names in the files of a model and its adapter, if it has one."""
        if adapter is None:
            return cls()
        ours = frozenset(name for name in names if name.startswith(_PREFIX))
        return cls(stored=ours, copied=adapter.copied)

    def owners(self, texts: Iterable[str], is_weight: Callable[[str], bool]) -> Mapping[str, tuple[str, str]]:
        """Of names, or their general forms, that are the adapter's: the name of the weight that each belongs to, and how it is
        called beside that; "" where it takes the place of a tensor of the base.

        Args:
            is_weight: whether the base has a tensor of this name.
        """
        if not self.stored:
            return {}
        ours = (text for text in texts if text.startswith(_PREFIX))
        return {text: found for text in ours if (found := self._owner(text, is_weight)) is not None}

    def fixed_bits(
        self, headers: Headers, live_names: Callable[[Mapping[int, str]], Mapping[int, str]]
    ) -> dict[str, int]:
        """Bits of the tensors that peft makes of a type of its own, by live name.

        Args:
            live_names: what rows of the headers with these names become.
        """
        if not self.stored:
            return {}
        rows = {row: entry for row, entry in enumerate(headers.rows()) if entry[0] in self.stored}
        found: dict[str, int] = {}
        for row, live in live_names({row: entry[0] for row, entry in rows.items()}).items():
            _, dtype, shape, _ = rows[row]
            if dtype in _MADE_OF and not live.rpartition(".")[2].startswith(_COPY):
                found[live] = found.get(live, 0) + math.prod(shape) * _MADE_BITS
        return found

    def _owner(self, text: str, is_weight: Callable[[str], bool]) -> tuple[str, str] | None:
        name = text.removeprefix(_MODEL) if text.startswith(_MODEL) else text.removeprefix(_PREFIX)
        parts = name.split(".")
        for end in range(len(parts) - 1, 0, -1):
            module = ".".join(parts[:end])
            if is_weight(f"{module}.weight"):
                return f"{module}.weight", self._called(module, parts[end:])
        return None

    def _called(self, module: str, own: list[str]) -> str:
        """What a tensor of the adapter is called in the module that it belongs to."""
        if own[0] == _WRAPPED:
            return ""
        if own[-1] in _COPIED and len(own) == 1:
            # A trained bias or embedding is loaded over the base's; a copy stands beside it.
            return f"{_COPY}_{own[0]}" if module.endswith(self.copied) else ""
        return "_".join(own[:-1] if own[-1] == _COPIED[0] else own)

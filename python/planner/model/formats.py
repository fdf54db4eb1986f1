"""Formats that quantisers write, as a table: what each converts, and the bytes that it takes."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final, Literal

from planner.settings.dtypes import GROUPED_FORMAT

Kind = Literal["linear", "derived", "conv1d", "experts", "gpt_oss_experts"]
"""A weight that quantisers know: of ``nn.Linear`` itself, of a class derived from it, of transformers' ``Conv1D``, and of all experts
of a layer in one tensor, in general and of gpt-oss."""

# How many rows and columns there are counts little against elements, so a square, and experts of this width, are near enough: at
# widths from 512 to 8192, the difference is below one percent of the weight. What is converted at all needs the true width.
_EXPERT_WIDTH = 1024
_FP8_EDGE = 128
_FP8_TILE = _FP8_EDGE * _FP8_EDGE
_INT4_GROUP = 128
_LINEAR_AND_EXPERTS: Final[frozenset[Kind]] = frozenset(("linear", "derived", "experts", "gpt_oss_experts"))


def _has_whole_groups(elements: int, width: int) -> bool:
    """Whether rows end where groups of torchao do; where no width is known, whether all rows together do."""
    return (width or elements) % _INT4_GROUP == 0


def _has_whole_tiles(elements: int, width: int) -> bool:
    """Whether rows and columns end where tiles do; where no width is known, whether there can be whole tiles."""
    if not width:
        return elements % _FP8_TILE == 0
    return width % _FP8_EDGE == 0 and elements // width % _FP8_EDGE == 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Format:
    """How one quantiser stores the weights that it converts.

    Args:
        name: as users write it.
        quantiser: who writes it.
        converts: the kinds of weights that become it; all others stay as they are.
        element_bits: of each element.
        scale_bits: by number of elements that share them, bits of scales and zero points.
        line_bits: bits for each row, or for each column.
        weight_bytes: bytes of each weight, however large.
        is_of_blocks: only weights in the model's repeated blocks are converted.
        takes: whether a weight of so many elements, in rows of such a width (0: not known), is converted.
        needs: what it must be for that, in words.
    """

    name: str
    quantiser: str
    converts: frozenset[Kind]
    element_bits: int
    scale_bits: Mapping[int, int]
    line_bits: int = 0
    weight_bytes: int = 0
    is_of_blocks: bool = False
    takes: Callable[[int, int], bool] = lambda elements, _: elements > 0
    needs: str = ""

    @property
    def shown_kinds(self) -> str:
        """What it converts, in words."""
        words = {
            "linear": "nn.Linear",
            "conv1d": "Conv1D",
            "experts": "experts in one tensor",
            "gpt_oss_experts": "the experts of gpt-oss",
        }
        return " and ".join(shown for kind, shown in words.items() if kind in self.converts)

    def stored_bits(self, elements: int, kind: Kind) -> int:
        """Bits of a weight in this format, in whole bytes.

        Example:
            >>> format_named("nf4").stored_bits(4096 * 4096, "linear") // 8 / 2**20
            9.000137329101562
        """
        scales = sum(bits * math.ceil(elements / shared) for shared, bits in self.scale_bits.items())
        is_fused = kind in ("experts", "gpt_oss_experts")
        lines = elements // _EXPERT_WIDTH if is_fused else math.isqrt(elements)
        bits = elements * self.element_bits + scales + lines * self.line_bits
        return 8 * (math.ceil(bits / 8) + self.weight_bytes)


def _bitsandbytes(
    name: str, element_bits: int, scale_bits: Mapping[int, int], *, line_bits: int = 0, weight_bytes: int
) -> Format:
    """Source: ``replace_with_bnb_linear``, transformers 5.23, integrations/bitsandbytes.py: ``nn.Linear`` itself and ``Conv1D``; experts
    in one tensor stay wide."""
    return Format(
        name=name,
        quantiser="bitsandbytes",
        converts=frozenset(("linear", "conv1d")),
        element_bits=element_bits,
        scale_bits=scale_bits,
        line_bits=line_bits,
        weight_bytes=weight_bytes,
    )


_NAMED: Final[Mapping[str, Format]] = MappingProxyType(
    {
        known.name: known
        for known in (
            # bitsandbytes 0.50, Int8Params: a float32 in SCB for each row, and one byte, weight_format.
            _bitsandbytes("int8", 8, {}, line_bits=32, weight_bytes=1),
            # bitsandbytes 0.50, functional.quantize_4bit: absmax of 64 elements as float32; quant_map of 16 float32, and
            # the state, about 80 bytes of JSON.
            _bitsandbytes("nf4", 4, {64: 32}, weight_bytes=64 + 80),
            _bitsandbytes("fp4", 4, {64: 32}, weight_bytes=64 + 80),
            # The same with bnb_4bit_use_double_quant: absmax in a byte, with a float32 for 256 of them; nested_quant_map of 256
            # float32, and a longer state.
            _bitsandbytes("nf4-double-quant", 4, {64: 8, 64 * 256: 32}, weight_bytes=64 + 1024 + 170),
            # torchao 0.18, Int4WeightOnlyConfig: scale and zero point of 128 elements in 16 bits each. What is converted:
            # TorchAoHfQuantizer.param_needs_quantization, transformers 5.23.
            Format(
                name="int4",
                quantiser="torchao",
                converts=frozenset(("linear", "derived")),
                element_bits=4,
                scale_bits={128: 32},
                takes=_has_whole_groups,
                needs=f"rows of a multiple of {_INT4_GROUP}",
            ),
            # transformers 5.23, integrations/finegrained_fp8.py: replace_with_fp8_linear for what is converted, FP8Linear and
            # FP8Experts for a float32 by tile of 128 × 128; Fp8Quantize leaves what has no whole tiles.
            Format(
                name="fp8",
                quantiser="transformers (FineGrainedFP8Config)",
                converts=frozenset(("linear", "experts")),
                element_bits=8,
                scale_bits={_FP8_TILE: 32},
                takes=_has_whole_tiles,
                needs=f"rows and columns of multiples of {_FP8_EDGE}",
            ),
            # transformers 5.23, integrations/mxfp4.py: replace_with_mxfp4_linear takes gpt-oss' experts alone; a byte of
            # scale for 32 elements.
            Format(
                name="mxfp4",
                quantiser="transformers (Mxfp4Config)",
                converts=frozenset(("gpt_oss_experts",)),
                element_bits=4,
                scale_bits={32: 8},
            ),
        )
    }
)


def format_named(name: str) -> Format | None:
    """The format of a name as :func:`planner.settings.dtypes.read_dtype` spells it; None for an element type.

    Example:
        >>> format_named("awq-4bit-g128").element_bits, format_named("float16")
        (4, None)
    """
    grouped = GROUPED_FORMAT.fullmatch(name)
    if grouped is None:
        return _NAMED.get(name)
    is_gptq = name.startswith("gptq")
    bits = int(grouped["bits"] or 4)
    # gptqmodel 7.7, nn_modules/qlinear/__init__.py, GPTQQuantLinear and AWQuantLinear: scales of 16 bits and zero points of
    # `bits` by group; with GPTQ, g_idx has an int32 for each column. Both convert the linear modules of the blocks, each
    # expert by itself; Conv1D is in optimum's and gptqmodel's lists for GPTQ, and not in `replace_with_awq_linear`.
    return Format(
        name=name,
        quantiser="gptqmodel",
        converts=_LINEAR_AND_EXPERTS | ({"conv1d"} if is_gptq else set()),
        element_bits=bits,
        scale_bits={int(grouped["group"]): 16 + bits},
        line_bits=32 if is_gptq else 0,
        is_of_blocks=True,
    )

"""What a model will be run on: the lengths, batches and caches that run-time memory is planned for."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any, Final

from planner.choices import AttentionKernel, Cache, Logits
from planner.config.schema import config, rule, setting
from planner.config.types import Leaf
from planner.settings.dtypes import read_cache_dtype
from planner.settings.sizes import read_size_or_share, refuse_bare_number, write_size
from planner.spelling import shown

# JSON's readers tell whole numbers apart up to here.
_MOST: Final = 2**53
_IN_THOUSANDS: Final = re.compile(r"([0-9]{1,16})([kKmM]?)")
_FACTORS: Final = {"": 1, "k": 2**10, "m": 2**20}


def read_tokens(value: object) -> int:
    """A number of tokens of at least 1, also as people write it: k is 1024.

    Raises:
        ValueError: no such number.

    Example:
        >>> read_tokens("32k"), read_tokens(4096)
        (32768, 4096)
    """
    written = _IN_THOUSANDS.fullmatch(value.strip()) if isinstance(value, str) else None
    count = int(written[1]) * _FACTORS[written[2].lower()] if written else value
    if type(count) is not int or not 1 <= count <= _MOST:
        raise ValueError(
            f"expected a number of tokens of at least 1, such as 4096 or '32k', got {shown(value)}"
        )
    return count


def _read_count(value: object) -> int:
    """An int of at least 1. Raises ValueError."""
    if type(value) is not int or not 1 <= value <= _MOST:
        raise ValueError(f"expected an int of at least 1, got {shown(value)}")
    return value


def _read_dimension(value: object) -> int | str:
    """A length of one dimension of an input: an int, or a word for what the workload says. Raises ValueError."""
    if isinstance(value, str) and value in ("batch", "context"):
        return str(value)
    if type(value) is not int or not 1 <= value <= _MOST:
        raise ValueError(f"expected an int of at least 1, 'batch' or 'context', got {shown(value)}")
    return value


def _read_argument(value: object) -> str:
    """The name of an argument. Raises ValueError."""
    if type(value) is not str or not value.isidentifier():
        raise ValueError(f"expected the name of an argument of forward, got {shown(value)}")
    return value


_Tokens = Annotated[int, Leaf("a number of tokens", read_tokens)]
_Count = Annotated[int, Leaf("an int of at least 1", _read_count)]
_Dimension = Annotated[int | str, Leaf("a length, 'batch' or 'context'", _read_dimension)]
_Argument = Annotated[str, Leaf("the name of an argument", _read_argument)]
_DType = Annotated[str, Leaf("a floating-point type", read_cache_dtype)]
_Margin = Annotated[
    int | str,
    Leaf("bytes or a share such as '25%'", read_size_or_share, write_size, refuse=refuse_bare_number),
]


def _all_at_once(workload: Any, root: object) -> int:
    return int(workload.context_length)


@config
class Workload:
    """What a model will be run on.

    Args:
        context_length: tokens that a sequence reaches, prompt and answer together.
        batch_size: sequences at once.
        prompt_length: tokens of the first forward; by default all of the context.
        num_beams: sequences that are searched for each one that is asked for.
        encoder_length: tokens of an encoder's input, where a model has an encoder; by default as many as the prompt's.
        cache: how keys and values are kept: grown ("dynamic"), all at once ("static"), on the cpu but for two layers
            ("offloaded"), or not at all ("none").
        cache_dtype: their element type; None for what the model computes in.
        logits: whether those of the last token are computed, as ``generate()`` asks, or of all, as a plain forward does.
        attention_kernel: which of torch's kernels attention runs: "fused" where torch may choose it, "efficient", or "math", which
            holds all scores at once.
        is_padded: whether prompts have padding, so that a mask is needed.
        inputs: further arguments of ``forward`` and their shapes, in numbers and the words "batch" and "context".
        allocator_margin: what torch's allocator may take beyond what is asked of it, in bytes or as a share of the caches and
            activations; None for a quarter of these and 96 MiB on CUDA devices, and nothing elsewhere.
    """

    context_length: _Tokens
    batch_size: _Count = 1
    prompt_length: _Tokens | None = setting(default=None, compute=_all_at_once)
    num_beams: _Count = 1
    encoder_length: _Tokens | None = None
    cache: Cache = "dynamic"
    cache_dtype: _DType | None = None
    logits: Logits = "last"
    attention_kernel: AttentionKernel = "fused"
    is_padded: bool = False
    inputs: Mapping[_Argument, tuple[_Dimension, ...]] = setting(default={})
    allocator_margin: _Margin | None = None

    @rule
    def prompt_is_within_context(self, root: Any) -> str | None:
        """A prompt is the beginning of its context."""
        if self.prompt_length is not None and self.prompt_length > self.context_length:
            return (
                f"a prompt of {self.prompt_length} tokens is longer than the context of {self.context_length}: "
                "context_length counts the prompt and what is generated"
            )
        return None

    @property
    def rows(self) -> int:
        """Sequences that the model sees at once: one for each beam."""
        return self.batch_size * self.num_beams

    @property
    def prompt_tokens(self) -> int:
        """Tokens of the first forward."""
        return self.prompt_length or self.context_length

    @property
    def encoder_tokens(self) -> int:
        """Tokens of an encoder's input, where a model has an encoder."""
        return self.encoder_length or self.prompt_tokens

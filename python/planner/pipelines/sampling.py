"""From logits to the next token: greedy, or drawn by transformers' own rules."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor

from planner.errors import InvalidInputError
from planner.spelling import shown

__all__ = ["Sampler", "Sampling"]

_HOTTEST: Final = 1e30


@dataclass(frozen=True, slots=True)
class Sampling:
    """How tokens are chosen.

    Args:
        do_sample: whether they are drawn; otherwise the likeliest is taken.
        temperature: what logits are divided by.
        top_k: of how many of the likeliest is drawn; None of all.
        top_p: of the likeliest that have this share together.
        seed: where drawing begins; None goes on with torch's own generator.
    """

    do_sample: bool = False
    temperature: float = 1.0
    top_k: int | None = None
    top_p: float = 1.0
    seed: int | None = None

    def require_sense(self) -> None:
        """Raises InvalidInputError for values out of range, and for ways of drawing where nothing is drawn."""
        number = int | float
        if not (isinstance(self.temperature, number) and 0 < self.temperature <= _HOTTEST):
            raise InvalidInputError(
                f"temperature must be a number above 0 and at most {_HOTTEST:g}, not {shown(self.temperature)}"
            )
        if not (self.top_k is None or (type(self.top_k) is int and self.top_k > 0)):
            raise InvalidInputError(
                f"top_k must be a whole number above 0, or None for all, not {shown(self.top_k)}"
            )
        if not (isinstance(self.top_p, number) and 0 < self.top_p <= 1):
            raise InvalidInputError(f"top_p must be above 0 and at most 1, not {shown(self.top_p)}")
        if not (self.seed is None or (type(self.seed) is int and -(1 << 63) <= self.seed < 1 << 64)):
            raise InvalidInputError(f"seed must be a whole number of 64 bits, not {shown(self.seed)}")
        if not self.do_sample and self != Sampling():
            raise InvalidInputError(
                "temperature, top_k, top_p and seed are for drawing tokens, and without do_sample=True none are drawn"
            )


class Sampler:
    """Chooses tokens, in the order and with the functions of transformers' ``generate``.

    Args:
        how: how tokens are chosen.
        device: where logits are.
        own: rules of the checkpoint, which come before those of drawing.
    """

    def __init__(
        self, how: Sampling, device: torch.device, own: Sequence[Callable[[Tensor, Tensor], Tensor]] = ()
    ) -> None:
        self._how = how
        self._rules = (*own, *(_rules(how) if how.do_sample else ()))
        self._generator = None
        if how.seed is not None:
            self._generator = torch.Generator(device).manual_seed(how.seed)

    def choose(self, ids: Tensor, logits: Tensor) -> Tensor:
        """The next token of each row (rows, 1).

        Args:
            ids: all tokens so far (rows, tokens).
            logits: of the last of them (rows, vocabulary).

        Source: ``_sample``, transformers 5.23, generation/utils.py.
        """
        scores = logits.to(torch.float32)
        for rule in self._rules:
            scores = rule(ids, scores)
        if not self._how.do_sample:
            return scores.argmax(dim=-1, keepdim=True)
        return torch.multinomial(scores.softmax(dim=-1), num_samples=1, generator=self._generator)


def _rules(how: Sampling) -> tuple[Any, ...]:
    from transformers.generation import logits_process as rules  # a stage's class is transformers' own

    found: list[Any] = []
    if how.temperature != 1:
        found.append(rules.TemperatureLogitsWarper(float(how.temperature)))
    if how.top_k is not None:
        found.append(rules.TopKLogitsWarper(how.top_k))
    if how.top_p < 1:
        found.append(rules.TopPLogitsWarper(float(how.top_p)))
    return tuple(found)

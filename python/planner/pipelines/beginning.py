"""What a model's own code for generating gives its next forward, beside what it would be given anyway."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

__all__ = ["Forwards", "Next"]


@dataclass(frozen=True, slots=True, eq=False)
class Next:
    """What goes into the next forward.

    Args:
        tokens: how many of the last ones.
        mask: over all tokens; None where the model is to have none.
        is_anew: whether what is cached counts for nothing any more.
    """

    tokens: int
    mask: Tensor | None
    is_anew: bool


class Forwards:
    """Asks a class that has such code of its own: some begin anew where positions get longer, or hide their mask after the prompt.

    Args:
        model: of a stage.
        cache_name: what its forward calls the cache.
    """

    def __init__(self, model: nn.Module, cache_name: str) -> None:
        own = [cls for cls in type(model).__mro__ if "prepare_inputs_for_generation" in vars(cls)]
        is_general = not own or own[0].__module__.startswith("transformers.generation")
        self._prepare: Any = None if is_general else getattr(model, "prepare_inputs_for_generation", None)
        self._cache_name = cache_name

    def next(self, ids: Tensor, mask: Tensor, cache: Any, tokens: int) -> Next:
        """What goes into the next forward.

        Args:
            ids: all tokens so far.
            mask: over all of them.
            cache: of those before.
            tokens: how many are new.
        """
        if self._prepare is None:
            return Next(tokens, mask, is_anew=False)
        found = self._prepare(
            ids,
            attention_mask=mask,
            use_cache=True,
            next_sequence_length=tokens,
            is_first_iteration=tokens == ids.shape[1],
            **{self._cache_name: cache},
        )
        # It may come back in another form, made for a cache of this stage's layers.
        own_mask = None if found.get("attention_mask") is None else mask
        is_anew = found.get(self._cache_name) is None
        return Next(found["input_ids"].shape[1], own_mask, is_anew)

"""The forward of one stage: its model's own, entered and left between layers."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor, nn

from planner.pipelines.cutting import Cut
from planner.pipelines.runs import StageRun

__all__ = ["StageForward"]


class StageForward:
    """Calls a stage's model.

    Args:
        model: the stage's model, with its weights.
        cut: how it was cut out.
        run: which stage it is.
        device: where it runs.
    """

    def __init__(self, model: nn.Module, cut: Cut, run: StageRun, device: torch.device) -> None:
        config: Any = model.config
        text = config.get_text_config(decoder=True)
        self.model, self.run, self.device = model, run, device
        self.base = model.get_submodule(cut.base)
        self.hidden_size: int = text.hidden_size
        self.vocab_size: int = text.vocab_size
        self.dtype = next(parameter.dtype for parameter in cut.first.parameters())
        self._config = config
        self._arrived: Tensor | None = None
        self._left: Tensor | None = None
        self._called = model if run.is_last else self.base
        self._takes = frozenset(inspect.signature(self._called.forward).parameters)
        if not run.is_first:
            cut.first.register_forward_pre_hook(self._enter, with_kwargs=True)
        if not run.is_last:
            cut.last.register_forward_hook(self._leave)

    def new_cache(self) -> Any:
        """An empty cache for the stage's layers."""
        from transformers import DynamicCache

        return DynamicCache(config=self._config)

    def __call__(
        self,
        arrived: Tensor,
        cache: Any,
        attention_mask: Tensor | None,
        position_ids: Tensor | None,
        *,
        last_only: bool,
    ) -> Tensor:
        inputs: dict[str, Any] = {"past_key_values": cache, "use_cache": True}
        if self.run.is_first:
            inputs["input_ids"] = arrived
        else:
            inputs["inputs_embeds"] = self._arrived = arrived
        if attention_mask is not None:
            inputs["attention_mask"] = attention_mask
        if position_ids is not None and "position_ids" in self._takes:
            inputs["position_ids"] = position_ids
        if last_only and "logits_to_keep" in self._takes:
            inputs["logits_to_keep"] = 1
        try:
            with torch.no_grad():
                made = self._called(**inputs)
            if not self.run.is_last:
                assert self._left is not None, "the last layer was called"
                return self._left
            logits: Tensor = made.logits
            return logits[:, -1:] if last_only else logits
        finally:
            self._arrived = self._left = None

    def _enter(self, _module: nn.Module, args: Any, kwargs: Any) -> Any:
        if args:
            return (self._arrived, *args[1:]), kwargs
        return args, {**kwargs, "hidden_states": self._arrived}

    def _leave(self, _module: nn.Module, _args: Any, made: Any) -> None:
        self._left = made[0] if isinstance(made, tuple | list) else made

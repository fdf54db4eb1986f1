"""The forward of one stage: its model's own, entered and left between layers."""

from __future__ import annotations

import inspect
from typing import Any, Final

import torch
from torch import Tensor, nn

from planner.pipelines.beginning import Forwards
from planner.pipelines.caching import new_cache
from planner.pipelines.cutting import Cut, Zeros
from planner.pipelines.kept import KeptInModules
from planner.pipelines.runs import StageRun

__all__ = ["StageForward", "cache_argument"]

# Kinds of scaled rotary positions.
_BY_LONGEST_ROW: Final = ("dynamic", "longrope")
# What classes call it; from transformers 5.24 on, all of them by the first name.
_CACHES: Final = ("cache", "past_key_values", "cache_params")


def cache_argument(model: nn.Module) -> str:
    """What a model's forward calls its cache. Raises ValueError where it takes none."""
    takes = inspect.signature(model.forward).parameters
    found = next((name for name in _CACHES if name in takes), None)
    if found is None:
        raise ValueError(f"the forward of {type(model).__name__} takes no cache")
    return found


class StageForward:
    """Calls a stage's model.

    Args:
        model: the stage's model, with its weights.
        cut: how it was cut out.
        run: which stage it is.
    """

    def __init__(self, model: nn.Module, cut: Cut, run: StageRun) -> None:
        config = cut.config.get_text_config(decoder=True)
        self.run = run
        self.hidden_size: int = config.hidden_size
        self.vocab_size: int = config.vocab_size
        self.dtype = _dtype(cut.first, config)
        self._config, self._total = config, cut.layers.length
        self._arrived: Tensor | None = None
        self._left: Tensor | None = None
        self._called = model if run.is_last else _without_head(model, cut)
        # What the whole model does not take, it does not give to what is inside.
        self._takes = frozenset(inspect.signature(model.forward).parameters)
        self._cache_name = cache_argument(model)
        self.goes_by_longest_row = _goes_by_longest_row(cut.config.to_dict())
        self.forwards = Forwards(model, self._cache_name)
        self._kept = KeptInModules(model)
        for part in model.modules():
            if isinstance(part, Zeros):  # the sum of embeddings has the dtype of what arrives
                part.zeros = part.zeros.to(self.dtype)
        self._hooks: list[Any] = []
        if not run.is_first:
            self._hooks.append(cut.first.register_forward_pre_hook(self._enter, with_kwargs=True))
        if not run.is_last:
            self._hooks.append(cut.last.register_forward_hook(self._leave))

    def let_go(self) -> None:
        """Takes its hooks out of the model, which would hold both together."""
        for hook in self._hooks:
            hook.remove()

    def new_cache(self) -> Any:
        """An empty cache for the stage's layers."""
        return new_cache(self._config, self.run.layers, self._total)

    def __call__(
        self,
        arrived: Tensor,
        cache: Any,
        attention_mask: Tensor | None,
        position_ids: Tensor | None,
        *,
        last_only: bool,
    ) -> Tensor:
        inputs: dict[str, Any] = {self._cache_name: cache, "use_cache": True}
        if self.run.is_first:
            inputs["input_ids"] = arrived
        else:
            self._arrived = arrived
            inputs["inputs_embeds"] = torch.zeros_like(arrived)  # what becomes of it is nobody's
        for name, value in (("attention_mask", attention_mask), ("position_ids", position_ids)):
            if value is not None and name in self._takes:
                inputs[name] = value
        if last_only and "logits_to_keep" in self._takes:
            inputs["logits_to_keep"] = 1
        self._kept.put(cache)
        try:
            with torch.no_grad():
                made = self._called(**inputs)
            cache.count(arrived.shape[1])
            if self._left is not None:
                return self._left
            logits: Tensor = made[0] if isinstance(made, tuple) else made.logits
            return logits[:, -1:] if last_only else logits
        finally:
            self._kept.take(cache)
            self._arrived = self._left = None

    def _enter(self, _module: nn.Module, args: Any, kwargs: Any) -> Any:
        """What arrived takes the place of what would enter the first layer: embeddings are not scaled or added twice."""
        if args:
            return (self._arrived, *args[1:]), kwargs
        return args, {**kwargs, "hidden_states": self._arrived}

    def _leave(self, _module: nn.Module, _args: Any, made: Any) -> None:
        self._left = made[0] if isinstance(made, tuple | list) else made


def _without_head(model: nn.Module, cut: Cut) -> nn.Module:
    """What to call for hidden states: the model without its head, or where that only hands on what it gets, what is around the layers."""
    base: Any = getattr(model, "base_model", model)
    if "attention_mask" in inspect.signature(base.forward).parameters:
        found: nn.Module = base
        return found
    return model.get_submodule(cut.layers.name.rpartition(".")[0])


def _goes_by_longest_row(said: Any) -> bool:
    """Whether positions are turned by angles that depend on the longest row of a batch.

    Source: ``dynamic_rope_update``, transformers 5.23, modeling_rope_utils.py.
    """
    if not isinstance(said, dict):
        return False
    kind = said.get("rope_type")
    return kind in _BY_LONGEST_ROW or any(map(_goes_by_longest_row, said.values()))


def _dtype(layer: nn.Module, config: Any) -> torch.dtype:
    """What hidden states are between layers: that of the largest tensor, because norms and gates may be kept wider, or what a
    configuration says that sums are kept in."""
    if getattr(config, "residual_in_fp32", False):
        return torch.float32
    floating = [parameter for parameter in layer.parameters() if parameter.is_floating_point()]
    return max(floating, key=lambda parameter: parameter.nbytes).dtype

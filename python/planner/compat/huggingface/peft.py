"""What takes the place of PEFT's functions, and of transformers' for PEFT, where they know nothing of offloaded weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from planner.compat.huggingface.adapters import copied_modules, make_resident
from planner.compat.huggingface.at_hand import WeightsAtHand, has_placeholders
from planner.compat.huggingface.base_model import base_of
from planner.compat.huggingface.taking_over import take_over
from planner.dispatching.install.record import dispatched_models
from planner.dispatching.methods.adapter_loading import said_where_it_runs

if TYPE_CHECKING:
    from planner.compat.huggingface.in_force import Integration

__all__ = [
    "adapt_attentions",
    "add_adapter",
    "inject_adapter",
    "load_adapter",
    "load_into_mixed",
    "move_adapter",
    "remove_hooks",
    "set_state",
    "unload_mixed",
    "update_offload",
]


def inject_adapter(
    integration: Integration,
    before: Callable[..., None],
    tuner: Any,
    model: nn.Module,
    adapter_name: str,
    *args: Any,
    **kwargs: Any,
) -> None:
    """``BaseTuner.inject_adapter``: an adapter is made where its layer runs, and finds the weights that it is made from.

    Args:
        integration: what is in force.
        before: the method whose place this takes.
        tuner, model, adapter_name, args, kwargs: as PEFT has them.

    Cost: an offloaded weight is read only if the adapter is made from its values, as DoRA is and LoRA is not.
    """
    take_over(integration, model)
    if not has_placeholders(model):
        before(tuner, model, adapter_name, *args, **kwargs)
        return
    if getattr(tuner.peft_config[adapter_name], "layer_replication", None):
        # PEFT does so when the layers have their copies; what is offloaded of those has its own placeholders by then.
        model.requires_grad_(False)
    create, replace = tuner._create_and_replace, tuner._replace_module
    with WeightsAtHand(model) as at_hand:

        def create_and_let_go(*made_args: Any, **made_kwargs: Any) -> Any:
            # No graph may begin at a weight that is there for a while.
            with torch.no_grad():
                made = create(*made_args, **made_kwargs)
            at_hand.let_go()
            return made

        def replace_by_resident(parent: nn.Module, name: str, made: nn.Module, *more: Any) -> None:
            for copied in copied_modules(made, adapter_name):
                make_resident(copied)  # it is moved next
            replace(parent, name, made, *more)

        own = {"_create_and_replace": create_and_let_go, "_replace_module": replace_by_resident}
        tuner.__dict__.update(own)
        try:
            before(tuner, model, adapter_name, *args, **kwargs)
        finally:
            for name in own:
                del tuner.__dict__[name]
    for copied in copied_modules(model, adapter_name):
        make_resident(copied)


def move_adapter(
    integration: Integration, before: Callable[..., None], layer: Any, *args: Any, **kwargs: Any
) -> None:
    """``BaseTunerLayer._move_adapter_to_device_of_base_layer``: to where an offloaded layer runs.

    Args:
        integration: what is in force.
        before: the method whose place this takes.
        layer, args, kwargs: as PEFT has them.
    """
    with WeightsAtHand(layer.get_base_layer()):
        before(layer, *args, **kwargs)


def update_offload(
    integration: Integration,
    before: Callable[..., Any],
    model: nn.Module,
    offload_index: dict[str, Any] | None,
    adapters_weights: Mapping[str, torch.Tensor],
) -> Any:
    """``PeftModel._update_offload``: no copy of the checkpoint is written, since our weights know in which files they are.

    Args:
        integration: what is in force.
        before: the method whose place this takes.
        model: the model with adapters.
        offload_index: rows of what is on disk; emptied.
        adapters_weights: of the adapter that was loaded.

    Returns:
        The rows.
    """
    if not has_placeholders(model):
        return before(model, offload_index, adapters_weights)
    if offload_index:
        offload_index.clear()
    return offload_index


def load_adapter(
    integration: Integration, before: Callable[..., Any], model: Any, *args: Any, **kwargs: Any
) -> Any:
    """``PreTrainedModel.load_adapter``: adapters of offloaded layers are loaded to where these run.

    Args:
        integration: what is in force.
        before: the method whose place this takes.
        model, args, kwargs: as transformers has them.

    Returns:
        What transformers' method says.
    """
    take_over(integration, model)
    with said_where_it_runs(model):
        return before(model, *args, **kwargs)


def load_into_mixed(
    integration: Integration, before: Callable[..., Any], model: Any, *args: Any, **kwargs: Any
) -> Any:
    """``PeftMixedModel.load_adapter``, which has ``PeftModel``'s load, and lacks two methods that this calls for an offloaded base.

    Args:
        integration: what is in force.
        before: the method whose place this takes.
        model, args, kwargs: as PEFT has them.

    Returns:
        What PEFT's method says.
    """
    from peft import PeftModel

    lent = {
        "_update_offload": partial(PeftModel._update_offload, model),
        "get_base_model": lambda: base_of(model),
    }
    lacking = {name: method for name, method in lent.items() if not hasattr(model, name)}
    model.__dict__.update(lacking)
    try:
        return before(model, *args, **kwargs)
    finally:
        for name in lacking:
            del model.__dict__[name]


def add_adapter(
    integration: Integration, before: Callable[..., Any], model: Any, *args: Any, **kwargs: Any
) -> Any:
    """``PreTrainedModel.add_adapter``, which marks the model before the adapter is made.

    Args:
        integration: what is in force.
        before: the method whose place this takes.
        model, args, kwargs: as transformers has them.
    """
    take_over(integration, model)
    return before(model, *args, **kwargs)


def remove_hooks(integration: Integration, before: Callable[..., Any], module: nn.Module) -> Any:
    """``remove_hook_from_submodules`` of a base that is to have an adapter: it stays dispatched until it is dispatched anew.

    Args:
        integration: what is in force.
        before: the function whose place this takes.
        module: the base. One that accelerate has dispatched is taken over.

    Guarantee: what breaks off meanwhile leaves a model that runs.
    """
    take_over(integration, module)
    return None if dispatched_models(module) else before(module)


def set_state(
    integration: Integration, before: Callable[..., Any], model: nn.Module, *args: Any, **kwargs: Any
) -> Any:
    """``set_peft_model_state_dict``: an adapter's file may have embeddings of the base, which are offloaded.

    Args:
        integration: what is in force.
        before: the function whose place this takes.
        model, args, kwargs: as PEFT has them.

    Returns:
        What PEFT's function says.
    """
    with WeightsAtHand(model):
        return before(model, *args, **kwargs)


def unload_mixed(
    integration: Integration, before: Callable[..., Any], tuner: Any, *args: Any, **kwargs: Any
) -> Any:
    """``MixedModel._unload_and_optionally_merge``: merges with offloaded weights, those of one layer at a time.

    Args:
        integration: what is in force.
        before: the method whose place this takes.
        tuner, args, kwargs: as PEFT has them.

    Returns:
        The model without adapters.
    """
    if not has_placeholders(tuner.model):
        return before(tuner, *args, **kwargs)
    replace = tuner._replace_module
    with WeightsAtHand(tuner.model) as at_hand:

        def let_go_and_replace(*given: Any, **named: Any) -> None:
            at_hand.let_go()
            replace(*given, **named)

        tuner.__dict__["_replace_module"] = let_go_and_replace
        try:
            return before(tuner, *args, **kwargs)
        finally:
            del tuner.__dict__["_replace_module"]


def adapt_attentions(
    integration: Integration, before: Callable[..., Any], tuner: Any, *args: Any, **kwargs: Any
) -> Any:
    """``AdaptionPromptModel._create_adapted_attentions``: prompts are made where their attention runs.

    Args:
        integration: what is in force.
        before: the method whose place this takes.
        tuner, args, kwargs: as PEFT has them.
    """
    take_over(integration, tuner.model)
    tuner.forward = tuner.model.forward  # PEFT has kept the one that was there before
    with WeightsAtHand(tuner.model):
        return before(tuner, *args, **kwargs)

"""accelerate's functions about tied parameters."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from planner.arguments import name_groups
from planner.errors import InvalidConstraintError
from planner.model.layout import Layout
from planner.model.tree import ModuleTree
from planner.names import nearest_key, require_map

if TYPE_CHECKING:
    from torch import nn

__all__ = [
    "check_tied_parameters_in_config",
    "check_tied_parameters_on_same_device",
    "declared_ties",
    "find_tied_parameters",
    "warn_if_untied",
]

logger = logging.getLogger(__name__)


def find_tied_parameters(model: nn.Module, **kwargs: Any) -> list[list[str]]:
    """Names of each parameter that is registered several times.

    Args:
        model: the model; identity counts, not storage.
        kwargs: ignored, as in accelerate.

    Returns:
        Sorted names per parameter; groups in the order in which a second name is met.

    Source: accelerate 1.15, utils/modeling.py, whose order of groups depends on PYTHONHASHSEED.

    Cost: O(modules + tensors).

    Example:
        >>> import torch
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Linear(4, 4))
        >>> model[1].weight = model[0].weight
        >>> find_tied_parameters(model)
        [['0.weight', '1.weight']]
    """
    return Layout(ModuleTree.from_module(model)).tied_groups()


def declared_ties(model: Any) -> list[list[str]]:
    """Names that are one tensor once a model of transformers is loaded, group by group, by its own table; tied yet or not.

    Example:
        >>> from types import SimpleNamespace
        >>> declared_ties(SimpleNamespace(all_tied_weights_keys={"lm_head.weight": "embed.weight"}))
        [['embed.weight', 'lm_head.weight']]
    """
    table: Mapping[str, str] = getattr(model, "all_tied_weights_keys", None) or {}
    groups: dict[str, list[str]] = {}
    for name, target in table.items():
        groups.setdefault(target, [target]).append(name)
    return [sorted(group) for group in groups.values()]


def check_tied_parameters_in_config(model: nn.Module) -> bool:
    """Whether a transformers model's config says that weights are to be tied.

    Source: accelerate 1.15, utils/modeling.py.
    """
    return _says_tied(model, ModuleTree.from_module(model).can_tie)


def warn_if_untied(model: nn.Module, layout: Layout) -> None:
    """Logs a warning when the config asks for ties and the model has none."""
    if not layout.has_ties and _says_tied(model, layout.tree.can_tie):
        logger.warning(
            "The model weights are not tied. Please use the `tie_weights` method before using the `infer_auto_device` "
            "function."
        )


def _says_tied(model: Any, can_tie: bool) -> bool:
    if not any(base.__name__ == "PreTrainedModel" for base in type(model).__mro__):
        return False
    config = getattr(model, "config", None)
    has_text = hasattr(config, "get_text_config")
    decoder = config.get_text_config(decoder=True) if config is not None and has_text else config
    if getattr(decoder, "tie_word_embeddings", False) and model.get_output_embeddings():
        return True
    if getattr(config, "is_encoder_decoder", False) and getattr(config, "tie_encoder_decoder", False):
        return True
    return can_tie


def check_tied_parameters_on_same_device(
    tied_params: Sequence[Sequence[str]], device_map: Mapping[str, Any]
) -> None:
    """Logs a warning for each group of tied parameters that a device map puts on several devices.

    Raises:
        InvalidConstraintError: the map gives a parameter no device; accelerate recurses or raises ValueError. Fields:
            ``names``.
        InvalidInputError: no map, or no groups of names.
    """
    require_map(device_map)
    for group in name_groups(tied_params, "tied_params"):
        devices = {parameter: _device_of(parameter, device_map) for parameter in group}
        if len(set(devices.values())) > 1:
            logger.warning(
                "Tied parameters are on different devices: %s. Please modify your custom device map or set "
                "`device_map='auto'`. ",
                devices,
            )


def _device_of(name: str, device_map: Mapping[str, Any]) -> Any:
    key = nearest_key(name, device_map)
    if key is None:
        raise InvalidConstraintError(
            f"The `device_map` does not contain the module {name}.", names=(name,), suggestions=()
        )
    return device_map[key]

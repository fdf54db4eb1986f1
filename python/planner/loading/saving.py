"""What lets transformers save a loaded model as it was stored."""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn

from planner.loading.conversions import is_of_transformers
from planner.loading.recipes import Recipes

__all__ = ["saving_steps"]


def saving_steps(model: nn.Module, recipes: Recipes) -> Mapping[str, object]:
    """What ``save_pretrained`` turns back, as an attribute of a model of transformers.

    Args:
        model: what is loaded into.
        recipes: how its tensors come out of the files.

    Returns:
        Name and value; nothing for a model of another library.

    Source: ``convert_and_load_state_dict_in_model``, transformers 5.23, core_model_loading.py. Where no step was used, the list is
        empty: without one, ``save_pretrained`` would take the class's usual steps.
    """
    return {"_weight_conversions": list(recipes.steps)} if is_of_transformers(model) else {}

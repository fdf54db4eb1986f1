"""What lets transformers save a loaded model as it was stored."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from torch import nn

from planner.loading.conversions import is_of_transformers
from planner.loading.recipes import Recipes

__all__ = ["saving_steps"]


def saving_steps(
    model: nn.Module, recipes: Recipes, ended_ties: Collection[str] = ()
) -> Mapping[str, object]:
    """What ``save_pretrained`` turns back, as an attribute of a model of transformers.

    Args:
        model: what is loaded into.
        recipes: how its tensors come out of the files.
        ended_ties: names that its class ties, and that have values of their own now.

    Returns:
        Name and value; nothing for a model of another library.

    Source: ``convert_and_load_state_dict_in_model``, transformers 5.23, core_model_loading.py. Where no step was used, the list is
        empty: without one, ``save_pretrained`` would take the class's usual steps.
    """
    if not is_of_transformers(model):
        return {}
    found: dict[str, object] = {"_weight_conversions": list(recipes.steps)}
    tied = getattr(model, "all_tied_weights_keys", None)
    if ended_ties and isinstance(tied, dict):
        # Otherwise a save would leave them out, as copies of what they were tied to.
        found["all_tied_weights_keys"] = {name: to for name, to in tied.items() if name not in ended_ties}
    return found

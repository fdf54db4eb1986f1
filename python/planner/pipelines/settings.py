"""What a checkpoint's own settings for generating say of the next token, beside how it is drawn."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any, Final

import torch
from torch import Tensor, nn

from planner.caller import warn_caller
from planner.names import listed
from planner.pipelines.request import Request

__all__ = ["own_rules", "warn_of_settings"]

_Rule = Callable[[Tensor, Tensor], Tensor]
# Settings by which transformers would search, or end, in ways that need more than the scores of one forward; what they are without.
_OTHER_WAYS: Final = {
    "num_beams": (None, 1),
    "penalty_alpha": (None, 0),
    "guidance_scale": (None, 1),
    "stop_strings": (None,),
    "max_time": (None,),
    "watermarking_config": (None,),
}


def own_rules(model: nn.Module, request: Request, device: torch.device) -> Sequence[_Rule]:
    """Rules that change scores, such as a penalty for repetitions, in transformers' order.

    Args:
        model: with the checkpoint's settings.
        request: what was asked for.
        device: where scores are.

    Source: ``_get_logits_processor`` and what precedes it in ``generate``, transformers 5.23, generation/utils.py.
    """
    generic: Any = model
    if getattr(generic, "generation_config", None) is None:
        return ()
    said = copy.deepcopy(generic.generation_config)
    for name in (
        "guidance_scale",
        "watermarking_config",
        "encoder_repetition_penalty",
        "encoder_no_repeat_ngram_size",
    ):
        setattr(said, name, None)
    said.do_sample = False  # how tokens are drawn, a call says
    length = request.ids.shape[1]
    said.max_length = length + request.most
    said._eos_token_tensor = torch.tensor(request.eos, device=device) if request.eos else None
    if said.min_new_tokens is not None:
        said.min_length = length + said.min_new_tokens
    mask = None if bool(request.mask.all()) else request.mask.to(device)
    rules: Sequence[_Rule] = generic._get_logits_processor(
        said, input_ids_seq_length=length, device=str(device), model_kwargs={"attention_mask": mask}
    )
    return rules


def warn_of_settings(model: nn.Module) -> None:
    """Warns of settings of the checkpoint that transformers' ``generate`` would go by, and a pipeline does not."""
    said: Any = getattr(model, "generation_config", None)
    other = {name: getattr(said, name, None) for name in _OTHER_WAYS}
    found = [f"{name}={value!r}" for name, value in other.items() if value not in _OTHER_WAYS[name]]
    if found:
        warn_caller(
            f"the checkpoint's generation_config.json says {listed(found)}, by which transformers' generate goes and a pipeline's does not:"
            " its tokens are those of one without"
        )

"""Refusing ``.to``, ``.half``, ``.cuda`` and their kin on models whose weights are elsewhere."""

from __future__ import annotations

import logging
from typing import Any, NoReturn

import torch
from torch import nn

from planner.dispatch.guard import is_offloaded
from planner.dispatch.slots import modules_of, own_slots
from planner.errors import OffloadError

__all__ = ["Refusal", "Warned", "allow_moves"]

logger = logging.getLogger(__name__)


class Refusal:
    """Stands in the place of a module's ``_apply``, through which all conversions of a module go.

    Args:
        module: the module; there is an offloaded weight inside, unless it was replaced meanwhile.
    """

    __slots__ = ("module", "previous")

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        # What somebody else had installed there, if anything.
        self.previous: Any = module.__dict__.get("_apply")

    def __call__(self, fn: Any, recurse: bool = True) -> nn.Module:
        found = [
            (f"{name}.{slot.name}" if name else slot.name, slot.read())
            for name, module in (modules_of(self.module) if recurse else [("", self.module)])
            for slot in own_slots(module)
        ]
        offloaded = [name for name, tensor in found if is_offloaded(tensor)]
        if offloaded and all(_is_kept(fn, tensor) for _, tensor in found):
            return self.module  # some models cast a part of them in every forward
        if offloaded:
            self._refuse(offloaded[0])
        apply = self.previous or type(self.module)._apply.__get__(self.module)
        applied: nn.Module = apply(fn, recurse)
        return applied

    def _refuse(self, name: str) -> NoReturn:
        raise OffloadError(
            f"You can't move a model that has some modules offloaded: '{name}' of {type(self.module).__name__} rests "
            "elsewhere, and converting or moving the model would miss it; call planner.undispatch(model) first",
            name=name,
        )


def _is_kept(fn: Any, tensor: Any) -> bool:
    """Whether a conversion changes nothing about a tensor; for a stand-in, tried with an ordinary meta tensor."""
    twin = tensor
    if is_offloaded(tensor):
        twin = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="meta")
    try:
        with torch.no_grad():
            return fn(twin) is twin
    except NotImplementedError:
        return False  # values of the meta device cannot be had


class Warned:
    """Stands in the place of a dispatched model's ``to`` or ``cuda``: moving it undoes the plan.

    Args:
        module: the model.
        name: "to" or "cuda".
    """

    __slots__ = ("module", "name", "previous")

    def __init__(self, module: nn.Module, name: str) -> None:
        self.module = module
        self.name = name
        self.previous: Any = module.__dict__.get(name)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if self.name != "to" or _names_device(args, kwargs):
            logger.warning(
                "You shouldn't move a model that is dispatched over several devices; call planner.undispatch(model) first."
            )
        convert = self.previous or getattr(type(self.module), self.name).__get__(self.module)
        return convert(*args, **kwargs)


def _names_device(args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    return torch._C._nn._parse_to(*args, **kwargs)[0] is not None


def allow_moves(module: nn.Module) -> None:
    """Takes off what stands in the place of a module's own conversions."""
    if isinstance(module.__dict__.get("_apply"), Refusal):
        del module.__dict__["_apply"]
    for name in ("to", "cuda", "xpu", "npu", "mlu", "sdaa", "musa"):
        # accelerate's are functions; like its own remover, this one takes them off.
        if name in module.__dict__:
            del module.__dict__[name]

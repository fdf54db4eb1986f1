"""Moving and converting modules of a dispatched model: refused where weights are elsewhere, else told."""

from __future__ import annotations

import logging
from typing import Any, NoReturn

import torch
from torch import nn

from planner.dispatching.methods.forward import Membership
from planner.dispatching.tensors.placeholder import is_offloaded
from planner.dispatching.tensors.slots import modules_of, own_slots
from planner.errors import OffloadError
from planner.names import qualified

__all__ = ["Conversion", "Refusal", "allow_moves"]

logger = logging.getLogger(__name__)


class _Followed:
    """A conversion of tensors, and whether it has moved one to another device."""

    __slots__ = ("fn", "has_moved")

    def __init__(self, fn: Any) -> None:
        self.fn = fn
        self.has_moved = False

    def __call__(self, tensor: Any) -> Any:
        made = self.fn(tensor)
        if isinstance(made, torch.Tensor) and made.device != tensor.device:
            self.has_moved = True
        return made


class Conversion:
    """Stands in the place of a module's ``_apply``, through which ``to``, ``cuda``, ``half``, ``to_empty`` and the like go, whether
    they are called on the module, on one around it or on a wrapper. Moving undoes the plan, so it is told.

    Args:
        module: the module.
        membership: the dispatch that it belongs to.
    """

    __slots__ = ("membership", "module", "previous")

    def __init__(self, module: nn.Module, membership: Membership) -> None:
        self.module = module
        self.membership = membership
        # What somebody else had installed there, if anything.
        self.previous: Any = module.__dict__.get("_apply")

    def __call__(self, fn: Any, recurse: bool = True) -> nn.Module:
        if isinstance(fn, _Followed):
            return self._convert(fn, recurse)  # a module around this one looks already
        followed = _Followed(fn)
        try:
            return self._convert(followed, recurse)
        finally:
            if followed.has_moved:
                self.membership.is_disturbed = True
                logger.warning(
                    "You shouldn't move a model that is dispatched over several devices, nor a part of it (%s); call "
                    "planner.undispatch(model) first.",
                    type(self.module).__name__,
                )

    def _convert(self, fn: Any, recurse: bool) -> nn.Module:
        apply = self.previous or type(self.module)._apply.__get__(self.module)
        converted: nn.Module = apply(fn, recurse)
        return converted


class Refusal(Conversion):
    """The same for a module with an offloaded weight inside, unless that was replaced meanwhile."""

    __slots__ = ()

    def __call__(self, fn: Any, recurse: bool = True) -> nn.Module:
        found = [
            (qualified(name, slot.name), slot.read())
            for name, module in (modules_of(self.module) if recurse else [("", self.module)])
            for slot in own_slots(module)
        ]
        offloaded = [name for name, tensor in found if is_offloaded(tensor)]
        # Placeholders first: some conversions work in place.
        found.sort(key=lambda row: not is_offloaded(row[1]))
        if offloaded and all(_is_kept(fn, tensor) for _, tensor in found):
            return self.module  # some models cast a part of them in every forward
        if offloaded:
            self._refuse(offloaded[0])
        return Conversion.__call__(self, fn, recurse)

    def _refuse(self, name: str) -> NoReturn:
        raise OffloadError(
            f"You can't move a model that has some modules offloaded: '{name}' of {type(self.module).__name__} rests "
            "elsewhere, and converting or moving the model would miss it; call planner.undispatch(model) first",
            name=name,
        )


def _is_kept(fn: Any, tensor: Any) -> bool:
    """Whether a conversion changes nothing about a tensor; for a placeholder, tried with an ordinary meta tensor."""
    twin = tensor
    if is_offloaded(tensor):
        twin = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="meta")
    try:
        with torch.no_grad():
            return fn(twin) is twin
    except RuntimeError:
        return False  # values of the meta device cannot be had, nor shared


def allow_moves(module: nn.Module) -> None:
    """Takes off what stands in the place of a module's own conversions."""
    if isinstance(module.__dict__.get("_apply"), Conversion):
        del module.__dict__["_apply"]
    for name in ("to", "cuda", "xpu", "npu", "mlu", "sdaa", "musa"):
        # accelerate's are functions; like its own remover, this one takes them off.
        if name in module.__dict__:
            del module.__dict__[name]

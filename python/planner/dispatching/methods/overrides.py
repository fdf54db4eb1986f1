"""What stands in the place of a module's own methods: the base of all, and those that are no forwards."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any, ClassVar, NoReturn, Self

import torch
from torch import nn

from planner.dispatching.interrupts import end_again
from planner.dispatching.methods.membership import Membership
from planner.dispatching.offload.refcount import OffloadedModule, Use
from planner.dispatching.tensors.journal import Journal
from planner.dispatching.tensors.placeholder import PlaceholderTensor, is_offloaded
from planner.dispatching.tensors.slots import modules_of, own_slots
from planner.errors import OffloadError
from planner.names import qualified

__all__ = ["Conversion", "Override", "Pickling", "Recomputing", "Refusal"]

logger = logging.getLogger(__name__)


class Override:
    """Base of what stands in the place of a module's own method.

    An object, not a closure: a deep copy leads to the copied module, and it can be pickled. It keeps no copy of the original
    method, but asks the module's class for it.

    Args:
        module: the module.
    """

    __slots__ = ("module", "previous")

    # The method's name, under which the override lies in the module's own dict.
    place: ClassVar[str]

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        # What others had installed there, if anything.
        self.previous: Any = module.__dict__.get(self.place)

    @classmethod
    def of(cls, module: nn.Module) -> Self | None:
        """The one that stands in a module now, if one does."""
        found = module.__dict__.get(cls.place)
        return found if isinstance(found, cls) else None

    @classmethod
    def end(cls, module: nn.Module, journal: Journal) -> None:
        """Takes off the one that stands in a module, if one does."""
        found = cls.of(module)
        if found is not None:
            found.take_off(journal)

    @property
    def usual(self) -> Callable[..., Any]:
        """The method that the module would have without it."""
        own = self.previous
        if own is None:
            own = getattr(type(self.module), self.place).__get__(self.module)
        usual: Callable[..., Any] = own
        return usual

    def install(self, journal: Journal) -> None:
        """Takes the place of the method."""
        journal.set(self.module.__dict__, self.place, self)

    def take_off(self, journal: Journal) -> None:
        """The method is what it was before; what others have put in its place since stays."""
        before = () if self.previous is None else (self.previous,)
        journal.put_back(self.module.__dict__, self.place, self, *before)


class Pickling(Override):
    """Lets a module be pickled and copied with its placeholders: alone, a placeholder refuses to be.

    Args:
        module: the module.
        offloaded_module: of its offloaded tensors; a copy that is made while they are in use has placeholders as well.
    """

    __slots__ = ("offloaded_module",)
    place = "__reduce_ex__"

    def __init__(self, module: nn.Module, offloaded_module: OffloadedModule) -> None:
        super().__init__(module)
        self.offloaded_module = offloaded_module

    def __call__(self, protocol: Any) -> Any:
        reduced: Any = self.usual(protocol)
        if not isinstance(reduced, tuple) or len(reduced) < 3 or not isinstance(reduced[2], dict):
            return reduced
        state = {
            key: self._in_model(value) if key in ("_parameters", "_buffers") else value
            for key, value in reduced[2].items()
        }
        return (*reduced[:2], state, *reduced[3:])

    def _in_model(self, table: dict[str, Any]) -> dict[str, Any]:
        found = ((name, self.offloaded_module.outside(tensor)) for name, tensor in table.items())
        return {name: row.in_model() if isinstance(row, PlaceholderTensor) else row for name, row in found}


class Recomputing(Override):
    """Stands in the place of the function that computes a layer of transformers now, and again for backward.

    That function calls the forward of the layer's class, past everything around it.

    Args:
        module: the layer.
        offloaded_modules: what the layer needs each time.
        device: where it runs.
    """

    __slots__ = ("device", "offloaded_modules")
    # Where transformers keeps torch's function for that, in each layer.
    place = "_gradient_checkpointing_func"

    def __init__(
        self, module: nn.Module, offloaded_modules: tuple[OffloadedModule, ...], device: torch.device
    ) -> None:
        super().__init__(module)
        self.offloaded_modules = offloaded_modules
        self.device = device

    @classmethod
    def is_due(cls, module: nn.Module) -> bool:
        """Whether a module will be computed again, and not find its weights then."""
        return module.__dict__.get(cls.place) is not None and cls.of(module) is None

    def __call__(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        return self.usual(_Materializing(self, function), *args, **kwargs)


class _Materializing:
    """A layer's forward with its weights brought in."""

    __slots__ = ("function", "recomputing")

    def __init__(self, recomputing: Recomputing, function: Callable[..., Any]) -> None:
        self.recomputing = recomputing
        self.function = function

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        use = Use(self.recomputing.offloaded_modules)
        with end_again(use.end):
            try:
                use.begin(self.recomputing.device)
                return self.function(*args, **kwargs)
            finally:
                use.end()


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


class Conversion(Override):
    """Stands in the place of a module's ``_apply``, through which ``to``, ``cuda``, ``half``, ``to_empty`` and the like go, whether
    they are called on the module, on one around it or on a wrapper. Moving undoes the plan, so a warning says so.

    Args:
        module: the module.
        membership: the dispatch that it belongs to.
    """

    __slots__ = ("membership",)
    place = "_apply"

    def __init__(self, module: nn.Module, membership: Membership) -> None:
        super().__init__(module)
        self.membership = membership

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
        converted: nn.Module = self.usual(fn, recurse)
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

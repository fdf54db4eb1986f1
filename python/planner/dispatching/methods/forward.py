"""What stands in a module's place of ``forward``: objects that bring arguments and weights where the module runs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from planner.dispatching.interrupts import end_again
from planner.dispatching.methods.membership import Membership
from planner.dispatching.methods.overrides import Override
from planner.dispatching.tensors.journal import Journal
from planner.dispatching.transfer.argument_copies import ArgumentCopies
from planner.dispatching.transfer.kinds import INERT, KINDS
from planner.dispatching.transfer.move import find_device, moved, new_argument_copies
from planner.dispatching.transfer.once import carry_once, lend, one_forward
from planner.dispatching.transfer.traced import TracedArgumentCopies

__all__ = [
    "Border",
    "Forward",
    "Hooked",
    "OffloadedForward",
    "OffloadedRootForward",
    "RootForward",
    "Runtime",
    "forwards_of",
    "installed",
    "restore_forward",
    "untraced",
]

# Where accelerate's functions, and ours that do as they do, keep the forward that a hook stands before.
_BELOW = "_old_forward"


class Runtime(Protocol):
    """What a border needs while it runs.

    Args:
        is_special: more has to be done than to move arguments.
        index: the number of the accelerator where the module runs, -1 for the CPU.
        skip: keys that stay where they are.
        prefetcher: brings offloaded blocks ahead; None without one.
    """

    is_special: bool
    index: int
    skip: frozenset[str]
    prefetcher: Any

    def is_elsewhere(self, value: Any) -> bool:
        """Whether something has to move."""

    def bring(
        self, args: tuple[Any, ...], argument_copies: ArgumentCopies | TracedArgumentCopies
    ) -> tuple[Any, ...]:
        """Arguments where the module runs."""

    def bring_keywords(
        self, kwargs: dict[str, Any], argument_copies: ArgumentCopies | TracedArgumentCopies
    ) -> dict[str, Any]:
        """The same for keyword arguments."""

    def is_held(self) -> bool:
        """Whether the block around has brought the weights in."""

    def held_on(self) -> torch.device | None:
        """Where this thread uses the weights just now, if it does."""

    def around(self, forward: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The module's forward with everything that belongs before and after it."""


class Forward(Override):
    """Base of what is installed as a module's ``forward``.

    Args:
        module: the module it is installed in.
        hook: the hook that says where to.
        membership: the dispatch that it belongs to; None for a hook that was attached alone.
    """

    __slots__ = ("__weakref__", "hook", "membership")
    place = "forward"

    def __init__(self, module: nn.Module, hook: Any, membership: Membership | None = None) -> None:
        super().__init__(module)
        self.hook = hook
        self.membership = membership

    def take_off(self, journal: Journal) -> None:
        """Also from below what others have installed over it, and from where accelerate keeps what its hook stands before."""
        for above in forwards_of(self.module):
            if above.previous is self:
                journal.assign(above, "previous", self.previous)
        super().take_off(journal)
        journal.put_back(self.module.__dict__, _BELOW, self, self.usual)

    def original(self, *args: Any, **kwargs: Any) -> Any:
        """What the module would have computed without us."""
        if self.previous is not None:
            return self.previous(*args, **kwargs)
        return type(self.module).forward(self.module, *args, **kwargs)

    @property
    def __wrapped__(self) -> Callable[..., Any]:
        return self.usual

    @property
    def __name__(self) -> str:
        return str(getattr(self.__wrapped__, "__name__", "forward"))

    @property
    def __self__(self) -> nn.Module:
        return self.module

    @property
    def __code__(self) -> Any:
        """torch.export reads the names of arguments there."""
        return type(self.module).forward.__code__

    @property
    def __func__(self) -> Callable[..., Any]:
        return type(self.module).forward


class Border(Forward):
    """Moves arguments that lie elsewhere to the device of a module whose weights stay."""

    __slots__ = ()

    hook: Runtime

    def __call__(self, *args: Any, **kwargs: Any) -> Any:  # noqa: C901 (one loop, because each call costs a tenth)
        hook = self.hook
        if hook.is_special:
            return hook.around(self, args, kwargs)
        # This runs for every block, so the common cases are spelled out: plain tensors, tuples of them, and what is inert.
        index = hook.index
        argument_copies: ArgumentCopies | TracedArgumentCopies | None = None
        for value in args:
            if (
                (value.get_device() != index or (index < 0 and value.is_meta))
                if type(value) is Tensor
                else hook.is_elsewhere(value)
            ):
                argument_copies = new_argument_copies()
                args = hook.bring(args, argument_copies)
                break
        for key, value in kwargs.items():
            cls = type(value)
            if cls is Tensor:
                if value.get_device() == index and (index >= 0 or not value.is_meta):
                    continue
            elif cls is tuple:
                for item in value:
                    if (
                        (item.get_device() != index or (index < 0 and item.is_meta))
                        if type(item) is Tensor
                        else hook.is_elsewhere(item)
                    ):
                        break
                else:
                    continue
            elif KINDS.get(cls) == INERT or not hook.is_elsewhere(value):
                continue
            if key not in hook.skip:
                argument_copies = argument_copies or new_argument_copies()
                kwargs = hook.bring_keywords(kwargs, argument_copies)
                break
        if argument_copies is not None:
            try:
                output = self.original(*args, **kwargs)
            finally:
                argument_copies.write_back()
            return argument_copies.returned(output)
        if self.previous is not None:
            return self.previous(*args, **kwargs)
        module = self.module
        return type(module).forward(module, *args, **kwargs)


class RootForward(Border):
    """The border around the whole model: what crosses inside crosses once."""

    __slots__ = ()

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if torch.compiler.is_compiling():
            return self.hook.around(self, args, kwargs)
        return _whole(self, args, kwargs)


class OffloadedForward(Border):
    """Brings weights and arguments to a module whose weights rest elsewhere, and lets the weights go afterwards."""

    __slots__ = ()

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if torch.compiler.is_compiling():
            # Weights change hands, which cannot be traced: one break in the graph, and the module runs as it is.
            return untraced()(self, args, kwargs)
        if self.hook.is_held():
            # The block around has brought them in.
            return Border.__call__(self, *args, **kwargs)
        return self.hook.around(self, args, kwargs)


class OffloadedRootForward(OffloadedForward):
    """The same around the whole model, where that has an offloaded weight of its own."""

    __slots__ = ()

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if torch.compiler.is_compiling():
            return untraced()(self, args, kwargs)
        return _whole(self, args, kwargs)


def _whole(forward: RootForward | OffloadedRootForward, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """A forward of the whole model; where it fails because a tensor was moved, the error says so."""
    membership = forward.membership
    if membership is None:
        return _with_crossings(forward, args, kwargs)
    if membership.is_disturbed:
        membership.require_in_place()
        membership.is_disturbed = False
    try:
        return _with_crossings(forward, args, kwargs)
    except RuntimeError as error:
        membership.require_in_place(error)
        raise


def _with_crossings(
    forward: RootForward | OffloadedRootForward, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Any:
    """Tensors cross once, and nothing that was copied ahead stays."""
    prefetcher = forward.hook.prefetcher
    with one_forward():
        if prefetcher is None:
            return forward.hook.around(forward, args, kwargs)
        this = object()
        finish = partial(prefetcher.finish, this)
        with end_again(finish):
            try:
                prefetcher.begin(this)
                return forward.hook.around(forward, args, kwargs)
            finally:
                finish()


class Hooked(Forward):
    """Calls any hook around the module, as accelerate does, and tells ours when the module raises."""

    __slots__ = ()

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        module = self.module
        hook: Any = module._hf_hook
        args, kwargs = hook.pre_forward(module, *args, **kwargs)
        try:
            if hook.no_grad:
                with torch.no_grad():
                    output = self.original(*args, **kwargs)
            else:
                output = self.original(*args, **kwargs)
        except BaseException:
            cancel = getattr(hook, "cancel_forward", None)
            if cancel is not None:
                cancel(module)
            raise
        return hook.post_forward(module, output)


def _run(forward: OffloadedForward, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    return forward.hook.around(forward, args, kwargs)


def untraced() -> Callable[..., Any]:
    """Runs a forward outside of torch.compile. Made where it is used: making it loads the compiler, which takes seconds."""
    disabled: Callable[..., Any] = torch.compiler.disable(_run)  # type: ignore[no-untyped-call]
    return disabled


def installed(module: nn.Module) -> Forward | None:
    """What of ours is installed in a module, if anything, also below what others have installed over it."""
    found = Forward.of(module)
    if found is not None:
        return found
    below = module.__dict__.get(_BELOW)
    return below if isinstance(below, Forward) else None


def forwards_of(module: nn.Module) -> Iterator[Forward]:
    """All of ours that are installed in a module, from the outermost in; each may be taken off when it is met."""
    forward: Any = installed(module)
    while isinstance(forward, Forward):
        below = forward.previous
        yield forward
        forward = below


def restore_forward(module: nn.Module, journal: Journal) -> None:
    """What accelerate keeps as the forward that its hook stands before is the module's forward again."""
    table = module.__dict__
    before = table.get(_BELOW)
    # A graph module's class gets a new forward whenever its code changes.
    is_graph = "GraphModuleImpl" in str(type(module)) and not isinstance(before, Forward)
    journal.remove(table, _BELOW)
    if before is None or is_graph or before == type(module).forward.__get__(module):
        journal.remove(table, "forward")
    else:
        journal.set(table, "forward", before)


def bring(
    value: Any,
    device: torch.device,
    skip: frozenset[str],
    argument_copies: ArgumentCopies | TracedArgumentCopies,
) -> Any:
    """Arguments on a device, sharing what has crossed before.

    Args:
        argument_copies: gets what has to be given back after the call.
    """
    return moved(value, device, skip, lend(argument_copies), argument_copies)


def sent(value: Any, device: torch.device, skip: frozenset[str]) -> Any:
    """A value on a device, in a copy of its own where something moves."""
    copies = new_argument_copies()
    return moved(value, device, skip, carry_once(copies), copies)


def device_of(args: tuple[Any, ...], kwargs: dict[str, Any]) -> torch.device | None:
    """The device of the first tensor among arguments."""
    found = find_device(args)
    return found if found is not None else find_device(kwargs)

"""The hook that brings weights and arguments to where a module runs: accelerate's name, attributes and meaning."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from planner.arguments import require_weights
from planner.dispatching.bases import hook_base
from planner.dispatching.hooks.base import ModelHook
from planner.dispatching.hooks.forgetting import refuse_forgetting
from planner.dispatching.hooks.open_calls import OpenCall, end_since, last_of, mark
from planner.dispatching.hooks.place import (
    KnownModules,
    offload_tensors,
    place_tensors,
    require_values,
    restore_others,
)
from planner.dispatching.interrupts import end_again
from planner.dispatching.methods.forward import Forward, bring, device_of, forwards_of, sent
from planner.dispatching.methods.overrides import Pickling, Recomputing
from planner.dispatching.offload.refcount import OffloadedModule, Use, UsedElsewhereError
from planner.dispatching.offload.store import TiedCopies, require_tied_copies
from planner.dispatching.tensors.journal import Journal
from planner.dispatching.tensors.slots import resolve_device
from planner.dispatching.tensors.ties import Tie
from planner.dispatching.transfer.argument_copies import ArgumentCopies
from planner.dispatching.transfer.move import is_elsewhere, new_argument_copies
from planner.dispatching.transfer.once import NoValuesError
from planner.dispatching.transfer.step_size import new_tokens
from planner.dispatching.transfer.traced import TracedArgumentCopies
from planner.errors import OffloadError
from planner.names import text_set

__all__ = ["AlignDevicesHook", "aligns"]

_CPU = torch.device("cpu")

if TYPE_CHECKING:
    from planner.dispatching.offload.reads_ahead import ReadsAhead

    class _AlignBase: ...

else:
    _AlignBase = hook_base("AlignDevicesHook")


class AlignDevicesHook(_AlignBase, ModelHook):
    """Brings a module's arguments, and its weights if they rest elsewhere, to the device where it runs.

    Args:
        execution_device: where the module runs; None moves nothing.
        offload: the weights rest in ``weights_map`` between forwards.
        io_same_device: the result goes to the device of the first tensor among the arguments.
        weights_map: resting weights by name; by default copies on the CPU. May be exchanged at any time.
        offload_buffers: saved buffers rest there, too.
        place_submodules: act on all tensors inside, not only on the module's own.
        skip_keys: keyword arguments, and keys of mappings among arguments and results, that stay where they are.
        tied_params_map: by address, copies that modules with the same tensor share.

    Raises:
        InvalidDevicesError, InvalidInputError: anything that is no device, mapping or keys.

    Source: accelerate 1.15, hooks.py.
    """

    # Until they are set: `__setattr__` looks at all three.
    io_same_device: bool = False
    device: torch.device | None = None
    # Copies on several devices of a tensor that the module has.
    ties: tuple[Tie, ...] = ()
    # Up to how many new tokens the cpu runs the module where its weights rest; none for what is inside of such a module, which runs
    # where that does. None: it always runs on its device.
    host_tokens: int | None = None
    # What the cpu has computed goes to the module's device: the block around goes on there.
    returns: bool = False

    def __init__(
        self,
        execution_device: int | str | torch.device | None = None,
        offload: bool = False,
        io_same_device: bool = False,
        weights_map: Mapping[str, Any] | None = None,
        offload_buffers: bool = False,
        place_submodules: bool = False,
        skip_keys: str | Iterable[str] | None = None,
        tied_params_map: TiedCopies | None = None,
    ) -> None:
        require_tied_copies(tied_params_map)
        self.offloaded_modules: tuple[OffloadedModule, ...] = ()
        # Of modules inside, which a block brings in with its own.
        self.inner: tuple[OffloadedModule, ...] = ()
        self.bound: nn.Module | None = None
        # Which offloaded block runs after this one, as learnt; and who brings it ahead.
        self.follower: AlignDevicesHook | None = None
        self.prefetcher: ReadsAhead | None = None
        self.known: KnownModules = []
        self.module_name = ""
        self.made_weights_map = False
        self.input_device: torch.device | None = None
        self.io_same_device = io_same_device
        self.execution_device = execution_device
        self.offload = offload
        self.weights_map = weights_map
        self.offload_buffers = offload_buffers
        self.place_submodules = place_submodules
        self.skip_keys = skip_keys
        # accelerate's attributes; PEFT reads `original_devices`.
        self.original_devices: dict[str, torch.device] = {}
        self.param_original_devices: dict[str, torch.device] = {}
        self.buffer_original_devices: dict[str, torch.device] = {}
        self.tied_params_names: set[str] = set()
        self.tied_params_map = tied_params_map

    def __repr__(self) -> str:
        return (
            f"AlignDevicesHook(execution_device={self.execution_device}, offload={self.offload}, "
            f"io_same_device={self.io_same_device}, offload_buffers={self.offload_buffers}, "
            f"place_submodules={self.place_submodules}, skip_keys={self.skip_keys!r})"
        )

    def __setattr__(self, name: str, value: Any) -> None:
        # Plain attributes instead of properties: PEFT makes hooks from `vars` of others, by the public names, and a property
        # whose value lies in the instance under its own name is one that torch.compile (2.11) reads without end.
        # What checks a value comes before it is set, so that one that is refused changes nothing.
        if name == "weights_map" and value is not None:
            require_weights(value)
        elif name == "skip_keys":
            self.skip = text_set(value, "skip_keys")
        elif name == "execution_device":
            self._follow_device(value)
        super().__setattr__(name, value)
        if name == "weights_map":
            for offloaded_module in self.offloaded_modules:
                offloaded_module.store.exchange(value)
        elif name in ("io_same_device", "no_grad", "device", "ties"):
            # One flag, because a border asks before each call.
            self.is_special = self.io_same_device or self.no_grad or self.device is None or bool(self.ties)

    def _follow_device(self, execution_device: Any) -> None:
        self.device = None if execution_device is None else resolve_device(execution_device)
        # As Tensor.get_device tells it, which costs half of what Tensor.device does; the CPU and the meta device are -1.
        self.index = -1 if self.device is None or self.device.index is None else self.device.index
        for offloaded_module in self.offloaded_modules:
            offloaded_module.store.execution_device = self.device

    def tie(self, tie: Tie) -> None:
        """Looks after one more tensor that has copies on several devices."""
        if tie not in self.ties:
            self.ties = (*self.ties, tie)

    @property
    def needed(self) -> tuple[OffloadedModule, ...]:
        """All that has to be there during a forward."""
        return self.offloaded_modules + self.inner

    def runs_on(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> torch.device:
        """Where a call with these arguments runs."""
        device = self.device or _CPU
        if self.host_tokens is None:
            return device
        if (held := self.held_on()) is not None:
            return held
        tokens = new_tokens(args, kwargs)
        if self.prefetcher is not None:
            self.prefetcher.sized(self, tokens)
        return _CPU if tokens <= self.host_tokens else device

    def held_on(self) -> torch.device | None:
        """Where this thread uses the module's weights just now, if it does."""
        devices = (offloaded_module.held_on() for offloaded_module in self.needed)
        return next((device for device in devices if device is not None), None)

    def init_hook(self, module: nn.Module) -> nn.Module:
        """Moves the tensors where they shall run or rest."""
        if self.offload:
            offload_tensors(self, module)
        elif self.device is not None:
            place_tensors(self, module)
        self.bound = module
        return module

    def is_elsewhere(self, value: Any) -> bool:
        """Whether something in an argument does not lie where the module runs."""
        return is_elsewhere(value, self.device, self.skip)

    def bring(
        self,
        args: tuple[Any, ...],
        argument_copies: ArgumentCopies | TracedArgumentCopies,
        device: torch.device | None = None,
    ) -> tuple[Any, ...]:
        """Positional arguments where the module runs, or on a device; ``argument_copies`` gets what has to be given back."""
        found = tuple([self._brought(value, argument_copies, device) for value in args])
        # Containers among these are searched for copies when the call ends.
        argument_copies.handed.extend(found)
        return found

    def bring_keywords(
        self,
        kwargs: dict[str, Any],
        argument_copies: ArgumentCopies | TracedArgumentCopies,
        device: torch.device | None = None,
    ) -> dict[str, Any]:
        """Keyword arguments where the module runs, or on a device; ``argument_copies`` gets what has to be given back."""
        skip = self.skip
        found = {
            key: value if key in skip else self._brought(value, argument_copies, device)
            for key, value in kwargs.items()
        }
        argument_copies.handed.extend(found.values())
        return found

    def _brought(
        self,
        value: Any,
        argument_copies: ArgumentCopies | TracedArgumentCopies,
        device: torch.device | None,
    ) -> Any:
        device = self.device if device is None else device
        if device is None:
            return value
        try:
            return bring(value, device, self.skip, argument_copies)
        except NoValuesError as error:
            where = f"an argument of '{self.module_name}'" if self.module_name else "an argument"
            raise OffloadError(f"{where}, {error}", name=self.module_name) from error

    def is_held(self) -> bool:
        """Whether all that the module needs is there already, by this thread's doing."""
        if self.is_special or self.inner or self.prefetcher is not None:
            return False
        return all(offloaded_module.is_held(self.device) for offloaded_module in self.offloaded_modules)

    def around(self, forward: Forward, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """A whole forward: fetch, bring, compute, let go."""
        if self.host_tokens is None:
            return self._around(forward, args, kwargs, self.device, self.prefetcher)
        device, use = self.runs_on(args, kwargs), Use(self.needed)
        with end_again(use.end):
            try:
                device = self._begin(use, device)
                output = self._around(forward, args, kwargs, device)
            finally:
                use.end()
        back = self.device if self.returns else None
        return output if back is None or back == device else sent(output, back, self.skip)

    def _begin(self, use: Use, device: torch.device) -> torch.device:
        """Begins a use on a device, or where another thread has the weights just now.

        Returns:
            Where they are.
        """
        while True:
            is_brought_in, ahead = device == self.device, self.prefetcher
            if ahead is not None and is_brought_in:
                ahead.needing(self)
            try:
                use.begin(device)
            except UsedElsewhereError as error:
                use.end()
                device = error.device
                continue
            if ahead is not None:
                (ahead.computing if is_brought_in else ahead.passing)(self)
            return device

    def _around(
        self,
        forward: Forward,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        device: torch.device | None,
        ahead: ReadsAhead | None = None,
    ) -> Any:
        """The same on a device."""
        ties = self.ties
        if ties and torch.compiler.is_compiling():
            # Versions cannot be traced; once a forward is enough, and only the whole model's hook has this flag.
            for tie in ties if self.io_same_device else ():
                tie.settle_traced()
            ties = ()
        for tie in ties:
            tie.settle()
        back = device_of(args, kwargs) if self.io_same_device else None
        argument_copies = new_argument_copies()
        args = self.bring(args, argument_copies, device)
        kwargs = self.bring_keywords(kwargs, argument_copies, device)
        if self.inner:
            # Adapters may have been added since the last forward.
            require_values(forward.module, self.known)
        needed = self.needed
        if forward.module.training and needed and Recomputing.is_due(forward.module):
            # transformers computes the layer again by its class's forward, past this hook.
            Recomputing(forward.module, needed, device or _CPU).install(Journal())
        use = Use(needed)
        with end_again(partial(end_since, mark())), end_again(use.end):
            try:
                if needed and ahead is not None:
                    ahead.needing(self)
                use.begin(device or _CPU)
                if ahead is not None:
                    ahead.computing(self)
                with torch.no_grad() if self.no_grad else nullcontext(), _casting_anew(use):
                    output = forward.original(*args, **kwargs)
            finally:
                try:
                    # Also where the block has raised: without a dispatch, the caller would see what it wrote before.
                    argument_copies.write_back()
                finally:
                    use.end()
                # Embeddings with `max_norm` write to their weight in every forward.
                for tie in ties:
                    tie.settle()
        output = argument_copies.returned(output)
        return output if back is None else sent(output, back, self.skip)

    def resting_bytes(self) -> int:
        """Bytes that are brought in for a forward."""
        return sum(offloaded_module.store.size_bytes() for offloaded_module in self.needed)

    def pre_forward(
        self, module: nn.Module, *args: Any, **kwargs: Any
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Brings weights and arguments; :meth:`post_forward` lets the weights go."""
        if self.io_same_device:
            self.input_device = device_of(args, kwargs)
        use, argument_copies = Use(self.needed), ArgumentCopies()
        call = OpenCall(self, self.input_device if self.io_same_device else None, use, argument_copies)
        try:
            # Before anything is brought in, so that an interrupt leaves nothing that is not known here.
            call.open()
            if use.offloaded_modules and self.prefetcher is not None:
                self.prefetcher.needing(self)
            use.begin(self.device or _CPU)
            args, kwargs = self.bring(args, argument_copies), self.bring_keywords(kwargs, argument_copies)
        except BaseException:
            call.end()
            raise
        return args, kwargs

    def post_forward(self, module: nn.Module, output: Any) -> Any:
        """Lets the weights go and sends the result back."""
        call = last_of(self)
        if call is None:
            return output
        call.end()
        output = call.argument_copies.returned(output)
        return output if call.back is None else sent(output, call.back, self.skip)

    def cancel_forward(self, module: nn.Module) -> None:
        """Lets the weights go."""
        call = last_of(self)
        if call is not None:
            call.end()

    def detach_hook(self, module: nn.Module) -> nn.Module:
        """Brings offloaded weights back to where they came from, and takes off what dispatch installed.

        Raises:
            OffloadError: for code that dispatches anew by itself, and does not know of our placeholders.
        """
        refuse_forgetting(module)
        made: dict[int, Any] = {}
        for offloaded_module in self.offloaded_modules:
            for slot, tensor in offloaded_module.store.restored(self.original_devices, made, Journal()):
                slot.write(tensor)
            offloaded_module.store.leave(Journal())
        # The devices are those of the module that the hook was attached to last.
        if self.offloaded_modules and module is self.bound:
            restore_others(module, self.original_devices, recurse=self.place_submodules)
        for offloaded_module in self.offloaded_modules:
            for slot in offloaded_module.store.slots:
                Pickling.end(slot.module, Journal())
            offloaded_module.close()
        self.offloaded_modules, self.inner = (), ()
        for forward in forwards_of(module):
            if forward.hook is self:
                forward.take_off(Journal())
        return module


@contextmanager
def _without_cast_cache() -> Iterator[None]:
    was_cached = torch.is_autocast_cache_enabled()
    torch.set_autocast_cache_enabled(False)
    try:
        yield
    finally:
        torch.set_autocast_cache_enabled(was_cached)


def _casting_anew(use: Use) -> AbstractContextManager[None]:
    """Autocast keeps casts of trainable weights until its context ends; those of weights that go must go, too."""
    if use.offloaded_modules and torch.is_autocast_cache_enabled() and torch._C._is_any_autocast_enabled():
        return _without_cast_cache()
    return nullcontext()


def aligns(hook: object) -> bool:
    """Whether a hook aligns devices: ours or, where accelerate is installed, its own."""
    return isinstance(hook, _AlignBase)

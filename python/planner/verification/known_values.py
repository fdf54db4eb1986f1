"""Values that follow from the inputs alone: what models branch on, count and cut by, while weights have none."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch._subclasses.fake_tensor import DataDependentOutputException, DynamicOutputShapeException
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only
from torch.utils.weak import WeakIdKeyDictionary

from planner.dispatching.tensors.fakes import is_fake, without_fakes
from planner.dispatching.tensors.placeholder import is_offloaded

__all__ = ["KnownValues", "MixedDevicesError"]

aten = torch.ops.aten

_CPU = torch.device("cpu")

# Values of more elements are not followed: models do not branch on those.
MOST_ELEMENTS = 1 << 22
# Operators whose tensors may lie on several devices.
_MIXING = {
    aten.copy_.default,
    aten._copy_from.default,
    aten._to_copy.default,
    aten.set_.source_Tensor,
    aten._foreach_copy_.default,
    aten.lift_fresh.default,
    aten._pack_padded_sequence.default,
    aten.is_same_size.default,
    aten._has_compatible_shallow_copy_type.default,
}
# Their indices may lie on the CPU as well.
_INDEXING = {
    aten.index.Tensor,
    aten.index_put.default,
    aten.index_put_.default,
    aten._unsafe_index.Tensor,
    aten._index_put_impl_.default,
}


class MixedDevicesError(RuntimeError):
    """What torch raises as a bare RuntimeError: an operator's tensors lie on several devices."""


class KnownValues(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Keeps real values beside fake tensors, as long as they follow from known ones, and refuses mixed devices as accelerators do.

    To be entered after the mode that makes fake tensors. An operator on known values is computed on the CPU as well; what a weight
    has been part of is unknown from there on.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._values: Any = WeakIdKeyDictionary()
        # Storages of values into which something unknown was written, by address; kept, so that the address stays theirs.
        self._spoilt: dict[int, Any] = {}
        self._is_unguarded = False

    def learn(self, fake: torch.Tensor, value: torch.Tensor) -> None:
        """What a fake tensor would hold; copied, so that nothing is written to the original."""
        if value.numel() <= MOST_ELEMENTS:
            with without_fakes(), torch.no_grad():
                self._values[fake] = value.detach().to("cpu", copy=True)

    def forget(self, fake: torch.Tensor) -> None:
        """What a fake tensor holds cannot be told."""
        self._values.pop(fake, None)

    def value(self, tensor: torch.Tensor) -> torch.Tensor | None:
        """The value of a tensor, or None."""
        found: torch.Tensor | None = self._values.get(tensor)
        if found is None:
            if is_fake(tensor) or tensor.is_meta or type(tensor) is not torch.Tensor:
                return None
            # A constant of the model's code.
            self.learn(tensor, tensor)
            found = self._values.get(tensor)
        return None if found is None or found.untyped_storage()._cdata in self._spoilt else found

    @contextmanager
    def unguarded(self) -> Iterator[None]:
        """Within, torch finds once that a tensor lies nowhere: indexing asks first, to make a device the current one."""
        self._is_unguarded = True
        try:
            yield
        finally:
            self._is_unguarded = False

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is torch.ops.prim.device.default:
            if self._is_unguarded:
                self._is_unguarded = False
                return torch.device("meta")
            return func(*args, **kwargs)  # that of the fake tensor
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
        if any(is_offloaded(tensor) for tensor in tensors):
            return func(*args, **kwargs)  # placeholders speak for themselves
        _require_together(func, tensors)
        values = [self.value(tensor) for tensor in tensors]
        if any(value is None for value in values):
            return self._unknown(func, args, kwargs)
        real = self._computed(func, args, kwargs)
        if real is None:
            return self._unknown(func, args, kwargs)
        (real_out,) = real
        if not any(isinstance(leaf, torch.Tensor) for leaf in tree_leaves(real_out)):
            return real_out  # what Python reads
        device = kwargs.get("device") or next((tensor.device for tensor in tensors), torch.device("cpu"))
        made = _faked(func, args, kwargs, real_out, device)
        for fake, value in zip(tree_leaves(made), tree_leaves(real_out), strict=True):
            if isinstance(fake, torch.Tensor):
                self._values[fake] = value
        return made

    def _computed(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any] | None:
        """What an operator makes of known values, on the CPU; None if that is too much, or the CPU has no kernel for it."""
        if not _is_small(args, kwargs):
            return None
        with without_fakes(), torch.no_grad():
            real_args, real_kwargs = tree_map_only(torch.Tensor, self.value, (args, dict(kwargs)))
            if real_kwargs.get("device") is not None:
                real_kwargs["device"] = torch.device("cpu")
            real_kwargs.pop("pin_memory", None)
            try:
                return (func(*real_args, **real_kwargs),)
            except RuntimeError:
                return None

    def _unknown(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """An operator some of whose values are unknown; masks and lengths among them may be known."""
        if func._schema.is_mutable:
            written = [value for value in _written(func, args, kwargs, self.value) if value is not None]
            self._spoilt.update(
                (value.untyped_storage()._cdata, value.untyped_storage()) for value in written
            )
        if func is aten.index.Tensor or func is aten._unsafe_index.Tensor:
            return func(args[0], self._indices(args[1]))
        if func is aten._pack_padded_sequence.default and (packed := self._packed(*args)) is not None:
            return packed
        if func is aten.masked_select.default and (mask := self.value(args[1])) is not None:
            with without_fakes():
                shape = torch.broadcast_shapes(args[0].shape, mask.shape)  # type: ignore[no-untyped-call]
                count = int(mask.expand(shape).sum())
            return torch.empty(count, dtype=args[0].dtype, device=args[0].device)
        return func(*args, **kwargs)

    def _packed(self, padded: Any, lengths: Any, batch_first: bool) -> tuple[Any, Any] | None:
        """Sequences of known lengths one after the other, and how many of them go on, which is known as well."""
        known = self.value(lengths)
        if known is None:
            return None
        with without_fakes():
            size = padded.shape[:2] if batch_first else padded.shape[1::-1]
            counted = torch.empty(size, device=_CPU)
            real = aten._pack_padded_sequence.default(counted, known, batch_first=True)
        counts = torch.empty(real[1].shape, dtype=torch.long, device=_CPU)
        self._values[counts] = real[1]
        rows = torch.empty((len(real[0]), *padded.shape[2:]), dtype=padded.dtype, device=padded.device)
        return rows, counts

    def _indices(self, indices: Any) -> list[Any]:
        """Indices with known masks as the positions that they select."""
        found: list[Any] = []
        for index in indices:
            mask = None if index is None else self.value(index)
            if mask is None or mask.dtype not in (torch.bool, torch.uint8):
                found.append(index)
                continue
            with without_fakes():
                places = mask.nonzero().unbind(1)
            found += [torch.empty(len(place), dtype=torch.long, device=index.device) for place in places]
        return found


def _faked(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], real: Any, device: torch.device) -> Any:
    """The fake result; where its shape depends on values, made after the real one."""
    try:
        return func(*args, **kwargs)
    except (DataDependentOutputException, DynamicOutputShapeException):
        return tree_map_only(
            torch.Tensor, lambda value: torch.empty_like(value, device=device, requires_grad=False), real
        )


def _is_small(args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether an operator makes no more than is worth following, as far as its arguments tell."""
    leaves = tree_leaves((args, kwargs))
    tensors = [leaf for leaf in leaves if isinstance(leaf, torch.Tensor)]
    if tensors:
        return sum(tensor.numel() for tensor in tensors) <= MOST_ELEMENTS
    # Sizes of what is made, or the end of a range.
    numbers = [abs(leaf) for leaf in leaves if isinstance(leaf, int | float) and leaf and leaf == leaf]
    return math.prod(numbers) <= MOST_ELEMENTS


def _written(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], value: Any) -> Iterator[Any]:
    """Known values of the tensors that an operator writes."""
    for place, argument in enumerate(func._schema.arguments):
        if argument.alias_info is not None and argument.alias_info.is_write:
            given = args[place] if place < len(args) else kwargs.get(argument.name)
            yield from (value(leaf) for leaf in tree_leaves(given) if isinstance(leaf, torch.Tensor))


def _require_together(func: Any, tensors: list[torch.Tensor]) -> None:
    """Raises where an operator's tensors lie on several devices, as an accelerator's kernels do; fake ones look at some only."""
    if func in _MIXING or len(tensors) < 2:
        return
    first = tensors[0].device
    if all(tensor.device == first for tensor in tensors):
        return
    if func in _INDEXING:
        wrong = next((t.device for t in tensors[1:] if t.device not in (first, _CPU)), None)
    else:
        placement = next((t.device for t in tensors if t.dim() or t.device.type != "cpu"), first)
        wrong = next(
            (t.device for t in tensors if t.device != placement and (t.dim() or t.device.type != "cpu")), None
        )
        first = placement
    if wrong is not None:
        raise MixedDevicesError(
            f"Expected all tensors to be on the same device, but found at least two devices, {first} and {wrong}! "
            f"(when checking arguments of {func.name()})"
        )

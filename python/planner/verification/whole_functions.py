"""Functions that ask the driver or leave torch before an operator is seen, expressed in fake tensors."""

from __future__ import annotations

from typing import Any

import torch
from torch._dispatch.python import enable_python_dispatcher
from torch.overrides import TorchFunctionMode

from planner.dispatching.tensors.fakes import address_of, is_fake, without_fakes
from planner.dispatching.tensors.placeholder import is_offloaded
from planner.verification.absent_devices import is_there
from planner.verification.known_values import KnownValues

__all__ = ["WholeFunctions"]

# On CUDA these look for a kernel of cuDNN's, which asks the device and keeps a state for it; their definition in Python does not.
_RECURRENT = frozenset([torch._VF.lstm, torch._VF.gru, torch._VF.rnn_tanh, torch._VF.rnn_relu])

_ARRAYS = frozenset([torch.Tensor.numpy, torch.Tensor.__array__, torch.Tensor.tolist])

_CONSTRUCTORS = frozenset([torch.tensor, torch.as_tensor, torch.asarray, torch.Tensor.new_tensor])

_INDEXING = frozenset([torch.Tensor.__getitem__, torch.Tensor.__setitem__])


class WholeFunctions(TorchFunctionMode):
    """Recurrent layers by their definition, and arrays of what is known.

    Transformer layers take their usual path; nested tensors have no fake.
    """

    def __init__(self, known: KnownValues) -> None:
        super().__init__()
        self.known = known

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func in _RECURRENT:
            with enable_python_dispatcher():
                return func(*args, **kwargs)
        if func in _CONSTRUCTORS and args and (numbers := _fakes_in(args[-1])):
            return self._constructed(numbers, func, *args, **kwargs)
        if func in _ARRAYS and not is_offloaded(args[0]):
            value = self.known.value(args[0])
            if value is not None:
                with without_fakes():
                    return func(value.clone(), *args[1:], **kwargs)
        if func in _INDEXING and args[0].device.type == "cuda" and not is_there(args[0].device):
            with self.known.unguarded():
                return func(*args, **kwargs)
        if func is torch.Tensor.data_ptr and is_fake(args[0]):
            return address_of(args[0])
        if func is torch._nested_tensor_from_mask_left_aligned:
            return False
        if func is torch._VF._pad_packed_sequence:
            return self._padded(func, *args, **kwargs)
        return func(*args, **kwargs)

    def _constructed(self, numbers: list[torch.Tensor], func: Any, *args: Any, **kwargs: Any) -> torch.Tensor:
        """A tensor of a list in which some numbers are tensors of one element, which torch reads past all modes."""
        values = {id(number): self.known.value(number) for number in numbers}
        device, dtype = kwargs.get("device", "cpu"), kwargs.get("dtype")
        if func is torch.Tensor.new_tensor:
            device, dtype = kwargs.get("device", args[0].device), dtype or args[0].dtype
        with without_fakes():
            for number in numbers:
                if values[id(number)] is None:
                    values[id(number)] = torch.zeros(number.shape, dtype=number.dtype, device="cpu")
            real = torch.tensor(_with_values(args[-1], values), dtype=dtype, device="cpu")
        made = torch.empty(real.shape, dtype=real.dtype, device=device)
        if any(self.known.value(number) is None for number in numbers):
            self.known.forget(made)
        else:
            self.known.learn(made, real)
        return made

    def _padded(
        self, func: Any, rows: Any, counts: Any, batch_first: bool, value: float, total_length: int
    ) -> tuple[Any, Any]:
        """Sequences of known lengths beside each other, and these lengths; torch reads them where a fake tensor has none."""
        known = self.known.value(counts)
        if known is None:
            return func(rows, counts, batch_first, value, total_length)  # type: ignore[no-any-return]
        with without_fakes():
            padded, real = func(torch.empty(len(rows), device="cpu"), known, batch_first, value, total_length)
        lengths = torch.empty(real.shape, dtype=real.dtype, device="cpu")
        self.known.learn(lengths, real)
        return rows.new_empty((*padded.shape[:2], *rows.shape[1:])), lengths


def _fakes_in(data: Any) -> list[torch.Tensor]:
    """Fake tensors inside of lists, however deep."""
    found: list[torch.Tensor] = []
    for item in data if isinstance(data, list | tuple) else ():
        found += [item] if is_fake(item) else _fakes_in(item)
    return found


def _with_values(data: Any, values: dict[int, Any]) -> Any:
    if isinstance(data, list | tuple):
        return [_with_values(item, values) for item in data]
    return values.get(id(data), data)

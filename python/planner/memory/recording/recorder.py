"""A mode that writes down what operators allocate, beside which block, and that answers for values."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Container, Iterable, Mapping
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from planner.memory.recording.device_numbers import DeviceNumbers
from planner.memory.recording.known_results import KnownResults
from planner.memory.recording.values import tensors_in
from planner.memory.recording.weights import RecordedWeights
from planner.memory.tape import (
    AFTER,
    APART,
    CALL,
    ENTER,
    FORGET,
    FREE,
    LEAVE,
    MADE,
    OUTPUT,
    PHASE,
    REST,
    Event,
    Row,
)

__all__ = ["Recorder"]

_aten = torch.ops.aten
_functorch = torch._C._functorch
_READ = _aten._local_scalar_dense.default
_EQUAL = _aten.equal.default
_COPY = _aten._to_copy.default
# What a cache keeps has rows, tokens and widths at least.
_CACHED_DIMS = 3


class Recorder(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Notes storages of meta tensors as they appear and go.

    Inside of a block everything lies beside it, because dispatch brings its arguments there. Between blocks, an operator computes
    where dispatch would have it compute: where the tensor lies that it writes, else where most bytes of its operands do.

    Args:
        weights: by storage, the place of a weight; these are not written down.
        storages: of the weights; where a forward puts something else in the place of one, it is written down.
        blocks: how many there are; further places are numbered after theirs.
        composed: operators whose kernels are made of others that no mode sees, and functions that call these.
        is_padded: the answer where code asks for values: masks of prompts without padding are true everywhere.
    """

    def __init__(
        self,
        weights: Mapping[int, int],
        storages: Iterable[torch.UntypedStorage],
        blocks: int,
        composed: Mapping[Any, Callable[..., Any]],
        *,
        is_padded: bool,
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.events: list[Event] = []
        self.assumed: dict[str, None] = {}
        self.place: int | None = None  # of the block that runs; None between blocks
        self._failed: tuple[Exception | None, int] = (None, 0)
        self.forced: int | None = None  # where a tensor is being made, whatever it is made of
        self.last_operator = ""
        self.numbers = DeviceNumbers()
        self.carried: dict[tuple[int, int], int] = {}  # places of what a border around blocks has brought
        self._blocks = blocks
        self._brought: dict[int, int] = {}  # by storage, its place for the module around blocks that runs
        self._returned: dict[
            int, int
        ] = {}  # by storage, its number: what the forward has given to its caller
        self._is_padded = is_padded
        self._composed = composed
        self._inside: set[Any] = set()  # those of them that run
        self._known = KnownResults()
        self._weights = RecordedWeights(weights, storages, self.events.append)
        self._alive: dict[int, tuple[int, int]] = {}  # by storage: its number and place
        self._watched: dict[int, weakref.ref[Any]] = {}
        self._tensors: dict[int, tuple[int, weakref.ref[torch.Tensor]]] = {}
        self._storages = self._seen = 0

    # ---- What is written down

    def phase(self, name: str) -> None:
        """A forward begins."""
        self.events.append((PHASE, name))

    def enter(self, place: int, arguments: Any, skip: Container[str]) -> None:
        """A block begins."""
        self.events.append((ENTER, place, self._rows(tensors_in(arguments, skip))))
        self.place = place

    def leave(self, place: int, before: int | None) -> None:
        """It ends; ``before`` is where its caller computes."""
        self.events.append((LEAVE, place))
        self.place = before

    def call(self, enclosing: int, arguments: Any, skip: Container[str]) -> dict[int, int | None]:
        """A module around blocks begins, which finds its arguments where its border has brought them.

        Returns:
            What :meth:`returned` puts back.
        """
        tensors = [tensor for tensor in tensors_in(arguments, skip) if tensor.is_meta]
        if tensors:
            self.events.append((CALL, enclosing, self._rows(tensors)))
        before: dict[int, int | None] = {}
        for tensor in tensors:
            key = tensor.untyped_storage()._cdata
            if key not in before:
                before[key] = self._brought.get(key)
                at = (enclosing, self._where(tensor)[1])
                self._brought[key] = self.carried.setdefault(at, self._blocks + 1 + len(self.carried))
        return before

    def returned(self, before: Mapping[int, int | None]) -> None:
        """It ends; its caller finds its tensors where they were."""
        for key, place in before.items():
            if place is None:
                self._brought.pop(key, None)
            else:
                self._brought[key] = place

    def fail(self, error: Exception, place: int) -> None:
        """A block has raised; the innermost one is told first."""
        if self._failed[0] is not error:
            self._failed = (error, place)

    def failed_in(self, error: Exception) -> int:
        """The place of the block that has raised an error; 0 for the model's own code between blocks."""
        return self._failed[1] if self._failed[0] is error else 0

    def output(self, value: Any) -> None:
        """A forward has returned something."""
        tensors = [tensor for tensor in tensors_in(value) if tensor.is_meta]
        self.events.append((OUTPUT, self._rows(tensors)))
        keys = [tensor.untyped_storage()._cdata for tensor in tensors]
        self._returned = {key: self._alive[key][0] for key in keys if key in self._alive}

    def after(self) -> None:
        """What it has returned has been let go; what is left of that lies with its caller."""
        self.events.append((AFTER,))
        for key, number in self._returned.items():
            if self._alive.get(key, (None,))[0] == number:
                self._alive[key] = (number, 0)
        self._returned.clear()

    def made(
        self, tensor: torch.Tensor, place: int, operator: str, source: torch.Tensor | None = None
    ) -> None:
        """A tensor is there, whose storage may be new; of one that copies what lies beside another block, what that is."""
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._alive or key in self._weights:
            return
        number = self.next_storage()
        self._alive[key] = (number, place)
        copied = () if source is None else self._where(source)
        if source is not None:
            self._weights.copied(source.untyped_storage()._cdata, number)
        self.events.append((MADE, number, storage.nbytes(), place, operator, *copied))

        def gone(_: Any) -> None:
            self.events.append((FREE, number))
            del self._watched[number]
            if self._alive.get(key, (None,))[0] == number:
                del self._alive[key]
                self._brought.pop(key, None)

        self._watched[number] = weakref.ref(storage, gone)

    def _rests(self, tensor: torch.Tensor, size: int, place: int) -> None:
        """What a block keeps has been brought to the cpu."""
        number = self.next_storage()
        self.events.append((REST, number, size, place))

        def gone(_: Any) -> None:
            self.events.append((FREE, number))
            del self._watched[number]

        self._watched[number] = weakref.ref(tensor.untyped_storage(), gone)

    def next_storage(self) -> int:
        """The number of one more storage, which comes and goes with what is written down."""
        number = self._storages
        self._storages += 1
        return number

    @property
    def storages(self) -> int:
        """How many storages have been made."""
        return self._storages

    def number_of(self, storage: int) -> int | None:
        """The number of a storage that is alive, by its address; None for a weight."""
        return self._alive[storage][0] if storage in self._alive else None

    def is_weight_of(self, tensor: torch.Tensor, place: int) -> bool:
        """Whether a weight lies beside this block."""
        return self._weights.place(tensor.untyped_storage()._cdata) == place

    def _rows(self, tensors: Iterable[torch.Tensor]) -> tuple[Row, ...]:
        rows = []
        for tensor in tensors:
            if tensor.device.type == "meta":
                number, place = self._where(tensor)
                rows.append((self._number(tensor), number, place, tensor.numel() * tensor.element_size()))
        return tuple(rows)

    def _where(self, tensor: torch.Tensor) -> tuple[int, int]:
        """Number and place of a tensor's storage."""
        key = tensor.untyped_storage()._cdata
        number, place = self._alive.get(key) or (-1, self._weights.place(key) or 0)
        return number, self._brought.get(key, place)

    def _number(self, tensor: torch.Tensor) -> int:
        key = id(tensor)
        found = self._tensors.get(key)
        if found is not None and found[1]() is tensor:
            return found[0]
        number = self._seen
        self._seen += 1

        def gone(_: Any) -> None:
            self.events.append((FORGET, number))
            if self._tensors.get(key, (None,))[0] == number:
                del self._tensors[key]

        self._tensors[key] = (number, weakref.ref(tensor, gone))
        return number

    def forget(self) -> None:
        """Lets go of everything that is watched; nothing is written down any more."""
        self._failed = (None, 0)
        self._watched.clear()
        self._tensors.clear()
        self._alive.clear()
        self._weights.forget()

    # ---- Operators

    def place_of(self, tensor: torch.Tensor) -> int:
        """Beside which block a tensor lies, as the code that asks finds it."""
        if self.place is not None:
            return self.place
        while _functorch.is_functorch_wrapped_tensor(tensor):
            tensor = _functorch.get_unwrapped(tensor)  # masks are made by functions that are mapped
        return self._where(tensor)[1]

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        self.last_operator = str(func)
        if func is _READ and args[0].is_meta:
            return self._read(args[0])
        if func is _EQUAL and args[0].is_meta:
            return bool(self._answer(torch.bool))
        if func is _COPY and args[0].is_meta:
            return self._copied(args[0], kwargs)
        inside = self._composed.get(func)
        if inside is not None and func not in self._inside:
            self._inside.add(func)
            try:
                with self:
                    return inside(*args, **kwargs)
            finally:
                self._inside.discard(func)
        place = self.place
        if func is _COPY and kwargs.get("device") is not None and kwargs["device"].type == "meta":
            place = self.numbers.place(kwargs["device"])  # from the cpu, for whichever block it is
        if place is None:
            place = self._between(func, args, kwargs)
        out = self._known.of(func, args, kwargs)
        self._note(out, place)
        return out

    def _note(self, out: Any, place: int) -> None:
        if isinstance(out, torch.Tensor):
            if out.is_meta:
                self.made(out, place, self.last_operator)
        elif isinstance(out, tuple | list):
            for item in out:
                self._note(item, place)

    def _between(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> int:
        """Where the model's own code computes this."""
        if self.forced is not None:
            return self.forced
        device = kwargs.get("device")
        if device is not None:
            return self.numbers.place(device) if device.type == "meta" else 0
        operands = [tensor for tensor in _operands((args, kwargs)) if tensor.is_meta]
        if not operands:
            return 0
        places = [self._where(tensor)[1] for tensor in operands]
        if len(set(places)) == 1:
            return places[0]
        sizes: dict[int, int] = {}
        for tensor, place in zip(operands, places, strict=True):
            sizes[place] = sizes.get(place, 0) + tensor.numel() * tensor.element_size()
        name = func._schema.name
        place = places[0] if name.endswith("_") else max(sizes, key=lambda each: sizes[each])
        if name not in ("aten::copy_", "aten::set_"):
            rows = [row for row in self._rows(operands) if row[2] != place]
            self.events.append((APART, place, tuple(rows)))
        return place

    # ---- What the meta device cannot do

    def _copied(self, tensor: torch.Tensor, kwargs: dict[str, Any]) -> torch.Tensor:
        device = kwargs.get("device")
        if device is not None and device.type == "cpu":
            return self._on_cpu(tensor)
        here = self.place_of(tensor)
        place = here if device is None or self.place is not None else self.numbers.place(device)
        dtype = kwargs.get("dtype")
        if dtype in (None, tensor.dtype) and place == here and kwargs.get("memory_format") is None:
            return tensor  # which is no copy where it is there already
        out: torch.Tensor = _COPY(tensor, **{key: value for key, value in kwargs.items() if key != "device"})
        is_moved = place != here and dtype in (None, tensor.dtype) and kwargs.get("memory_format") is None
        self.made(out, place, self.last_operator, tensor if is_moved else None)
        return out

    def _on_cpu(self, tensor: torch.Tensor) -> torch.Tensor:
        """What code may read there. Of a cache that rests there it is only the shape that counts, and one value takes no room."""
        if tensor.is_floating_point() and tensor.dim() >= _CACHED_DIMS:
            shape = torch.ones((), dtype=tensor.dtype, device="cpu").expand(tensor.shape)
            self._rests(shape, tensor.numel() * tensor.element_size(), self.place_of(tensor))
            return shape
        return torch.full(tensor.shape, self._answer(tensor.dtype), dtype=tensor.dtype, device="cpu")

    def _read(self, tensor: torch.Tensor) -> Any:
        return self._answer(tensor.dtype)

    def _answer(self, dtype: torch.dtype) -> Any:
        answer = not self._is_padded if dtype == torch.bool else 1
        self.assumed[f"{self.place}: {dtype} {answer}"] = None
        return float(answer) if dtype.is_floating_point else answer


def _operands(value: Any) -> Iterable[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, tuple | list):
        for item in value:
            yield from _operands(item)
    elif isinstance(value, dict):
        yield from _operands(tuple(value.values()))

"""The model's own code between blocks: an operator whose operands lie on several devices is computed on one of them.

In an undispatched model all operands lie together, so bringing them together hides nothing. A mode on torch's stack sees the
operators, and the stack is the only state: torch keeps one for each thread.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from functools import partial
from types import FunctionType
from typing import Any

import torch
from torch import Tensor
from torch._ops import OpOverload, OpOverloadPacket
from torch.overrides import TorchFunctionMode

from planner.dispatching.interrupts import end_again
from planner.dispatching.mixed.log import CrossingLog
from planner.dispatching.tensors.fakes import is_fake
from planner.dispatching.transfer.argument_copies import ArgumentCopies
from planner.dispatching.transfer.once import lend
from planner.errors import PlannerError

__all__ = ["Glue", "gluing", "lifted", "pop", "push", "size", "top"]

# torch's stack of modes, of this thread. Under names of their own, because every block of a mixed model asks it.
size = torch._C._len_torch_function_stack
top = torch._C._get_function_stack_at
pop = torch._C._pop_torch_function_stack
push = torch._C._push_on_torch_function_stack

# These raise for other reasons, and a second call would not help.
_FINAL = (PlannerError, torch.OutOfMemoryError, getattr(torch, "AcceleratorError", torch.OutOfMemoryError))
# They take operands from several devices, or do more than compute: they are called as they are.
_AS_THEY_ARE = frozenset(["to", "copy_", "type_as", "set_", "backward", "grad", "__get__", "__set__"])
# They draw random numbers, and may have drawn some before they raise.
RANDOM = frozenset(
    [
        "bernoulli",
        "bernoulli_",
        "binomial",
        "dropout",
        "gru",
        "lstm",
        "multi_head_attention_forward",
        "native_dropout",
        "normal",
        "normal_",
        "randint_like",
        "rnn_relu",
        "rnn_tanh",
        "rrelu",
        "rrelu_",
        "rrelu_with_noise",
        "rrelu_with_noise_",
        "scaled_dot_product_attention",
    ]
)
_WRITES = frozenset(
    f"__{name}__"
    for name in [
        "setitem",
        "iadd",
        "isub",
        "imul",
        "itruediv",
        "ifloordiv",
        "imod",
        "ipow",
        "iand",
        "ior",
        "ixor",
        "ilshift",
        "irshift",
    ]
)
_HERE = os.path.dirname(os.path.dirname(__file__))  # all of dispatching
_TORCH = os.path.dirname(torch.__file__)
_MODULES = os.path.join(_TORCH, "nn", "modules")


class Glue(TorchFunctionMode):
    """Where torch refuses an operator because its operands lie apart, it is called again with them together.

    Operators that write (in place, ``out=``, ``x[i] = …``) get the others where the written tensor lies. All others are computed
    on the accelerator that holds most bytes of the operands, so that the fewest move.

    Args:
        log: counts what moves.
    """

    def __init__(self, log: CrossingLog) -> None:
        super().__init__()
        self.log = log
        # What the stack shall be when this mode has left it.
        self.after: list[Any] | None = None

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if torch.compiler.is_compiling():
            return _traced(func, args, kwargs)
        name = _name(func)
        before = _Before.of(func, name, args, kwargs)
        try:
            return func(*args, **kwargs)
        except RuntimeError as error:
            if isinstance(error, _FINAL) or name in _AS_THEY_ARE or not _is_torchs(func):
                raise
            operands = _tensors((args, kwargs))
            if not _are_apart(operands):
                raise
            if before is not None and before.has_written():
                error.add_note(
                    f"its operands lie on several devices, and {name} had written a part of its result when it was refused; bring "
                    "them together before"
                )
                raise
        if before is not None:
            before.draw_again()
        return self._together(func, name, operands, args, kwargs)

    def _together(
        self, func: Any, name: str, operands: list[Tensor], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        device, argument_copies = _common_device(name, operands, args, kwargs), ArgumentCopies()
        carry = lend(argument_copies)
        result = func(
            *_brought(args, device, carry),
            **{key: _brought(value, device, carry) for key, value in kwargs.items()},
        )
        argument_copies.write_back()
        where, seen = _line(), set[int]()
        for tensor in operands:
            if tensor.device != device and id(tensor) not in seen:
                seen.add(id(tensor))
                self.log.note(where, name, tensor.device, device, _size_bytes(tensor))
        return result


class _Before:
    """What a call may change before it raises: tensors that it gets, and random generators.

    Only where operands lie apart; no other call is made again. Of a custom operator's kernel, nothing else is known.
    """

    __slots__ = ("generators", "written")

    def __init__(self, written: list[tuple[Tensor, int]], generators: list[Callable[[], Any]]) -> None:
        self.written = written
        self.generators = generators

    @classmethod
    def of(cls, func: Any, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> _Before | None:
        operands = _tensors((args, kwargs)) if kwargs else _tensors(args)
        if len(operands) < 2 or not _are_apart(operands):
            return None
        # What is given as `out` is written anew.
        given = _tensors((args, {key: value for key, value in kwargs.items() if key != "out"}))
        written = [(tensor, tensor._version) for tensor in given if not tensor.is_inference()]
        return cls(written, list(_rewinds(operands, kwargs)) if _may_draw(func, name) else [])

    def has_written(self) -> bool:
        return any(tensor._version != version for tensor, version in self.written)

    def draw_again(self) -> None:
        """The second call draws what the first one has drawn."""
        for rewind in self.generators:
            rewind()


def _rewinds(operands: list[Tensor], kwargs: dict[str, Any]) -> Iterator[Callable[[], Any]]:
    if any(is_fake(tensor) for tensor in operands):
        return  # nothing is drawn
    generator = kwargs.get("generator")
    if isinstance(generator, torch.Generator):
        state = generator.get_state()
        yield lambda: generator.set_state(state)
    host = torch.get_rng_state()
    yield lambda: torch.set_rng_state(host)
    for device in dict.fromkeys(tensor.device for tensor in operands):
        if device.type not in ("cpu", "meta"):
            module: Any = torch.get_device_module(device)
            kept = module.get_rng_state(device)
            yield lambda module=module, kept=kept, device=device: module.set_rng_state(kept, device)  # type: ignore[misc]


def _name(func: Any) -> str:
    """As torch names an operator, without its overload."""
    return str(getattr(func, "__name__", "")).partition(".")[0]


def _is_writing(name: str) -> bool:
    """Whether an operator writes its first operand: torch ends the names of those with an underscore."""
    return name in _WRITES or (name.endswith("_") and not name.endswith("__"))


def _may_draw(func: Any, name: str) -> bool:
    """Whether an operator may draw random numbers: of those that are not torch's own kernels, it cannot be known."""
    if isinstance(func, OpOverload | OpOverloadPacket):
        return name in RANDOM or str(func).partition(".")[0] not in ("aten", "prims")
    return name in RANDOM or isinstance(func, FunctionType)


def _is_torchs(func: Any) -> bool:
    """Whether it is an operator, or a function of torch's own, which are pure but for what they write and draw."""
    return not isinstance(func, FunctionType) or func.__module__.partition(".")[0] in ("torch", "torchvision")


def _tensors(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    items: Any = ()
    if isinstance(value, tuple | list):
        items = value
    elif isinstance(value, dict):
        items = value.values()
    found = []
    for item in items:
        found.extend(_tensors(item))
    return found


def _are_apart(operands: list[Tensor]) -> bool:
    """Whether operands with values lie on several devices. One without values cannot be brought anywhere."""
    return len({tensor.device for tensor in operands}) > 1 and not any(
        t.device.type == "meta" for t in operands
    )


def _common_device(
    name: str, operands: list[Tensor], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> torch.device:
    written = _tensors(kwargs.get("out")) or (_tensors(args[:1]) if _is_writing(name) else [])
    if written:
        return written[0].device
    sizes: dict[torch.device, int] = {}
    for tensor in operands:
        sizes[tensor.device] = sizes.get(tensor.device, 0) + _size_bytes(tensor)
    accelerators = [device for device in sizes if device.type != "cpu"]
    return max(accelerators or sizes, key=lambda device: sizes[device])


def _size_bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def _brought(value: Any, device: torch.device, carry: Callable[[Tensor, torch.device], Tensor]) -> Any:
    """A value with its tensors on a device, in containers of its own."""
    if isinstance(value, Tensor):
        return value if value.device == device else carry(value, device)
    if isinstance(value, tuple | list):
        items = [_brought(item, device, carry) for item in value]
        if isinstance(value, list):
            return items
        return type(value)._make(items) if hasattr(value, "_make") else tuple(items)
    if isinstance(value, dict):
        return {key: _brought(item, device, carry) for key, item in value.items()}
    return value


def _line() -> str:
    """Where the model's own code called the operator."""
    frame = sys._getframe(1)
    while frame.f_back is not None:
        path = frame.f_code.co_filename
        if not path.startswith(_HERE) and (not path.startswith(_TORCH) or path.startswith(_MODULES)):
            break
        frame = frame.f_back
    return f"{frame.f_code.co_filename}:{frame.f_lineno}"


def _traced(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """In compiled code, where no failure can be traced, what lies apart is brought together before; nothing is counted."""
    name = _name(func)
    if name not in _AS_THEY_ARE:
        operands = [
            tensor for tensor in _tensors((args, kwargs)) if tensor.dim() or tensor.device.type != "cpu"
        ]
        if _are_apart(operands):
            device = _common_device(name, operands, args, kwargs)
            written = _tensors([kwargs.get("out"), args[:1] if _is_writing(name) else None])
            args = _brought(args, device, _sent)
            kwargs = {key: _brought(value, device, _sent) for key, value in kwargs.items()}
            result = func(*args, **kwargs)
            made = _tensors([kwargs.get("out"), args[:1] if _is_writing(name) else None])
            for tensor, copy in zip(written, made, strict=True):
                if tensor.device != device:
                    tensor.copy_(copy)
            return result
    return func(*args, **kwargs)


def _sent(tensor: Tensor, device: torch.device) -> Tensor:
    return tensor.to(device)


# ---- The stack


def lifted() -> Glue | None:
    """Takes the mode off where it is on top of this thread's stack; pushing it again ends that.

    Below another mode it stays: that costs time and changes nothing.
    """
    count = size()
    if not count:
        return None
    mode = top(count - 1)
    if type(mode) is not Glue:
        return None
    pop()
    return mode


def gluing(log: CrossingLog, call: Callable[[], Any]) -> Any:
    """Runs the model's own code with the mode on.

    Guarantee: afterwards the stack is what it was, whatever the code has pushed or popped above.
    """
    if any(type(mode) is Glue and mode.log is log for mode in _stack()):
        return call()
    # That of another model, whose code calls this one.
    below, mode = lifted(), Glue(log)
    leave = partial(_leave, mode, below)
    with end_again(leave):
        try:
            push(mode)
            return call()
        finally:
            leave()


def _stack() -> list[Any]:
    return [top(at) for at in range(size())]


def _leave(mode: Glue, below: Glue | None) -> None:
    """Takes a mode out of the stack, wherever it is, and puts another one in its place; once more, nothing happens."""
    stack = _stack()
    if mode.after is None:
        kept = [below if found is mode else found for found in stack]
        if mode not in stack:
            kept.append(below)
        mode.after = [found for found in kept if found is not None]
    if stack != mode.after:
        # From the bottom, so that an interrupt half-way is answered by doing it again.
        while size():
            pop()
        for found in mode.after:
            push(found)

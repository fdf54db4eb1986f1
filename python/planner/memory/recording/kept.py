"""Which recordings are kept: those of the same model, as long as it is as it was."""

from __future__ import annotations

import hashlib
import itertools
import weakref
from collections.abc import Iterator, Mapping
from contextlib import suppress
from types import FunctionType, MethodType
from typing import Any, Final

import torch
from torch import nn

__all__ = ["state_of"]

_PLAIN: Final = (bool, int, float, complex, str, bytes, type(None), torch.dtype, torch.device, torch.Size)
# What torch keeps in a module beside its tensors, and what says nothing of a forward in eval mode.
_TORCHS_OWN: Final = frozenset(vars(nn.Module())) | {"_compiled_call_impl"}
_DEEPEST: Final = 6
_LONGEST: Final = 1000

_numbers = itertools.count()
_known: dict[int, tuple[weakref.ref[nn.Module], int]] = {}


def state_of(model: nn.Module) -> str:
    """A digest of a live model: of which one it is, and of what its forward may read beside the values of its tensors.

    Two models have never the same, however alike they are: what their code reads elsewhere is not seen.

    Guarantee: keeps nothing of the model alive, and runs none of its code.

    Cost: O(modules + attributes); some 10 microseconds for each module.
    """
    seen: set[int] = set()
    digest = hashlib.blake2b(str(_number_of(model)).encode(), digest_size=16)
    for name, module in model.named_modules(remove_duplicate=False):
        kind = type(module)
        parts = [name, str(id(kind)), _code(kind.forward)]
        for key in ("_parameters", "_buffers"):
            parts += [f"{each}={_text(tensor, seen, 0)}" for each, tensor in vars(module)[key].items()]
        parts += [
            f"{key}={_text(value, seen, 0)}" for key, value in vars(module).items() if key not in _TORCHS_OWN
        ]
        digest.update("\n".join(parts).encode(errors="replace"))
    return digest.hexdigest()


def _number_of(model: nn.Module) -> int:
    """A number that no other model of this process has or had."""
    key = id(model)
    found = _known.get(key)
    if found is None or found[0]() is not model:
        found = (weakref.ref(model, lambda gone: _forget(key, gone)), next(_numbers))
        _known[key] = found
    return found[1]


def _forget(key: int, gone: weakref.ref[nn.Module]) -> None:
    if key in _known and _known[key][0] is gone:
        del _known[key]


def _text(value: Any, seen: set[int], depth: int) -> str:
    """What a value is made of, as far as that can be told; else which object it is."""
    kind = type(value)
    if kind in _PLAIN:
        return f"{kind.__name__} {value!r}"
    if isinstance(value, torch.Tensor):
        return f"{value.dtype} {tuple(value.shape)} {value.requires_grad}"
    known = f"{kind.__qualname__} {id(value)}"
    if id(value) in seen or depth == _DEEPEST or isinstance(value, nn.Module):
        return known
    if isinstance(value, dict | list | tuple | set | frozenset):
        size = f"{kind.__qualname__} of {len(value)}"
        inside = [_text(each, seen, depth + 1) for each in _items(value)]
        return f"{size} {sorted(inside) if isinstance(value, set | frozenset) else inside}"
    seen.add(id(value))
    own = None if isinstance(value, type) else _own(value)
    return f"{known} {_code(value)} {'' if own is None else _text(own, seen, depth + 1)}"


def _own(value: Any) -> dict[str, Any] | None:
    """The attributes of an object, without asking its own code."""
    try:
        own = object.__getattribute__(value, "__dict__")
    except AttributeError:
        return None
    return own if type(own) is dict else None


def _items(value: Any) -> Iterator[Any]:
    """What is in a container, the beginning of a long one."""
    whole = itertools.chain.from_iterable(value.items()) if isinstance(value, Mapping) else value
    return itertools.islice(whole, _LONGEST)


def _code(value: Any) -> str:
    """Which function this is: another one may have come to where one was."""
    function = value.__func__ if type(value) is MethodType else value
    if type(function) is not FunctionType:
        return str(id(function))
    code = function.__code__
    digest = hash((code.co_code, repr(code.co_consts), code.co_names))
    return f"{id(function)} {digest} {[each for each in _closed(function) if type(each) in _PLAIN]!r}"


def _closed(function: FunctionType) -> Iterator[Any]:
    """What a function has of the one around it."""
    for cell in function.__closure__ or ():
        with suppress(ValueError):  # it is empty
            yield cell.cell_contents

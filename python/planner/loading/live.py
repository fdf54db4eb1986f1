"""The tensors that a model expects from files, and the modules that hold them, in one walk each."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor, nn


def live_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and persistent buffers by all their names, as they are: what ``state_dict`` has, in its order."""
    found: dict[str, Tensor] = {}
    for prefix, module in modules_by_name(model):
        for name, parameter in module._parameters.items():
            if parameter is not None:
                found[prefix + name] = parameter
        for name, buffer in module._buffers.items():
            if buffer is not None and name not in module._non_persistent_buffers_set:
                found[prefix + name] = buffer
    return found


def modules_by_name(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """All modules under all their names, which are empty or end with a dot; parents come before children."""
    left = [("", model)]
    while left:
        prefix, module = left.pop()
        yield prefix, module
        children = reversed(module._modules.items())
        left.extend((f"{prefix}{name}.", child) for name, child in children if child is not None)

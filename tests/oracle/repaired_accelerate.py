"""The differential oracle for accelerate's dialect: the installed accelerate with three defects repaired, in memory.

    answer = accelerate_answer(model, max_memory, **kwargs)  # answer.binding, answer.device_map, answer.why

The defects: "inside" is a substring; splitting loses direct buffers; the order of keys depends on PYTHONHASHSEED.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import accelerate.utils.modeling as upstream

from oracle.upstream import Answer, answer, buffers_survive_a_split, executed_again, fault, prefix_containment

ordered = executed_again(upstream)
repaired = executed_again(
    upstream, [*prefix_containment(inside=4, outside=2), *buffers_survive_a_split(modules=2, parents=1)]
)


def accelerate_answer(model: Any, max_memory: dict[Any, Any], **kwargs: Any) -> Answer:
    """accelerate's map, and whether it binds ours."""
    dtypes = {key: kwargs[key] for key in ("dtype", "special_dtypes") if kwargs.get(key)}
    return answer(
        lambda: ordered.infer_auto_device_map(model, dict(max_memory), **kwargs),
        lambda: repaired.infer_auto_device_map(model, dict(max_memory), **kwargs),
        lambda device_map: invalid(model, device_map, max_memory, **dtypes),
    )


def invalid(
    model: Any,
    device_map: dict[str, Any],
    max_memory: dict[Any, Any],
    dtype: Any = None,
    special_dtypes: dict[str, Any] | None = None,
) -> str | None:
    """Why a device map is invalid in the planned dtype, or None. Budgets in bytes."""
    return fault(device_map, max_memory, list(planned_tensors(model, dtype, special_dtypes or {})))


def planned_tensors(model: Any, dtype: Any, special_dtypes: dict[str, Any]) -> Iterator[tuple[str, int, int]]:
    """Every name of every tensor, its identity, and the bytes it takes once loaded; its first name decides on those."""
    sizes: dict[int, int] = {}
    named = [*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)]
    for name, tensor in named:
        size = tensor.numel() * element_bytes(tensor.dtype, dtype, special_dtypes.get(name))
        yield name, id(tensor), sizes.setdefault(id(tensor), size)


def element_bytes(stored: Any, dtype: Any, special: Any) -> int:
    """Bytes of one element in memory: accelerate never casts integers and bools unless they are named."""
    if special is not None:
        return int(upstream._get_proper_dtype(special).itemsize)
    if dtype is None or str(stored).startswith(("torch.uint", "torch.int", "torch.bool")):
        return int(stored.itemsize)
    return int(upstream._get_proper_dtype(dtype).itemsize)

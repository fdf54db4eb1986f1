"""The differential oracle for transformers' dialect: the installed transformers, repaired in memory like accelerate.

    answer = transformers_answer(model, max_memory, **kwargs)  # answer.binding, answer.device_map, answer.why

Bytes are those of the quantizer where there is one; a name in `all_tied_weights_keys` or in `tied_parameters` is the
same tensor as its source, whether it has been tied yet or not.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import transformers.integrations.accelerate as upstream

from oracle import repaired_accelerate
from oracle.upstream import Answer, answer, buffers_survive_a_split, executed_again, fault, prefix_containment

ordered = executed_again(upstream)
repaired = executed_again(
    upstream, [*prefix_containment(inside=2, outside=1), *buffers_survive_a_split(modules=2, parents=0)]
)
for _module, _accelerate in (
    (ordered, repaired_accelerate.ordered),
    (repaired, repaired_accelerate.repaired),
):
    _module.clean_device_map = _accelerate.clean_device_map


def transformers_answer(
    model: Any, max_memory: dict[Any, Any], no_split_module_classes: Any = None, **kwargs: Any
) -> Answer:
    """transformers' map, and whether it binds ours."""
    no_split = list(
        no_split_module_classes or []
    )  # its isinstance knows no ordered sets; the order is of no account
    return answer(
        lambda: ordered.infer_auto_device_map(model, dict(max_memory), no_split, **kwargs),
        lambda: repaired.infer_auto_device_map(model, dict(max_memory), no_split, **kwargs),
        lambda device_map: invalid(model, device_map, max_memory, **kwargs),
    )


def invalid(
    model: Any,
    device_map: dict[str, Any],
    max_memory: dict[Any, Any],
    hf_quantizer: Any = None,
    tied_parameters: Any = None,
    no_placement_params: Any = None,
    **_: Any,
) -> str | None:
    """Why a device map is invalid by the quantizer's bytes and the model's table of ties, or None. Budgets in bytes."""
    return fault(
        device_map,
        max_memory,
        list(planned_tensors(model, hf_quantizer)),
        sources(model, tied_parameters),
        _exempt_names(model, no_placement_params or ()),
    )


def planned_tensors(model: Any, hf_quantizer: Any) -> Iterator[tuple[str, int, int]]:
    """Every name of every tensor, its identity, and its bytes; its first name decides on those."""
    sizes: dict[int, int] = {}
    named = [*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)]
    for name, tensor in named:
        element = (
            hf_quantizer.param_element_size(model, name, tensor) if hf_quantizer else tensor.element_size()
        )
        yield name, id(tensor), sizes.setdefault(id(tensor), tensor.numel() * element)


def sources(model: Any, tied_parameters: Any = None) -> dict[str, str]:
    """Tied name → the name it is tied to, followed to the end."""
    if tied_parameters is None:
        keys = dict(getattr(model, "all_tied_weights_keys", {}))
    else:
        keys = {name: group[0] for group in tied_parameters for name in group[1:]}
    found = {}
    for name in keys:
        source, seen = keys[name], {name}
        while source in keys and source not in seen:
            seen.add(source)
            source = keys[source]
        found[name] = source
    return found


def _exempt_names(model: Any, suffixes: Any) -> set[str]:
    names = [name for name, _ in model.named_parameters(remove_duplicate=False)]
    return {name for name in names if any(name == s or name.endswith("." + s) for s in suffixes)}

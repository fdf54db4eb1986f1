"""Drop-in functions: accelerate 1.15's names, arguments and results, on our core.

Where accelerate's result is valid, ours is the same, key for key and in order; where it raises, omits a tensor, splits a
tie or overfills a device, ours is a valid plan. `docs/divergences.md` lists every difference. No function here reads a
file or the environment, and none changes what it is given.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from planner.arguments import require_text
from planner.caller import warn_caller
from planner.compat.budgets import available_budgets, shave_single_device
from planner.compat.empty_init import init_empty_weights
from planner.compat.module_lists import (
    class_names,
    fallback_allocate,
    get_max_layer_size,
    get_module_size_with_ties,
)
from planner.compat.ties import (
    check_tied_parameters_in_config,
    check_tied_parameters_on_same_device,
    find_tied_parameters,
    warn_if_untied,
)
from planner.devices.keys import Budgets, DeviceKey, device_kind
from planner.errors import InvalidConstraintError
from planner.model.layout import Layout
from planner.model.tree import ModuleTree
from planner.names import qualified, require_map, require_module, require_texts
from planner.plans.wording import empty_devices_notice, sentence
from planner.strategies.balanced import accelerators_in_use, balanced_budgets
from planner.strategies.sequential import Outcome, Reserve, clean, sequential

if TYPE_CHECKING:
    from collections.abc import Iterator

    import torch
    from torch import nn

__all__ = [
    "check_device_map",
    "check_tied_parameters_in_config",
    "check_tied_parameters_on_same_device",
    "clean_device_map",
    "fallback_allocate",
    "find_tied_parameters",
    "get_balanced_memory",
    "get_max_layer_size",
    "get_max_memory",
    "get_module_size_with_ties",
    "infer_auto_device_map",
    "init_empty_weights",
    "named_module_tensors",
]

logger = logging.getLogger(__name__)


def infer_auto_device_map(
    model: nn.Module,
    max_memory: Mapping[Any, Any] | None = None,
    no_split_module_classes: Iterable[str] | str | None = None,
    dtype: str | torch.dtype | None = None,
    special_dtypes: Mapping[str, str | torch.dtype] | None = None,
    verbose: bool = False,
    clean_result: bool = True,
    offload_buffers: bool = False,
    fallback_allocation: bool = False,
    *,
    reserve: Reserve = "always",
) -> OrderedDict[str, DeviceKey]:
    """A device map that fills accelerators first, then the CPU, then disk.

    Args:
        model: the model to place, on any device, meta included.
        max_memory: device to budget, in bytes or words; defaults to what is free now. Disk is without limit unless named.
        no_split_module_classes: exact class names of modules that must stay whole.
        dtype: what the weights will be loaded as.
        special_dtypes: the same for single tensors, by name.
        verbose: print every decision.
        clean_result: group modules that lie on one device as a whole.
        offload_buffers: buffers are offloaded with the parameters; otherwise a warning says when they fit no accelerator.
        fallback_allocation: where the next module would leave a device empty, place the first smaller one that fits.
        reserve: keep room for the largest layer on the first accelerator and the CPU "always", as accelerate does, or only
            "if_offloaded": if a first pass without it had to offload something.

    Returns:
        Names to devices, in the order of placement.

    Raises:
        InvalidTreeError: a model that cannot be planned. Fields: ``name``.
        InvalidDevicesError, InvalidByteSizeError: budgets that make no sense.
        InfeasibleError: a named disk budget is exhausted. Fields: ``block``, ``device``, ``shortfall_bytes``.

    Guarantee: every parameter and buffer under every name has a device; tied names share one; no device exceeds its
        budget in stored bytes; the arguments are left as they are.

    Cost: O((modules + devices) · log modules).

    Source: accelerate 1.15, utils/modeling.py, with the repairs of ARCHITECTURE.md; ``reserve`` was proposed in
        huggingface/accelerate#3066.

    Example:
        >>> import torch
        >>> model = torch.nn.Sequential(torch.nn.Linear(10, 10), torch.nn.Linear(10, 10))
        >>> dict(infer_auto_device_map(model, max_memory={0: 900, "cpu": 1000}))
        {'': 0}
    """
    budgets = get_max_memory(max_memory)
    tree = ModuleTree.from_module(model)
    layout = Layout(
        tree, no_split=class_names(no_split_module_classes), dtype=dtype, special_dtypes=special_dtypes
    )
    warn_if_untied(model, layout)
    outcome = sequential(layout, budgets, fallback_allocation=bool(fallback_allocation), reserve=reserve)
    if verbose:
        print_reasons(outcome)
    if not offload_buffers:
        message = homeless_buffers(outcome, budgets)
        if message:
            warn_caller(message)
    log_empty_devices(outcome)
    return OrderedDict(outcome.device_map(clean=bool(clean_result)))


def print_reasons(outcome: Outcome) -> None:
    """What ``verbose=True`` prints: every decision, a line each."""
    for reason in outcome.reasons:
        print(sentence(reason))  # noqa: T201 (this is what was asked for)


def homeless_buffers(outcome: Outcome, budgets: Budgets) -> str | None:
    """The warning about buffers of offloaded modules that no accelerator has room for, if there are such."""
    accelerators = [device for device in budgets if device_kind(device) == "accelerator"]
    if not accelerators or not outcome.has_offloaded:
        return None
    size, used = outcome.offloaded_buffer_bytes(), outcome.formula_used_bytes
    if size == 0 or any(budgets[device] >= size + used[device] for device in accelerators):
        return None
    return (
        f"Current model requires {size} bytes of buffer for offloaded layers, which seems does not fit any GPU's remaining "
        "memory. If you are experiencing a OOM later, please consider using offload_buffers=True."
    )


def log_empty_devices(outcome: Outcome) -> None:
    """Logs the minimum-memory report at level INFO, if a device stayed empty."""
    if logger.isEnabledFor(logging.INFO) and (required := outcome.minimum_bytes):
        are_bare = not required.keys() & outcome.device_map(clean=False).values()
        logger.info("%s", empty_devices_notice(required, are_bare=are_bare))


def get_max_memory(max_memory: Mapping[Any, Any] | None = None) -> Budgets:
    """Budgets in bytes, accelerators first: what was given, or what is free now.

    Args:
        max_memory: device to budget; "cuda:0", "0" and ``torch.device`` keys are accepted, "10GiB" and the like as values.

    Raises:
        InvalidDevicesError, InvalidByteSizeError: keys or budgets that make no sense.

    Guarantee: the mapping handed in is left as it is; accelerate rewrites it.

    Source: accelerate 1.15, utils/modeling.py.

    Example:
        >>> get_max_memory({"cpu": "1GB"})
        {'cpu': 1000000000}
    """
    return available_budgets(max_memory)


def get_balanced_memory(
    model: nn.Module,
    max_memory: Mapping[Any, Any] | None = None,
    no_split_module_classes: Iterable[str] | str | None = None,
    dtype: str | torch.dtype | None = None,
    special_dtypes: Mapping[str, str | torch.dtype] | None = None,
    low_zero: bool = False,
) -> Budgets:
    """Budgets that make :func:`infer_auto_device_map` spread the model evenly over the accelerators.

    Args:
        model: the model.
        max_memory: device to budget; defaults to what is free now.
        no_split_module_classes: exact class names of modules that must stay whole.
        dtype: what the weights will be loaded as.
        special_dtypes: the same for single tensors, by name.
        low_zero: leave the first accelerator as empty as the others allow.

    Returns:
        accelerate's numbers; with ``low_zero``, any device ids and zero budgets work.

    Source: accelerate 1.15, utils/modeling.py.
    """
    budgets = get_max_memory(max_memory)
    in_use = accelerators_in_use(budgets)
    if not in_use:
        return budgets
    if len(in_use) == 1 and max_memory is None:
        shave_single_device(budgets)
    layout = Layout(
        ModuleTree.from_module(model),
        no_split=class_names(no_split_module_classes),
        dtype=dtype,
        special_dtypes=special_dtypes,
    )
    return balanced_budgets(layout.balance_facts(), budgets, low_zero=low_zero)


def check_device_map(model: nn.Module, device_map: Mapping[str, Any]) -> None:
    """Raises unless a device map covers every parameter and every saved buffer of a model.

    Args:
        model: the model.
        device_map: dotted names to devices; a name covers all that is inside, "" everything.

    Raises:
        InvalidConstraintError: some tensors have no device. Fields: ``names``.
        InvalidInputError: no mapping.

    Guarantee: warns about keys that name neither a module nor a tensor.

    Cost: O(keys + modules + tensors); accelerate's is their product.

    Source: accelerate 1.15, utils/modeling.py.
    """
    require_map(device_map)
    unknown, uncovered = ModuleTree.from_module(model).uncovered(device_map, "saved")
    if unknown:
        warn_caller(f"The following device_map keys do not match any submodules in the model: {unknown}")
    if uncovered:
        raise InvalidConstraintError(
            "The device_map provided does not give any device for the following parameters: "
            + ", ".join(uncovered),
            names=tuple(uncovered),
            suggestions=tuple(unknown),
        )


def clean_device_map(device_map: Mapping[str, Any], module_name: str = "") -> dict[str, Any]:
    """Groups the keys below a module that all have one device.

    Args:
        device_map: dotted names to devices.
        module_name: only look at keys below this module.

    Raises:
        InvalidInputError, InvalidConstraintError, InvalidDevicesError: no mapping from names to devices.

    Returns:
        A new dict; accelerate changes the one it is given. Keys that stay keep their order, grouped ones follow.

    Cost: O(keys · depth); accelerate's is quadratic.

    Source: accelerate 1.15, utils/modeling.py.

    Example:
        >>> clean_device_map({"a.b": 0, "a.c": 0, "d": 1})
        {'d': 1, 'a': 0}
    """
    require_text("" if module_name is None else module_name, "module_name")
    if not module_name:
        return clean(device_map)
    require_map(device_map)
    require_texts(device_map)
    prefix = f"{module_name}."
    inside = {
        name.removeprefix(prefix): device for name, device in device_map.items() if name.startswith(prefix)
    }
    cleaned = {f"{prefix}{name}" if name else module_name: device for name, device in clean(inside).items()}
    kept = {
        name: cleaned.get(name, device)
        for name, device in device_map.items()
        if name in cleaned or not name.startswith(prefix)
    }
    return {**kept, **cleaned}


def named_module_tensors(
    module: nn.Module,
    include_buffers: bool = True,
    recurse: bool = False,
    remove_non_persistent: bool = False,
) -> Iterator[tuple[str, torch.Tensor]]:
    """Parameters, then buffers of a module by name.

    Args:
        module: the module.
        include_buffers: buffers, too.
        recurse: those of all modules inside, too.
        remove_non_persistent: leave out buffers that are not saved.

    Source: accelerate 1.15, utils/modeling.py.
    """
    require_module(module)
    yield from module.named_parameters(recurse=recurse)
    if not include_buffers:
        return
    scratch: set[str] = set()
    if remove_non_persistent:
        for prefix, inner in module.named_modules() if recurse else [("", module)]:
            scratch |= {qualified(prefix, name) for name in inner._non_persistent_buffers_set}
    for name, buffer in module.named_buffers(recurse=recurse):
        if name not in scratch:
            yield name, buffer

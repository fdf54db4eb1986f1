"""Drop-in functions in transformers 5.23's dialect: its names, arguments and results, on our core.

Source: integrations/accelerate.py of transformers 5.23. Its planner sizes tensors as stored (or as a quantizer says), knows
ties from the model's own table before they are tied, counts each tied module once, and always tries to split the current
module. Where its result is valid ours is the same; `docs/divergences.md` lists every difference.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from planner.arguments import name_groups
from planner.compat.accelerate import homeless_buffers, log_empty_devices, print_reasons
from planner.compat.budgets import available_budgets, shave_single_device
from planner.compat.loaded_bits import quantized_bits
from planner.compat.module_lists import class_names
from planner.compat.ties import check_tied_parameters_on_same_device, declared_ties
from planner.devices.keys import Budgets, DeviceKey
from planner.model.layout import Layout
from planner.model.tree import ModuleTree
from planner.strategies.balanced import accelerators_in_use, balance
from planner.strategies.sequential import sequential

if TYPE_CHECKING:
    from torch import nn

__all__ = [
    "check_tied_parameters_on_same_device",
    "compute_module_sizes",
    "compute_module_total_buffer_size",
    "get_balanced_memory",
    "get_max_memory",
    "infer_auto_device_map",
]

logger = logging.getLogger(__name__)


def infer_auto_device_map(
    model: nn.Module,
    max_memory: Mapping[Any, Any] | None = None,
    no_split_module_classes: Iterable[str] | str | None = None,
    verbose: bool = False,
    clean_result: bool = True,
    offload_buffers: bool = False,
    tied_parameters: Sequence[Sequence[str]] | None = None,
    hf_quantizer: Any = None,
    no_placement_params: Iterable[str] | None = None,
) -> OrderedDict[str, DeviceKey]:
    """A device map that fills accelerators first, then the CPU, then disk, by transformers' rules.

    Args:
        model: a ``PreTrainedModel``, or any module when ``tied_parameters`` is given or nothing is tied by name.
        max_memory: device to budget, in bytes or words; defaults to what is free now. Disk is without limit unless named.
        no_split_module_classes: exact class names of modules that must stay whole; a set is fine.
        verbose: print every decision.
        clean_result: group modules that lie on one device as a whole (never with ``no_placement_params``).
        offload_buffers: buffers are offloaded with the parameters; otherwise a logged warning says when they fit nowhere.
        tied_parameters: groups of names that are one parameter; defaults to the model's ``all_tied_weights_keys``.
        hf_quantizer: its ``param_element_size`` gives the bytes of each element.
        no_placement_params: names, relative to a no-split module, of parameters that stay where they are when the module
            is too large for the next accelerator; they may be missing from the result.

    Returns:
        Names to devices, in the order of placement.

    Raises:
        InvalidTreeError, InvalidDevicesError, InvalidByteSizeError, InfeasibleError: as
            :func:`planner.infer_auto_device_map`.

    Guarantee: as :func:`planner.infer_auto_device_map`; names in one group share a device and are counted once, tied yet
        or not.

    Source: transformers 5.23, integrations/accelerate.py.
    """
    budgets = get_max_memory(max_memory)
    exempt = None if no_placement_params is None else list(no_placement_params)
    groups = (
        declared_ties(model) if tied_parameters is None else name_groups(tied_parameters, "tied_parameters")
    )
    layout = _layout(
        model, hf_quantizer, no_split=class_names(no_split_module_classes), tied=groups, exempt=exempt or ()
    )
    outcome = sequential(layout, budgets)
    if verbose:
        print_reasons(outcome)
    if not offload_buffers:
        message = homeless_buffers(outcome, budgets)
        if message:
            logger.warning("%s", message)
    log_empty_devices(outcome)
    return OrderedDict(outcome.device_map(clean=bool(clean_result) and exempt is None))


def get_max_memory(max_memory: Mapping[Any, Any] | None = None) -> Budgets:
    """Budgets in bytes, accelerators first: what was given, or what is free now less a tenth of host memory.

    Guarantee: memory that torch has reserved but does not use counts as free; the mapping handed in is left as it is.

    Source: transformers 5.23, integrations/accelerate.py.
    """
    budgets = available_budgets(max_memory)
    for device in budgets:
        if max_memory is None and isinstance(device, int):
            budgets[device] += _reserved_but_free_bytes(device)
    if max_memory is None and "cpu" in budgets:
        budgets["cpu"] *= 0.90
    return budgets


def _reserved_but_free_bytes(device: int) -> int:
    import torch

    backend = next((module for module in (torch.cuda, torch.xpu) if module.is_available()), None)
    return 0 if backend is None else int(backend.memory_reserved(device) - backend.memory_allocated(device))


def get_balanced_memory(
    model: nn.Module,
    max_memory: Mapping[Any, Any] | None = None,
    no_split_module_classes: Iterable[str] | str | None = None,
    hf_quantizer: Any = None,
    low_zero: bool = False,
) -> Budgets:
    """Budgets that make :func:`infer_auto_device_map` spread the model evenly over the accelerators.

    Args:
        model: the model.
        max_memory: device to budget; defaults to what is free now.
        no_split_module_classes: exact class names of modules that must stay whole.
        hf_quantizer: its ``param_element_size`` gives the bytes of each element.
        low_zero: leave the first accelerator as empty as the others allow.

    Source: transformers 5.23, integrations/accelerate.py; no-split classes that the model lacks are ignored with a warning,
        where transformers raises ValueError.
    """
    budgets = get_max_memory(max_memory)
    in_use = accelerators_in_use(budgets)
    if not in_use:
        return budgets
    if len(in_use) == 1:
        low_zero = False
        if max_memory is None:
            shave_single_device(budgets)
    no_split = class_names(no_split_module_classes)
    layout = _layout(model, hf_quantizer, no_split=no_split, tied=declared_ties(model))
    if no_split and not layout.has_no_split:
        logger.warning(
            "The model contains no module of the classes %s that must not be split.", sorted(no_split)
        )
    facts = layout.balance_facts()
    buffer_bytes = int(1.25 * max(facts.largest_no_split_bytes, facts.largest_direct_bytes))
    return balance(budgets, total_bytes=facts.total_bytes, buffer_bytes=buffer_bytes, low_zero=low_zero)


def compute_module_sizes(
    model: nn.Module, hf_quantizer: Any = None, buffers_only: bool = False, only_modules: bool = True
) -> tuple[dict[str, int | float], dict[str, int | float]]:
    """Bytes of every module by name, and of the direct tensors of every module but the root.

    Args:
        model: the model.
        hf_quantizer: its ``param_element_size`` gives the bytes of each element.
        buffers_only: leave out parameters.
        only_modules: leave tensors out of the first dict.

    Returns:
        Two dicts of bytes; a tensor tied under several names counts once. Names that are not there are absent.

    Source: transformers 5.23, integrations/accelerate.py, which counts a tied tensor not at all when the name that its
        table would drop is the one it is met under.
    """
    layout = _layout(model, hf_quantizer, no_split=[], tied=declared_ties(model))
    sizes = layout.stored_sizes("buffers" if buffers_only else "all")
    modules = {name for name, _ in model.named_modules(remove_duplicate=False)}
    direct: dict[str, int | float] = {}
    for name, size in sizes.items():
        owner = name.rpartition(".")[0]
        if owner and name not in modules:
            direct[owner] = direct.get(owner, 0) + size
    if only_modules:
        sizes = {name: size for name, size in sizes.items() if name in modules}
    return sizes, direct


def compute_module_total_buffer_size(model: nn.Module, hf_quantizer: Any = None) -> int | float:
    """Bytes of all buffers in a model. Source: transformers 5.23, integrations/accelerate.py."""
    return compute_module_sizes(model, hf_quantizer, buffers_only=True)[0].get("", 0)


def _layout(
    model: Any, hf_quantizer: Any, *, no_split: list[str], tied: list[list[str]], exempt: Sequence[str] = ()
) -> Layout:
    uncounted = list(getattr(model, "all_tied_weights_keys", None) or ())
    return Layout(
        ModuleTree.from_module(model),
        no_split=no_split,
        dialect="transformers",
        sizes=None if hf_quantizer is None else quantized_bits(model, hf_quantizer),
        tied=tied,
        uncounted=uncounted,
        exempt=exempt,
    )

"""What a model brings along for its dispatch: what its classes say of themselves, and hooks that it has already."""

from __future__ import annotations

from typing import Any

from torch import nn

from planner.dispatching.hooks.align import aligns
from planner.dispatching.install.record import Dispatched
from planner.dispatching.methods.forward import Border, installed
from planner.dispatching.tensors.slots import modules_of
from planner.errors import PlanMismatchError
from planner.names import text_set

__all__ = ["declared_classes", "declared_skips", "is_later_hook", "refuse_other_hooks"]


def declared_classes(model: nn.Module) -> set[str]:
    """What models themselves, also those inside, say must not be split."""
    found: set[str] = set()
    for _, module in modules_of(model):
        # Of the instance: some classes make it a property.
        found.update(text_set(getattr(module, "_no_split_modules", None), "_no_split_modules"))
    return found


def declared_skips(model: nn.Module) -> frozenset[str]:
    """What models themselves, also those inside, say must not cross."""
    found: set[str] = set()
    for _, module in modules_of(model):
        keys = getattr(module, "_skip_keys_device_placement", None) or ()
        found.update([keys] if isinstance(keys, str) else keys)
    return frozenset(found)


def refuse_other_hooks(model: nn.Module, engaged: list[Dispatched]) -> None:
    forwards = [forward for dispatched in engaged for forward in dispatched.forwards]
    ours = {id(forward.hook) for forward in forwards}
    for name, module in modules_of(model):
        hook = module.__dict__.get("_hf_hook")
        if hook is None or id(hook) in ours:
            continue
        found = installed(module)
        if isinstance(found, Border) and all(found is not forward for forward in forwards):
            what = f"'{name}'" if name else f"this {type(module).__name__}"
            raise PlanMismatchError(
                f"{what} is part of a larger model that is dispatched; dispatch or undispatch that one",
                findings=(name,),
            )
        if not (engaged and is_later_hook(hook)):
            # Of a hook that offloads, what is taken off is without values.
            way_out = "undispatch" if aligns(hook) else "remove_hook_from_submodules"
            raise PlanMismatchError(
                f"'{name}' has a hook already ({type(hook).__name__}); take it off with planner.{way_out}(model) first",
                findings=(name,),
            )


def is_later_hook(hook: Any) -> bool:
    """Whether a hook that is not ours goes with the dispatch: it moves arguments and holds no weights."""
    return aligns(hook) and not hook.offload

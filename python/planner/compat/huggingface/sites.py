"""Where transformers, PEFT and diffusers call what ours replaces, and the signatures that ours was written for."""

from __future__ import annotations

import functools
import importlib.metadata
import inspect
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from types import ModuleType
from typing import Final

from planner.errors import IntegrationError

__all__ = ["GROUPS", "REQUIRED", "CallSite", "Function", "Group", "Site", "misfit", "site_of"]

Function = Callable[..., object]

_DISPATCH: Final = (
    *("model", "device_map", "main_device", "state_dict", "offload_dir", "offload_index", "offload_buffers"),
    *("skip_keys", "preload_module_classes", "force_hooks"),
)
_INFER: Final = (
    *("model", "max_memory", "no_split_module_classes", "dtype", "special_dtypes", "verbose", "clean_result"),
    *("offload_buffers", "fallback_allocation"),
)
_BALANCED: Final = ("model", "max_memory", "no_split_module_classes", "dtype", "special_dtypes", "low_zero")


@dataclass(frozen=True)
class Site:
    """A function of another library that ours stands in the place of.

    Args:
        module: where it is looked up when it is called.
        owner: the class whose method it is.
        name: its name there.
        library: whose code looks it up.
        version: the version of that library.
    """

    module: str
    owner: str | None
    name: str
    library: str
    version: str

    def __str__(self) -> str:
        """Its full name."""
        return ".".join(part for part in (self.module, self.owner, self.name) if part)


@dataclass(frozen=True)
class CallSite:
    """A place in other code, and what goes there.

    Args:
        module: where the function is looked up.
        name: its name there.
        parameters: names of the parameters that ours was written for.
        role: ours: a module beside this one and a function of it, which is called with the integration, what it replaces, and the
            arguments.
        owner: the class whose method it is.
        is_leading: further parameters may follow.
    """

    module: str
    name: str
    parameters: tuple[str, ...]
    role: str
    owner: str | None = None
    is_leading: bool = False

    def holder(self) -> ModuleType | type | None:
        """The module or class whose attribute it is, if there is one."""
        module = sys.modules[self.module]
        if self.owner is None:
            return module
        found = vars(module).get(self.owner)
        return found if isinstance(found, type) else None

    def found(self) -> Function | None:
        """What is there now."""
        holder = self.holder()
        found = None if holder is None else vars(holder).get(self.name)
        return found if callable(found) else None

    def problem(self) -> str | None:
        """What is wrong with the place, in words."""
        found = self.found()
        where = ".".join(part for part in (self.module, self.owner, self.name) if part)
        if found is None:
            return f"{where} is missing"
        try:
            signature = inspect.signature(found)  # of a wrapper, what it wraps
        except (TypeError, ValueError):
            return f"{where} has no signature"
        if self._takes(signature.parameters):
            return None
        more = ", …" if self.is_leading else ""
        return f"{where}{signature} is not known: expected ({', '.join(self.parameters)}{more})"

    def _takes(self, parameters: Mapping[str, inspect.Parameter]) -> bool:
        """Whether ours may be called in its place, or whether it is a wrapper that passes everything on."""
        kinds = {parameter.kind for parameter in parameters.values()}
        if {inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD} <= kinds:
            return True
        names = tuple(parameters)
        return (
            names[: len(self.parameters)] == self.parameters if self.is_leading else names == self.parameters
        )


@dataclass(frozen=True)
class Group:
    """The places in one library, which fit together or not at all."""

    library: str
    sites: tuple[CallSite, ...]

    @property
    def modules(self) -> frozenset[str]:
        """The modules that have them."""
        return frozenset(site.module for site in self.sites)


REQUIRED: Final = Group(
    "transformers",
    (
        CallSite(
            "transformers.modeling_utils",
            "_get_device_map",
            ("model", "device_map", "max_memory", "hf_quantizer"),
            "planned:planned_map",
        ),
        CallSite("transformers.integrations.accelerate", "dispatch_model", _DISPATCH, "placed:place"),
        CallSite("transformers.integrations.peft", "dispatch_model", _DISPATCH, "base_model:place"),
        CallSite("transformers.integrations.peft", "infer_auto_device_map", _INFER, "maps:inferred"),
        CallSite("transformers.integrations.peft", "get_balanced_memory", _BALANCED, "maps:balanced"),
        CallSite(
            "transformers.integrations.peft",
            "load_adapter",
            ("self", "peft_model_id", "adapter_name"),
            "peft:load_adapter",
            owner="PeftAdapterMixin",
            is_leading=True,
        ),
        CallSite(
            "transformers.integrations.peft",
            "add_adapter",
            ("self", "adapter_config", "adapter_name"),
            "peft:add_adapter",
            owner="PeftAdapterMixin",
        ),
    ),
)
"""What is imported when an integration is entered."""

GROUPS: Final = (
    REQUIRED,
    Group(
        "peft",
        (
            CallSite("peft.peft_model", "dispatch_model", _DISPATCH, "base_model:place"),
            CallSite("peft.peft_model", "infer_auto_device_map", _INFER, "maps:inferred"),
            CallSite("peft.peft_model", "remove_hook_from_submodules", ("module",), "peft:remove_hooks"),
            CallSite("peft.mixed_model", "remove_hook_from_submodules", ("module",), "peft:remove_hooks"),
            CallSite(
                "peft.peft_model",
                "set_peft_model_state_dict",
                ("model", "peft_model_state_dict", "adapter_name"),
                "peft:set_state",
                is_leading=True,
            ),
            CallSite(
                "peft.mixed_model",
                "load_adapter",
                ("self", "model_id", "adapter_name"),
                "peft:load_into_mixed",
                owner="PeftMixedModel",
                is_leading=True,
            ),
            CallSite(
                "peft.tuners.mixed.model",
                "_unload_and_optionally_merge",
                ("self",),
                "peft:unload_mixed",
                owner="MixedModel",
                is_leading=True,
            ),
            CallSite(
                "peft.tuners.adaption_prompt.model",
                "_create_adapted_attentions",
                ("self", "config", "parents"),
                "peft:adapt_attentions",
                owner="AdaptionPromptModel",
                is_leading=True,
            ),
            CallSite("peft.peft_model", "get_balanced_memory", _BALANCED, "maps:balanced"),
            CallSite(
                "peft.peft_model",
                "_update_offload",
                ("self", "offload_index", "adapters_weights"),
                "peft:update_offload",
                owner="PeftModel",
                is_leading=True,
            ),
            CallSite(
                "peft.tuners.tuners_utils",
                "_move_adapter_to_device_of_base_layer",
                ("self", "adapter_name", "device"),
                "peft:move_adapter",
                owner="BaseTunerLayer",
                is_leading=True,
            ),
            CallSite(
                "peft.tuners.tuners_utils",
                "inject_adapter",
                ("self", "model", "adapter_name"),
                "peft:inject_adapter",
                owner="BaseTuner",
                is_leading=True,
            ),
        ),
    ),
    Group(
        "diffusers",
        (
            CallSite(
                "diffusers.models.modeling_utils",
                "_determine_device_map",
                ("model", "device_map", "max_memory", "torch_dtype", "keep_in_fp32_modules", "hf_quantizer"),
                "diffusers:determined_map",
            ),
            CallSite("diffusers.models.modeling_utils", "dispatch_model", _DISPATCH, "placed:place"),
            CallSite(
                "diffusers.models.model_loading_utils", "infer_auto_device_map", _INFER, "maps:inferred"
            ),
            CallSite(
                "diffusers.models.model_loading_utils", "get_balanced_memory", _BALANCED, "maps:balanced"
            ),
        ),
    ),
)


def site_of(call_site: CallSite, library: str) -> Site:
    """What is said of a place that ours stands in."""
    version = _version(library) or "unknown"
    return Site(call_site.module, call_site.owner, call_site.name, library, version)


def misfit(library: str, problems: Iterable[str]) -> IntegrationError:
    """The error that a library is not one that ours was written for."""
    listed = tuple(problems)
    versions = {name: _version(name) for name in (library, "accelerate")}
    installed = ", ".join(f"{name} {version or 'is not installed'}" for name, version in versions.items())
    return IntegrationError(
        f"nothing of {library} was replaced: {'; '.join(listed)} ({installed}). Without the integration, "
        "`device_map=planner.plan(model).device_map` works with every version",
        library=library,
        version=versions[library],
        problems=listed,
    )


@functools.cache
def _version(library: str) -> str | None:
    try:
        return importlib.metadata.version(library)
    except importlib.metadata.PackageNotFoundError:
        return None

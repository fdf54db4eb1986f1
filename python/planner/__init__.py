"""planner: where each module of a PyTorch model goes, and why; and making it run there."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from planner.check import Finding, check, is_valid
from planner.compat.accelerate import (
    calculate_maximum_sizes,
    check_device_map,
    check_tied_parameters_in_config,
    check_tied_parameters_on_same_device,
    clean_device_map,
    compute_module_sizes,
    compute_module_total_buffer_size,
    convert_file_size_to_int,
    dtype_byte_size,
    fallback_allocate,
    find_tied_parameters,
    get_balanced_memory,
    get_max_layer_size,
    get_max_memory,
    get_module_size_with_ties,
    infer_auto_device_map,
    init_empty_weights,
    named_module_tensors,
)
from planner.compat.empty_init import init_on_device
from planner.crossing import Crossing
from planner.dispatch.dispatching import crossings, dispatch, undispatch
from planner.errors import (
    CheckpointError,
    InfeasibleError,
    InvalidByteSizeError,
    InvalidConfigError,
    InvalidConstraintError,
    InvalidDevicesError,
    InvalidInputError,
    InvalidTreeError,
    OffloadError,
    PlanMismatchError,
    PlannerError,
)
from planner.explain import explain
from planner.plan import Plan
from planner.request import plan, plan_many
from planner.verification.verdict import Verification

if TYPE_CHECKING:
    from planner.compat.dispatching import (
        cpu_offload,
        cpu_offload_with_hook,
        disk_offload,
        dispatch_model,
    )
    from planner.compat.module_tensors import (
        align_module_device,
        find_device,
        get_non_persistent_buffers,
        get_state_dict_from_offload,
        get_state_dict_offloaded_model,
        has_offloaded_params,
        load_offloaded_weights,
        retie_parameters,
        send_to_device,
        set_module_tensor_to_device,
    )
    from planner.dispatch.aligning import AlignDevicesHook
    from planner.dispatch.attaching import (
        add_hook_to_module,
        attach_align_device_hook,
        attach_align_device_hook_on_blocks,
        attach_execution_device_hook,
        remove_hook_from_module,
        remove_hook_from_submodules,
    )
    from planner.dispatch.casting import attach_layerwise_casting_hooks
    from planner.dispatch.hooks import ModelHook, SequentialHook
    from planner.dispatch.moving_hooks import (
        CpuOffload,
        LayerwiseCastingHook,
        UserCpuOffloadHook,
    )
    from planner.dispatch.state import (
        StateDict,
        state_dict,
    )
    from planner.dispatch.weight_files import (
        OffloadedWeightsLoader,
        PrefixedDataset,
        extract_submodules_state_dict,
        load_offloaded_weight,
        offload_state_dict,
        offload_weight,
        save_offload_index,
    )
    from planner.verification.verifying import verify

__version__ = "0.1.0"

# What needs torch already when it is defined; loaded when one of the names is asked for.
_LATE = {
    "planner.compat.dispatching": (
        "cpu_offload",
        "cpu_offload_with_hook",
        "disk_offload",
        "dispatch_model",
    ),
    "planner.compat.module_tensors": (
        "align_module_device",
        "find_device",
        "get_non_persistent_buffers",
        "get_state_dict_from_offload",
        "get_state_dict_offloaded_model",
        "has_offloaded_params",
        "load_offloaded_weights",
        "retie_parameters",
        "send_to_device",
        "set_module_tensor_to_device",
    ),
    "planner.dispatch.attaching": (
        "add_hook_to_module",
        "attach_align_device_hook",
        "attach_align_device_hook_on_blocks",
        "attach_execution_device_hook",
        "remove_hook_from_module",
        "remove_hook_from_submodules",
    ),
    "planner.dispatch.aligning": ("AlignDevicesHook",),
    "planner.dispatch.casting": ("attach_layerwise_casting_hooks",),
    "planner.dispatch.hooks": (
        "ModelHook",
        "SequentialHook",
    ),
    "planner.dispatch.moving_hooks": (
        "CpuOffload",
        "LayerwiseCastingHook",
        "UserCpuOffloadHook",
    ),
    "planner.dispatch.weight_files": (
        "OffloadedWeightsLoader",
        "PrefixedDataset",
        "extract_submodules_state_dict",
        "load_offloaded_weight",
        "offload_state_dict",
        "offload_weight",
        "save_offload_index",
    ),
    "planner.dispatch.state": (
        "StateDict",
        "state_dict",
    ),
    "planner.verification.verifying": ("verify",),
}
_HOME_OF = {name: module for module, names in _LATE.items() for name in names}


if not TYPE_CHECKING:  # a checker that sees it takes any name for granted

    def __getattr__(name: str) -> Any:
        if name not in _HOME_OF:
            raise AttributeError(f"module 'planner' has no attribute {name!r}")
        value = getattr(import_module(_HOME_OF[name]), name)
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME_OF})


__all__ = [
    "AlignDevicesHook",
    "CheckpointError",
    "CpuOffload",
    "Crossing",
    "Finding",
    "InfeasibleError",
    "InvalidByteSizeError",
    "InvalidConfigError",
    "InvalidConstraintError",
    "InvalidDevicesError",
    "InvalidInputError",
    "InvalidTreeError",
    "LayerwiseCastingHook",
    "ModelHook",
    "OffloadError",
    "OffloadedWeightsLoader",
    "Plan",
    "PlanMismatchError",
    "PlannerError",
    "PrefixedDataset",
    "SequentialHook",
    "StateDict",
    "UserCpuOffloadHook",
    "Verification",
    "add_hook_to_module",
    "align_module_device",
    "attach_align_device_hook",
    "attach_align_device_hook_on_blocks",
    "attach_execution_device_hook",
    "attach_layerwise_casting_hooks",
    "calculate_maximum_sizes",
    "check",
    "check_device_map",
    "check_tied_parameters_in_config",
    "check_tied_parameters_on_same_device",
    "clean_device_map",
    "compute_module_sizes",
    "compute_module_total_buffer_size",
    "convert_file_size_to_int",
    "cpu_offload",
    "cpu_offload_with_hook",
    "crossings",
    "disk_offload",
    "dispatch",
    "dispatch_model",
    "dtype_byte_size",
    "explain",
    "extract_submodules_state_dict",
    "fallback_allocate",
    "find_device",
    "find_tied_parameters",
    "get_balanced_memory",
    "get_max_layer_size",
    "get_max_memory",
    "get_module_size_with_ties",
    "get_non_persistent_buffers",
    "get_state_dict_from_offload",
    "get_state_dict_offloaded_model",
    "has_offloaded_params",
    "infer_auto_device_map",
    "init_empty_weights",
    "init_on_device",
    "is_valid",
    "load_offloaded_weight",
    "load_offloaded_weights",
    "named_module_tensors",
    "offload_state_dict",
    "offload_weight",
    "plan",
    "plan_many",
    "remove_hook_from_module",
    "remove_hook_from_submodules",
    "retie_parameters",
    "save_offload_index",
    "send_to_device",
    "set_module_tensor_to_device",
    "state_dict",
    "undispatch",
    "verify",
]

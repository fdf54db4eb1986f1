"""planner: where each module of a PyTorch model goes, and why; and making it run there."""

from importlib import import_module

__version__ = "0.1.0"

# Public names by the module that has them. Each is loaded when it is first asked for, so that `import planner` costs nothing, and
# only what needs torch loads it. Type checkers read __init__.pyi.
_NAMES = {
    "planner.checker.check": (
        "Finding",
        "check",
        "is_valid",
    ),
    "planner.compat.accelerate": (
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
    ),
    "planner.compat.dispatching": (
        "cpu_offload",
        "cpu_offload_with_hook",
        "disk_offload",
        "dispatch_model",
    ),
    "planner.compat.empty_init": ("init_on_device",),
    "planner.compat.huggingface.api": (
        "install",
        "integrate",
        "uninstall",
    ),
    "planner.compat.huggingface.in_force": (
        "Integration",
        "plan_of",
    ),
    "planner.compat.loading": (
        "load_checkpoint_and_dispatch",
        "load_checkpoint_in_model",
    ),
    "planner.compat.offloaded": (
        "align_module_device",
        "get_state_dict_from_offload",
        "get_state_dict_offloaded_model",
        "has_offloaded_params",
        "load_offloaded_weights",
    ),
    "planner.compat.sizes": (
        "calculate_maximum_sizes",
        "compute_module_sizes",
        "compute_module_total_buffer_size",
        "convert_file_size_to_int",
        "dtype_byte_size",
    ),
    "planner.compat.tensors": (
        "find_device",
        "get_non_persistent_buffers",
        "retie_parameters",
        "send_to_device",
        "set_module_tensor_to_device",
    ),
    "planner.dispatching.api": (
        "crossings",
        "dispatch",
        "undispatch",
    ),
    "planner.dispatching.hooks.align": ("AlignDevicesHook",),
    "planner.dispatching.hooks.attach": (
        "add_hook_to_module",
        "attach_align_device_hook",
        "attach_align_device_hook_on_blocks",
        "attach_execution_device_hook",
        "remove_hook_from_module",
        "remove_hook_from_submodules",
    ),
    "planner.dispatching.hooks.base": (
        "ModelHook",
        "SequentialHook",
    ),
    "planner.dispatching.hooks.casting": ("attach_layerwise_casting_hooks",),
    "planner.dispatching.hooks.moving": (
        "CpuOffload",
        "LayerwiseCastingHook",
        "UserCpuOffloadHook",
    ),
    "planner.dispatching.mixed.crossing": ("Crossing",),
    "planner.dispatching.offload.weight_files": (
        "OffloadedWeightsLoader",
        "PrefixedDataset",
        "extract_submodules_state_dict",
        "load_offloaded_weight",
        "offload_state_dict",
        "offload_weight",
        "save_offload_index",
    ),
    "planner.dispatching.state": (
        "StateDict",
        "state_dict",
    ),
    "planner.errors": (
        "CheckpointError",
        "InfeasibleError",
        "IntegrationError",
        "InvalidByteSizeError",
        "InvalidConfigError",
        "InvalidConstraintError",
        "InvalidDevicesError",
        "InvalidInputError",
        "InvalidTreeError",
        "OffloadError",
        "PipelineError",
        "PlanMismatchError",
        "PlannerError",
        "RecordingError",
        "UnknownMemoryError",
    ),
    "planner.devices.machine": ("Machine",),
    "planner.loading.api": ("load",),
    "planner.loading.report": (
        "LoadReport",
        "LoadedTensor",
        "load_report",
    ),
    "planner.loading.streaming.counters": ("StreamingProgress",),
    "planner.measuring.probe": ("Probed", "probe"),
    "planner.pipelines.api": ("Pipeline", "pipeline"),
    "planner.planning": (
        "plan",
        "plan_many",
    ),
    "planner.planning.pricing": ("price",),
    "planner.planning.asking": (
        "FirstPlan",
        "Largest",
        "first_that_fits",
        "largest",
    ),
    "planner.planning.needs": ("demands",),
    "planner.plans.plan": ("Plan",),
    "planner.plans.explaining": ("explain",),
    "planner.report.showing": ("show",),
    "planner.verification.measuring": ("Measurement", "measure"),
    "planner.verification.peak_rows": ("PeakRow",),
    "planner.verification.verdict": ("Verification",),
    "planner.verification.verifying": ("verify",),
}
_MODULE_OF = {name: module for module, names in _NAMES.items() for name in names}

__all__ = sorted(_MODULE_OF)


def __getattr__(name: str) -> object:
    if name in _MODULE_OF:
        value = getattr(import_module(_MODULE_OF[name]), name)
        globals()[name] = value
        return value
    # `import planner` is enough for `planner.errors`, too.
    module = f"{__name__}.{name}"
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        if error.name != module:
            raise
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_MODULE_OF})

"""The public names of planner. Held against the table of the package by a test."""

from planner import export as export
from planner.checker.check import (
    Finding as Finding,
)
from planner.checker.check import (
    check as check,
)
from planner.checker.check import (
    is_valid as is_valid,
)
from planner.compat.accelerate import (
    check_device_map as check_device_map,
)
from planner.compat.accelerate import (
    check_tied_parameters_in_config as check_tied_parameters_in_config,
)
from planner.compat.accelerate import (
    check_tied_parameters_on_same_device as check_tied_parameters_on_same_device,
)
from planner.compat.accelerate import (
    clean_device_map as clean_device_map,
)
from planner.compat.accelerate import (
    fallback_allocate as fallback_allocate,
)
from planner.compat.accelerate import (
    find_tied_parameters as find_tied_parameters,
)
from planner.compat.accelerate import (
    get_balanced_memory as get_balanced_memory,
)
from planner.compat.accelerate import (
    get_max_layer_size as get_max_layer_size,
)
from planner.compat.accelerate import (
    get_max_memory as get_max_memory,
)
from planner.compat.accelerate import (
    get_module_size_with_ties as get_module_size_with_ties,
)
from planner.compat.accelerate import (
    infer_auto_device_map as infer_auto_device_map,
)
from planner.compat.accelerate import (
    init_empty_weights as init_empty_weights,
)
from planner.compat.accelerate import (
    named_module_tensors as named_module_tensors,
)
from planner.compat.dispatching import (
    cpu_offload as cpu_offload,
)
from planner.compat.dispatching import (
    cpu_offload_with_hook as cpu_offload_with_hook,
)
from planner.compat.dispatching import (
    disk_offload as disk_offload,
)
from planner.compat.dispatching import (
    dispatch_model as dispatch_model,
)
from planner.compat.empty_init import (
    init_on_device as init_on_device,
)
from planner.compat.huggingface.api import (
    install as install,
)
from planner.compat.huggingface.api import (
    integrate as integrate,
)
from planner.compat.huggingface.api import (
    uninstall as uninstall,
)
from planner.compat.huggingface.in_force import (
    Integration as Integration,
)
from planner.compat.huggingface.in_force import (
    plan_of as plan_of,
)
from planner.compat.loading import (
    load_checkpoint_and_dispatch as load_checkpoint_and_dispatch,
)
from planner.compat.loading import (
    load_checkpoint_in_model as load_checkpoint_in_model,
)
from planner.compat.offloaded import (
    align_module_device as align_module_device,
)
from planner.compat.offloaded import (
    get_state_dict_from_offload as get_state_dict_from_offload,
)
from planner.compat.offloaded import (
    get_state_dict_offloaded_model as get_state_dict_offloaded_model,
)
from planner.compat.offloaded import (
    has_offloaded_params as has_offloaded_params,
)
from planner.compat.offloaded import (
    load_offloaded_weights as load_offloaded_weights,
)
from planner.compat.sizes import (
    calculate_maximum_sizes as calculate_maximum_sizes,
)
from planner.compat.sizes import (
    compute_module_sizes as compute_module_sizes,
)
from planner.compat.sizes import (
    compute_module_total_buffer_size as compute_module_total_buffer_size,
)
from planner.compat.sizes import (
    convert_file_size_to_int as convert_file_size_to_int,
)
from planner.compat.sizes import (
    dtype_byte_size as dtype_byte_size,
)
from planner.compat.tensors import (
    find_device as find_device,
)
from planner.compat.tensors import (
    get_non_persistent_buffers as get_non_persistent_buffers,
)
from planner.compat.tensors import (
    retie_parameters as retie_parameters,
)
from planner.compat.tensors import (
    send_to_device as send_to_device,
)
from planner.compat.tensors import (
    set_module_tensor_to_device as set_module_tensor_to_device,
)
from planner.devices.machine import (
    Machine as Machine,
)
from planner.dispatching.api import (
    crossings as crossings,
)
from planner.dispatching.api import (
    dispatch as dispatch,
)
from planner.dispatching.api import (
    undispatch as undispatch,
)
from planner.dispatching.hooks.align import (
    AlignDevicesHook as AlignDevicesHook,
)
from planner.dispatching.hooks.attach import (
    add_hook_to_module as add_hook_to_module,
)
from planner.dispatching.hooks.attach import (
    attach_align_device_hook as attach_align_device_hook,
)
from planner.dispatching.hooks.attach import (
    attach_align_device_hook_on_blocks as attach_align_device_hook_on_blocks,
)
from planner.dispatching.hooks.attach import (
    attach_execution_device_hook as attach_execution_device_hook,
)
from planner.dispatching.hooks.attach import (
    remove_hook_from_module as remove_hook_from_module,
)
from planner.dispatching.hooks.attach import (
    remove_hook_from_submodules as remove_hook_from_submodules,
)
from planner.dispatching.hooks.base import (
    ModelHook as ModelHook,
)
from planner.dispatching.hooks.base import (
    SequentialHook as SequentialHook,
)
from planner.dispatching.hooks.casting import (
    attach_layerwise_casting_hooks as attach_layerwise_casting_hooks,
)
from planner.dispatching.hooks.moving import (
    CpuOffload as CpuOffload,
)
from planner.dispatching.hooks.moving import (
    LayerwiseCastingHook as LayerwiseCastingHook,
)
from planner.dispatching.hooks.moving import (
    UserCpuOffloadHook as UserCpuOffloadHook,
)
from planner.dispatching.mixed.crossing import (
    Crossing as Crossing,
)
from planner.dispatching.offload.weight_files import (
    OffloadedWeightsLoader as OffloadedWeightsLoader,
)
from planner.dispatching.offload.weight_files import (
    PrefixedDataset as PrefixedDataset,
)
from planner.dispatching.offload.weight_files import (
    extract_submodules_state_dict as extract_submodules_state_dict,
)
from planner.dispatching.offload.weight_files import (
    load_offloaded_weight as load_offloaded_weight,
)
from planner.dispatching.offload.weight_files import (
    offload_state_dict as offload_state_dict,
)
from planner.dispatching.offload.weight_files import (
    offload_weight as offload_weight,
)
from planner.dispatching.offload.weight_files import (
    save_offload_index as save_offload_index,
)
from planner.dispatching.state import (
    StateDict as StateDict,
)
from planner.dispatching.state import (
    state_dict as state_dict,
)
from planner.errors import (
    CheckpointError as CheckpointError,
)
from planner.errors import (
    InfeasibleError as InfeasibleError,
)
from planner.errors import (
    IntegrationError as IntegrationError,
)
from planner.errors import (
    InvalidByteSizeError as InvalidByteSizeError,
)
from planner.errors import (
    InvalidConfigError as InvalidConfigError,
)
from planner.errors import (
    InvalidConstraintError as InvalidConstraintError,
)
from planner.errors import (
    InvalidDevicesError as InvalidDevicesError,
)
from planner.errors import (
    InvalidInputError as InvalidInputError,
)
from planner.errors import (
    InvalidTreeError as InvalidTreeError,
)
from planner.errors import (
    OffloadError as OffloadError,
)
from planner.errors import (
    PipelineError as PipelineError,
)
from planner.errors import (
    PlanMismatchError as PlanMismatchError,
)
from planner.errors import (
    PlannerError as PlannerError,
)
from planner.errors import (
    RecordingError as RecordingError,
)
from planner.errors import (
    UnknownMemoryError as UnknownMemoryError,
)
from planner.loading.api import (
    load as load,
)
from planner.loading.report import (
    LoadedTensor as LoadedTensor,
)
from planner.loading.report import (
    LoadReport as LoadReport,
)
from planner.loading.report import (
    load_report as load_report,
)
from planner.loading.streaming.counters import (
    StreamingProgress as StreamingProgress,
)
from planner.measuring.probe import (
    Probed as Probed,
)
from planner.measuring.probe import (
    probe as probe,
)
from planner.pipelines.api import (
    Pipeline as Pipeline,
)
from planner.pipelines.api import (
    pipeline as pipeline,
)
from planner.planning import (
    plan as plan,
)
from planner.planning import (
    plan_many as plan_many,
)
from planner.planning.asking import (
    FirstPlan as FirstPlan,
)
from planner.planning.asking import (
    Largest as Largest,
)
from planner.planning.asking import (
    first_that_fits as first_that_fits,
)
from planner.planning.asking import (
    largest as largest,
)
from planner.planning.needs import (
    demands as demands,
)
from planner.planning.pricing import (
    price as price,
)
from planner.plans.explaining import (
    explain as explain,
)
from planner.plans.plan import (
    Plan as Plan,
)
from planner.report.showing import (
    show as show,
)
from planner.verification.measuring import (
    Measurement as Measurement,
)
from planner.verification.measuring import (
    measure as measure,
)
from planner.verification.peak_rows import (
    PeakRow as PeakRow,
)
from planner.verification.verdict import (
    Verification as Verification,
)
from planner.verification.verifying import (
    verify as verify,
)

__version__: str

__all__ = [
    "AlignDevicesHook",
    "CheckpointError",
    "CpuOffload",
    "Crossing",
    "Finding",
    "FirstPlan",
    "InfeasibleError",
    "Integration",
    "IntegrationError",
    "InvalidByteSizeError",
    "InvalidConfigError",
    "InvalidConstraintError",
    "InvalidDevicesError",
    "InvalidInputError",
    "InvalidTreeError",
    "Largest",
    "LayerwiseCastingHook",
    "LoadReport",
    "LoadedTensor",
    "Machine",
    "Measurement",
    "ModelHook",
    "OffloadError",
    "OffloadedWeightsLoader",
    "PeakRow",
    "Pipeline",
    "PipelineError",
    "Plan",
    "PlanMismatchError",
    "PlannerError",
    "PrefixedDataset",
    "Probed",
    "RecordingError",
    "SequentialHook",
    "StateDict",
    "StreamingProgress",
    "UnknownMemoryError",
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
    "demands",
    "disk_offload",
    "dispatch",
    "dispatch_model",
    "dtype_byte_size",
    "explain",
    "extract_submodules_state_dict",
    "fallback_allocate",
    "find_device",
    "find_tied_parameters",
    "first_that_fits",
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
    "install",
    "integrate",
    "is_valid",
    "largest",
    "load",
    "load_checkpoint_and_dispatch",
    "load_checkpoint_in_model",
    "load_offloaded_weight",
    "load_offloaded_weights",
    "load_report",
    "measure",
    "named_module_tensors",
    "offload_state_dict",
    "offload_weight",
    "pipeline",
    "plan",
    "plan_many",
    "plan_of",
    "price",
    "probe",
    "remove_hook_from_module",
    "remove_hook_from_submodules",
    "retie_parameters",
    "save_offload_index",
    "send_to_device",
    "set_module_tensor_to_device",
    "show",
    "state_dict",
    "undispatch",
    "uninstall",
    "verify",
]

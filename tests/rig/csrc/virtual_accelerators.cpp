// Two virtual accelerators with real values, as torch's PrivateUse1 back end. See tests/rig/__init__.py.
#include "kernels.hpp"

#include <ATen/autocast_mode.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

namespace rig {

C10_REGISTER_GUARD_IMPL(PrivateUse1, Guard);
REGISTER_ALLOCATOR(kVirtual, &device_memory());

TORCH_LIBRARY_IMPL(_, PrivateUse1, library) {
  library.fallback(torch::CppFunction::makeFromBoxedFunction<&run_on_host>());
}

TORCH_LIBRARY_IMPL(aten, PrivateUse1, library) {
  library.impl("empty.memory_format", empty_memory_format);
  library.impl("empty_strided", empty_strided);
  library.impl("_copy_from", copy_from);
  library.impl("_copy_from_and_resize", copy_from_and_resize);
  library.impl("_local_scalar_dense", local_scalar_dense);
  library.impl("as_strided", at::native::as_strided_tensorimpl);
  library.impl("view", at::native::view);
  library.impl("_reshape_alias", at::native::_reshape_alias);
  library.impl("unfold", at::native::unfold);
  library.impl("view_as_real", at::native::view_as_real);
  library.impl("view_as_complex", at::native::view_as_complex);
  library.impl("resize_", at::native::resize_);
  library.impl("set_.source_Storage_storage_offset", set_storage_at);
  library.impl("set_.source_Storage", set_storage);
  library.impl("set_.source_Tensor", at::native::set_tensor_);
  library.impl("set_", set_nothing);
  library.impl("record_stream", record_stream);
  library.impl("convolution_overrideable", torch::CppFunction::makeFromBoxedFunction<&run_on_host>());
  library.impl("convolution_backward_overrideable", torch::CppFunction::makeFromBoxedFunction<&run_on_host>());
  library.impl("histc", histogram);
  library.impl("_has_compatible_shallow_copy_type", has_compatible_shallow_copy_type);
}

// Within `torch.autocast("virtual")`, what is not cast goes on as it is; matrix products are cast as on CUDA.
TORCH_LIBRARY_IMPL(_, AutocastPrivateUse1, library) {
  library.fallback(torch::CppFunction::makeFallthrough());
}
TORCH_LIBRARY_IMPL(aten, AutocastPrivateUse1, m) {
  KERNEL_PRIVATEUSEONE(linear, lower_precision_fp)
  KERNEL_PRIVATEUSEONE(matmul, lower_precision_fp)
  KERNEL_PRIVATEUSEONE(mm, lower_precision_fp)
  KERNEL_PRIVATEUSEONE(bmm, lower_precision_fp)
  KERNEL_PRIVATEUSEONE(addmm, lower_precision_fp)
}

// A copy reads lazily conjugated and negated tensors by itself; to make them plain first would need a copy.
TORCH_LIBRARY_IMPL(aten, Conjugate, library) {
  library.impl("_copy_from", torch::CppFunction::makeFallthrough());
}
TORCH_LIBRARY_IMPL(aten, Negative, library) {
  library.impl("_copy_from", torch::CppFunction::makeFallthrough());
}

TORCH_LIBRARY_IMPL(aten, CPU, library) {
  library.impl("convolution_overrideable", convolution);
  library.impl("convolution_backward_overrideable", convolution_backward);
  library.impl("_has_compatible_shallow_copy_type", has_compatible_shallow_copy_type);
}

} // namespace rig

namespace py = pybind11;

PYBIND11_MODULE(TORCH_EXTENSION_NAME, module) {
  using namespace rig;
  module.def("register_hooks", [] {
    at::RegisterPrivateUse1HooksInterface(new Hooks());
    at::setHostAllocator(kVirtual, &pinned_memory());
  });
  module.def("device_count", [] { return static_cast<int>(kDevices); });
  module.def("current_device", [] { return static_cast<int>(current_device()); });
  module.def("set_device", [](int index) { set_device(static_cast<c10::DeviceIndex>(index)); });
  module.def("set_limit_bytes", [](int index, int64_t size_bytes) {
    device_memory().limits_bytes.at(index) = size_bytes < 0 ? kCapacityBytes : size_bytes;
  });
  module.def("set_allocations_left", [](int index, int64_t count) {
    device_memory().allocations_left.at(index) = count;
  });
  module.def("pinned_bytes", [] { return pinned_memory().get_stats().active_bytes.current; });
  module.def("traffic_bytes", [] {
    return std::make_tuple(
        traffic.to_device_bytes.load(), traffic.to_host_bytes.load(), traffic.between_devices_bytes.load());
  });
  module.def("reset_traffic", [] {
    traffic.to_device_bytes = 0;
    traffic.to_host_bytes = 0;
    traffic.between_devices_bytes = 0;
  });
  module.def("watch_streams", [](bool on) {
    Locked locked(timeline().mutex);
    timeline().is_watching = on;
  });
  module.def("take_races", [] {
    Locked locked(timeline().mutex);
    return timeline().take_races();
  });
}

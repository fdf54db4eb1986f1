// Operators: each runs on the host, and its results are said to lie on the device.
#pragma once

#include "hooks.hpp"

#include <ATen/ATen.h>
#include <ATen/EmptyTensor.h>
#include <ATen/native/CPUFallback.h>
#include <ATen/native/Resize.h>
#include <ATen/ops/_reshape_alias_native.h>
#include <ATen/ops/as_strided_native.h>
#include <ATen/ops/resize_native.h>
#include <ATen/ops/set_native.h>
#include <ATen/ops/unfold_native.h>
#include <ATen/ops/view_as_complex_native.h>
#include <ATen/ops/view_as_real_native.h>
#include <ATen/ops/view_native.h>
#include <torch/library.h>

namespace rig {

struct Traffic {
  std::atomic<int64_t> to_device_bytes{0};
  std::atomic<int64_t> to_host_bytes{0};
  std::atomic<int64_t> between_devices_bytes{0};
};

inline Traffic traffic;

// Within a kernel, copies to and from the host are how it works, not what a program asked for.
inline thread_local bool is_in_kernel = false;

inline bool is_virtual(const at::Tensor& tensor) {
  return tensor.defined() && tensor.device().type() == kVirtual;
}

inline StreamKey stream_of(const at::Tensor& tensor) {
  return key_of(current_stream(tensor.device().index()));
}

// ---- uses of memory --------------------------------------------------------------------------------------------------

// Reports uses of the same bytes that are not ordered, and remembers this one.
inline void note_use(const at::Tensor& tensor, const Moment& moment, Kind kind, const std::string& what) {
  if (!timeline().is_watching || tensor.numel() == 0 || !tensor.has_storage()) {
    return;
  }
  auto* const block = tensor.storage().data_ptr().cast_context<Block>(&free_block);
  if (block == nullptr) {
    return;
  }
  const auto item_bytes = static_cast<int64_t>(tensor.element_size());
  const auto begin_bytes = tensor.storage_offset() * item_bytes;
  int64_t last = 0;
  for (int64_t dim = 0; dim < tensor.dim(); ++dim) {
    last += (tensor.size(dim) - 1) * tensor.stride(dim);
  }
  const Use use{begin_bytes, begin_bytes + (last + 1) * item_bytes, moment, kind};
  const bool is_write = kind != Kind::reads;
  std::vector<Use> kept;
  for (const auto& earlier : block->uses) {
    if (timeline().is_over(earlier.moment)) {
      continue;
    }
    const bool overlaps = earlier.begin_bytes < use.end_bytes && use.begin_bytes < earlier.end_bytes;
    const bool is_ordered = timeline().is_ordered(earlier.moment, moment.stream);
    if (overlaps && (earlier.kind != Kind::reads || is_write) && !is_ordered) {
      const auto race = what + " on " + name_of(moment.stream) + word_of(kind) + " memory that " +
          name_of(earlier.moment.stream) + word_of(earlier.kind) + " without being ordered after it";
      timeline().report(race);
      TORCH_CHECK(false, "virtual: stream race: ", race);
    }
    // A later use by the same stream, or an ordered write, says all that an earlier use inside it could say.
    const bool is_inside = use.begin_bytes <= earlier.begin_bytes && earlier.end_bytes <= use.end_bytes;
    const bool is_same_kind = earlier.moment.stream == moment.stream && (is_write || earlier.kind == Kind::reads);
    if (!(is_inside && (is_same_kind || (is_write && is_ordered)))) {
      kept.push_back(earlier);
    }
  }
  kept.push_back(use);
  block->uses = std::move(kept);
}

// ---- copies ----------------------------------------------------------------------------------------------------------

// The same memory as a tensor of the host.
inline at::Tensor on_host(const at::Tensor& tensor) {
  if (!is_virtual(tensor)) {
    return tensor;
  }
  auto* const data = static_cast<char*>(const_cast<void*>(tensor.storage().data()));
  auto* const first = data == nullptr ? data : data + tensor.storage_offset() * tensor.element_size();
  auto seen = at::from_blob(first, tensor.sizes(), tensor.strides(), tensor.options().device(c10::kCPU));
  seen._set_conj(tensor.is_conj());
  seen._set_neg(tensor.is_neg());
  return seen;
}

inline size_t fingerprint(const at::Tensor& tensor) {
  const auto dense = tensor.contiguous();
  return std::hash<std::string_view>{}({static_cast<const char*>(dense.const_data_ptr()), dense.nbytes()});
}

inline void host_to_device(const at::Tensor& from, const at::Tensor& to, bool non_blocking) {
  const auto moment = timeline().issue(stream_of(to));
  note_use(to, moment, Kind::writes, "copy from the host");
  on_host(to).copy_(from);
  if (!non_blocking) {
    timeline().host_waits(timeline().now(moment.stream));
  } else if (timeline().is_watching && from.has_storage() && pinned_memory().contains(from.storage().data())) {
    const auto sent = fingerprint(from);
    timeline().deliver_later(moment, [kept = from.detach(), sent, stream = moment.stream] {
      if (fingerprint(kept) != sent) {
        timeline().report("pinned memory was changed while a copy on " + name_of(stream) + " may have been reading it");
      }
    });
  }
}

inline void device_to_host(const at::Tensor& from, const at::Tensor& to, bool non_blocking) {
  const auto moment = timeline().issue(stream_of(from));
  note_use(from, moment, Kind::reads, "copy to the host");
  const bool is_late = non_blocking && timeline().is_watching && to.has_storage() &&
      pinned_memory().contains(to.storage().data());
  if (is_late) {
    timeline().deliver_later(moment, [kept = to.detach(), values = on_host(from).clone()] {
      kept.copy_(values);
    });
    return;
  }
  to.copy_(on_host(from));
  timeline().host_waits(timeline().now(moment.stream));
}

// As CUDA does it: on the source's stream, with both streams waiting for each other.
inline void device_to_device(const at::Tensor& from, const at::Tensor& to) {
  const auto source = stream_of(from);
  const auto target = stream_of(to);
  timeline().stream_waits(source, timeline().now(target));
  const auto moment = timeline().issue(source);
  note_use(from, moment, Kind::reads, "copy");
  note_use(to, moment, Kind::writes, "copy");
  on_host(to).copy_(on_host(from));
  timeline().stream_waits(target, timeline().now(source));
}

inline at::Tensor copy_from(const at::Tensor& from, const at::Tensor& to, bool non_blocking) {
  if (is_in_kernel) {
    on_host(to).copy_(on_host(from));
    return to;
  }
  Locked locked(timeline().mutex);
  const auto size_bytes = static_cast<int64_t>(to.nbytes());
  if (!is_virtual(from)) {
    traffic.to_device_bytes += size_bytes;
    host_to_device(from, to, non_blocking);
  } else if (!is_virtual(to)) {
    traffic.to_host_bytes += size_bytes;
    device_to_host(from, to, non_blocking);
  } else {
    traffic.between_devices_bytes += from.device() == to.device() ? 0 : size_bytes;
    device_to_device(from, to);
  }
  return to;
}

inline at::Tensor copy_from_and_resize(const at::Tensor& from, const at::Tensor& to) {
  at::native::resize_(to, from.sizes(), std::nullopt);
  return copy_from(from, to, false);
}

inline at::Scalar local_scalar_dense(const at::Tensor& tensor) {
  Locked locked(timeline().mutex);
  auto value = at::empty({}, tensor.options().device(c10::kCPU));
  traffic.to_host_bytes += static_cast<int64_t>(value.nbytes());
  device_to_host(tensor, value, false);
  return at::_local_scalar_dense(value);
}

// ---- memory and views ------------------------------------------------------------------------------------------------

inline c10::Device device_or_current(std::optional<c10::Device> device) {
  return {kVirtual, index_of(device.value_or(c10::Device(kVirtual)))};
}

inline at::Tensor empty_memory_format(at::IntArrayRef size, std::optional<at::ScalarType> dtype,
    std::optional<at::Layout>, std::optional<at::Device> device, std::optional<bool>,
    std::optional<at::MemoryFormat> memory_format) {
  const c10::DeviceGuard guard(device_or_current(device));
  return at::detail::empty_generic(size, &device_memory(), c10::DispatchKeySet(c10::DispatchKey::PrivateUse1),
      c10::dtype_or_default(dtype), memory_format);
}

inline at::Tensor empty_strided(at::IntArrayRef size, at::IntArrayRef stride, std::optional<at::ScalarType> dtype,
    std::optional<at::Layout>, std::optional<at::Device> device, std::optional<bool>) {
  const c10::DeviceGuard guard(device_or_current(device));
  return at::detail::empty_strided_generic(size, stride, &device_memory(),
      c10::DispatchKeySet(c10::DispatchKey::PrivateUse1), c10::dtype_or_default(dtype));
}

inline at::Tensor& set_storage_at(at::Tensor& tensor, at::Storage source, int64_t offset, at::IntArrayRef size,
    at::IntArrayRef stride) {
  TORCH_CHECK(source.device_type() == kVirtual, "Attempted to set the storage of a tensor on device \"",
      tensor.device(), "\" to a storage on different device \"", source.device(), "\".");
  auto* const implementation = tensor.unsafeGetTensorImpl();
  implementation->set_storage_keep_dtype(std::move(source));
  if (stride.data() == nullptr) {
    implementation->set_storage_offset(offset);
    implementation->set_sizes_contiguous(size);
  } else {
    implementation->set_sizes_and_strides(size, stride, offset);
  }
  return tensor;
}

inline at::Tensor& set_storage(at::Tensor& tensor, at::Storage source) {
  const auto count = static_cast<int64_t>(source.nbytes() / tensor.element_size());
  return set_storage_at(tensor, std::move(source), 0, {count}, {});
}

inline at::Tensor& set_nothing(at::Tensor& tensor) {
  const auto empty = at::empty({0}, tensor.options());
  return set_storage_at(tensor, empty.storage(), 0, {0}, {});
}

inline void record_stream(at::Tensor& tensor, c10::Stream stream) {
  device_memory().recordStream(tensor.storage().data_ptr(), stream);
}

// `param.data = …` across host and device, on which `Module.to` relies to keep ties; torch allows it for its own devices.
inline bool has_compatible_shallow_copy_type(const at::Tensor& self, const at::Tensor& from) {
  const auto is_plain = [](const at::Tensor& tensor) {
    return tensor.layout() == c10::kStrided && (tensor.is_cpu() || is_virtual(tensor));
  };
  return (is_plain(self) && is_plain(from)) ||
      self.unsafeGetTensorImpl()->has_compatible_shallow_copy_type(from.key_set());
}

// ---- all other operators ---------------------------------------------------------------------------------------------

template <typename Action>
void each_tensor(const c10::IValue& value, Action action) {
  if (value.isTensor()) {
    if (value.toTensor().defined()) {
      action(value.toTensor());
    }
  } else if (value.isTensorList()) {
    for (const at::Tensor& tensor : value.toTensorVector()) {
      action(tensor);
    }
  } else if (value.isOptionalTensorList()) { // indices, which may be on the host as on CUDA
    for (const std::optional<at::Tensor>& tensor : value.toOptionalTensorVector()) {
      if (is_virtual(tensor.value_or(at::Tensor()))) {
        action(*tensor);
      }
    }
  }
}

// The device of all tensors of a call; raises where a kernel of CUDA would.
inline std::optional<c10::Device> common_device(const c10::OperatorHandle& op, c10::ArrayRef<c10::IValue> arguments) {
  std::optional<c10::Device> found;
  for (const auto& value : arguments) {
    each_tensor(value, [&](const at::Tensor& tensor) {
      if (is_virtual(tensor) && !found) {
        found = tensor.device();
      }
    });
  }
  for (const auto& value : arguments) {
    each_tensor(value, [&](const at::Tensor& tensor) {
      const bool is_number = tensor.dim() == 0 && tensor.is_cpu();
      TORCH_CHECK(!found || is_number || tensor.device() == *found,
          "Expected all tensors to be on the same device, but found at least two devices, ", *found, " and ",
          tensor.device(), "! (when checking arguments of ", op.schema().name(), ")");
    });
  }
  return found;
}

inline void note_uses(const c10::OperatorHandle& op, c10::ArrayRef<c10::IValue> values, const Moment& moment,
    bool are_results) {
  for (size_t place = 0; place < values.size(); ++place) {
    const auto* const alias = are_results ? nullptr : op.schema().arguments()[place].alias_info();
    const auto kind = are_results || (alias != nullptr && alias->isWrite()) ? Kind::writes : Kind::reads;
    each_tensor(values[place], [&](const at::Tensor& tensor) {
      if (is_virtual(tensor)) {
        note_use(tensor, moment, kind, op.schema().name());
      }
    });
  }
}

struct InKernel {
  bool before = std::exchange(is_in_kernel, true);
  ~InKernel() {
    is_in_kernel = before;
  }
};

inline void run_on_host(const c10::OperatorHandle& op, torch::jit::Stack* stack) {
  const auto count = op.schema().arguments().size();
  const auto device = common_device(op, torch::jit::last(*stack, count));
  const c10::OptionalDeviceGuard guard(device);
  if (!device || !timeline().is_watching) {
    const InKernel in_kernel;
    at::native::cpu_fallback(op, stack);
    return;
  }
  Moment moment{};
  {
    Locked locked(timeline().mutex);
    moment = timeline().issue(key_of(current_stream(device->index())));
    note_uses(op, torch::jit::last(*stack, count), moment, false);
  }
  {
    const InKernel in_kernel;
    at::native::cpu_fallback(op, stack);
  }
  Locked locked(timeline().mutex);
  note_uses(op, torch::jit::last(*stack, op.schema().returns().size()), moment, true);
}

// ---- operators that the host has under another name, or for fewer types ----------------------------------------------

inline at::Tensor convolution(const at::Tensor& input, const at::Tensor& weight, const std::optional<at::Tensor>& bias,
    c10::SymIntArrayRef stride, c10::SymIntArrayRef padding, c10::SymIntArrayRef dilation, bool transposed,
    c10::SymIntArrayRef output_padding, c10::SymInt groups) {
  return at::convolution_symint(
      input, weight, bias, stride, padding, dilation, transposed, output_padding, std::move(groups));
}

inline std::tuple<at::Tensor, at::Tensor, at::Tensor> convolution_backward(const at::Tensor& gradient,
    const at::Tensor& input, const at::Tensor& weight, c10::SymIntArrayRef stride, c10::SymIntArrayRef padding,
    c10::SymIntArrayRef dilation, bool transposed, c10::SymIntArrayRef output_padding, c10::SymInt groups,
    std::array<bool, 3> wanted) {
  const std::vector<c10::SymInt> bias_size{gradient.sym_size(1)};
  return at::convolution_backward_symint(gradient, input, weight, c10::SymIntArrayRef(bias_size), stride, padding,
      dilation, transposed, output_padding, std::move(groups), wanted);
}

inline at::Tensor histogram(const at::Tensor& tensor, int64_t bins, const at::Scalar& least, const at::Scalar& most) {
  if (at::isFloatingType(tensor.scalar_type())) {
    return at::histc(tensor.cpu(), bins, least, most).to(tensor.device());
  }
  return at::histc(tensor.cpu().to(at::kDouble), bins, least, most).to(tensor.device(), tensor.scalar_type());
}

} // namespace rig

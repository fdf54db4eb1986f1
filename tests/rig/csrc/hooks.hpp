// What torch asks an accelerator as a whole.
#pragma once

#include "memory.hpp"

#include <ATen/CPUGeneratorImpl.h>
#include <ATen/detail/PrivateUse1HooksInterface.h>
#include <c10/core/Storage.h>

namespace rig {

inline void Guard::recordDataPtrOnStream(const c10::DataPtr& data, const c10::Stream& stream) const {
  device_memory().recordStream(data, stream);
}

struct Hooks final : at::PrivateUse1HooksInterface {
  bool isBuilt() const override {
    return true;
  }
  bool isAvailable() const override {
    return true;
  }
  bool hasPrimaryContext(c10::DeviceIndex) const override {
    return true;
  }
  c10::DeviceIndex deviceCount() const override {
    return kDevices;
  }
  c10::DeviceIndex getCurrentDevice() const override {
    return current_device();
  }
  void setCurrentDevice(c10::DeviceIndex index) const override {
    set_device(index);
  }
  c10::DeviceIndex exchangeDevice(c10::DeviceIndex index) const override {
    const auto before = current_device();
    set_device(index);
    return before;
  }
  c10::DeviceIndex maybeExchangeDevice(c10::DeviceIndex index) const override {
    return exchangeDevice(index);
  }
  at::Device getDeviceFromPtr(void*) const override {
    return {kVirtual, current_device()};
  }
  bool isPinnedPtr(const void* data) const override {
    return pinned_memory().contains(data);
  }
  at::Allocator* getPinnedMemoryAllocator() const override {
    return &pinned_memory();
  }
  // Kernels run on the host, so its generator is the one that they use.
  const at::Generator& getDefaultGenerator(c10::DeviceIndex) const override {
    return at::detail::getDefaultCPUGenerator();
  }
  at::Generator getNewGenerator(c10::DeviceIndex) const override {
    return at::detail::createCPUGenerator();
  }
  void resizePrivateUse1Bytes(const c10::Storage& storage, size_t size_bytes) const override {
    const c10::DeviceGuard guard(storage.device());
    auto resized = device_memory().allocate(size_bytes);
    const auto kept_bytes = std::min(size_bytes, storage.nbytes());
    if (kept_bytes > 0) {
      std::memcpy(resized.mutable_get(), storage.data(), kept_bytes);
    }
    storage.unsafeGetStorageImpl()->set_data_ptr(std::move(resized));
    storage.unsafeGetStorageImpl()->set_nbytes(size_bytes);
  }
};

} // namespace rig

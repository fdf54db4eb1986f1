// Current device, streams and events of the virtual accelerators.
#pragma once

#include "timeline.hpp"

#include <c10/core/impl/DeviceGuardImplInterface.h>

#include <array>
#include <atomic>
#include <chrono>

namespace rig {

inline thread_local c10::DeviceIndex this_thread_device = 0;
inline thread_local std::array<c10::StreamId, kDevices> this_thread_streams{};
inline std::atomic<c10::StreamId> last_stream{0};

inline c10::DeviceIndex current_device() {
  return this_thread_device;
}

inline void set_device(c10::DeviceIndex index) {
  TORCH_CHECK(index < kDevices, "virtual: invalid device ordinal ", static_cast<int>(index), "; there are ",
      static_cast<int>(kDevices), " devices");
  if (index >= 0) {
    this_thread_device = index;
  }
}

inline c10::DeviceIndex index_of(c10::Device device) {
  return device.has_index() ? device.index() : current_device();
}

inline c10::Stream current_stream(c10::DeviceIndex index) {
  return c10::Stream(c10::Stream::UNSAFE, c10::Device(kVirtual, index), this_thread_streams[index]);
}

struct Event {
  Clock clock;
  StreamKey stream;
  std::chrono::steady_clock::time_point time;
};

struct Guard final : c10::impl::DeviceGuardImplInterface {
  c10::DeviceType type() const override {
    return kVirtual;
  }
  c10::Device exchangeDevice(c10::Device device) const override {
    const auto before = getDevice();
    set_device(device.index());
    return before;
  }
  c10::Device getDevice() const override {
    return {kVirtual, current_device()};
  }
  void setDevice(c10::Device device) const override {
    set_device(device.index());
  }
  void uncheckedSetDevice(c10::Device device) const noexcept override {
    if (device.index() >= 0 && device.index() < kDevices) {
      this_thread_device = device.index();
    }
  }
  c10::DeviceIndex deviceCount() const noexcept override {
    return kDevices;
  }

  c10::Stream getStream(c10::Device device) const override {
    return current_stream(index_of(device));
  }
  c10::Stream getDefaultStream(c10::Device device) const override {
    return c10::Stream(c10::Stream::DEFAULT, c10::Device(kVirtual, index_of(device)));
  }
  c10::Stream getNewStream(c10::Device device, int) const override {
    return c10::Stream(c10::Stream::UNSAFE, c10::Device(kVirtual, index_of(device)), ++last_stream);
  }
  c10::Stream getStreamFromGlobalPool(c10::Device device, bool) const override {
    return getNewStream(device, 0);
  }
  c10::Stream exchangeStream(c10::Stream stream) const override {
    const auto before = current_stream(stream.device_index());
    this_thread_streams[stream.device_index()] = stream.id();
    return before;
  }
  bool queryStream(const c10::Stream& stream) const override {
    Locked locked(timeline().mutex);
    const bool was_over = timeline().host_is_past(key_of(stream));
    timeline().host_waits(timeline().now(key_of(stream))); // whoever asks again finds it done
    return was_over;
  }
  void synchronizeStream(const c10::Stream& stream) const override {
    Locked locked(timeline().mutex);
    timeline().host_waits(timeline().now(key_of(stream)));
  }
  void synchronizeDevice(const c10::DeviceIndex index) const override {
    Locked locked(timeline().mutex);
    timeline().host_waits_for_device(index);
  }

  void record(void** event, const c10::Stream& stream, const c10::DeviceIndex, const c10::EventFlag) const override {
    Locked locked(timeline().mutex);
    if (*event == nullptr) {
      *event = new Event();
    }
    auto& recorded = *static_cast<Event*>(*event);
    recorded = {timeline().now(key_of(stream)), key_of(stream), std::chrono::steady_clock::now()};
  }
  void block(void* event, const c10::Stream& stream) const override {
    if (event != nullptr) {
      Locked locked(timeline().mutex);
      timeline().stream_waits(key_of(stream), static_cast<Event*>(event)->clock);
    }
  }
  bool queryEvent(void* event) const override {
    if (event == nullptr) {
      return true;
    }
    Locked locked(timeline().mutex);
    const auto& recorded = *static_cast<Event*>(event);
    const bool was_over = timeline().host_covers(recorded.clock, recorded.stream);
    timeline().host_waits(recorded.clock); // whoever asks again finds it done
    return was_over;
  }
  void synchronizeEvent(void* event) const override {
    if (event != nullptr) {
      Locked locked(timeline().mutex);
      timeline().host_waits(static_cast<Event*>(event)->clock);
    }
  }
  void destroyEvent(void* event, const c10::DeviceIndex) const noexcept override {
    delete static_cast<Event*>(event);
  }
  double elapsedTime(void* first, void* second, const c10::DeviceIndex) const override {
    TORCH_CHECK(first != nullptr && second != nullptr, "virtual: both events must be recorded");
    const auto between = static_cast<Event*>(second)->time - static_cast<Event*>(first)->time;
    return std::chrono::duration<double, std::milli>(between).count();
  }
  void recordDataPtrOnStream(const c10::DataPtr& data, const c10::Stream& stream) const override;
};

} // namespace rig

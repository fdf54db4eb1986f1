// Memory of the virtual accelerators: the host's, counted for the device on which it is said to lie.
#pragma once

#include "streams.hpp"

#include <ATen/core/CachingHostAllocator.h>
#include <c10/core/CachingDeviceAllocator.h>
#include <c10/core/DeviceGuard.h>
#include <c10/core/impl/alloc_cpu.h>

#include <array>
#include <cstring>
#include <memory>
#include <set>

namespace rig {

// Allocating counts as a use: work of its stream on whatever was there before may not be over.
enum class Kind { allocates, reads, writes };

inline const char* word_of(Kind kind) {
  return kind == Kind::allocates ? " allocated" : kind == Kind::reads ? " reads" : " writes";
}

// One use of a part of a block by work on a stream.
struct Use {
  int64_t begin_bytes;
  int64_t end_bytes;
  Moment moment;
  Kind kind;
};

struct Block {
  void* data;
  size_t size_bytes;
  StreamKey stream; // where it was allocated, and is used again after it was freed
  std::set<StreamKey> also_on; // streams of `record_stream`
  std::vector<Use> uses;
};

constexpr auto kAll = static_cast<size_t>(c10::CachingAllocator::StatType::AGGREGATE);
constexpr int64_t kCapacityBytes = int64_t{1} << 30;

inline void free_block(void* context);

class DeviceMemory final : public c10::DeviceAllocator {
 public:
  c10::DataPtr allocate(size_t size_bytes) override {
    Locked locked(timeline().mutex);
    const auto index = current_device();
    const c10::Device device(kVirtual, index);
    if (size_bytes == 0) {
      return {nullptr, nullptr, &free_block, device};
    }
    auto& stats = stats_[index];
    const auto used_bytes = stats.allocated_bytes[kAll].current;
    const auto free_bytes = std::max<int64_t>(0, limits_bytes[index] - used_bytes);
    const bool is_denied = allocations_left[index] == 0;
    if (is_denied || static_cast<int64_t>(size_bytes) > free_bytes) {
      ++stats.num_ooms;
      TORCH_CHECK_WITH(OutOfMemoryError, false, "virtual out of memory. Tried to allocate ", size_bytes,
          " bytes. Device ", static_cast<int>(index), " has a total capacity of ", limits_bytes[index],
          " bytes of which ", is_denied ? 0 : free_bytes, " bytes are free; ", used_bytes, " bytes are allocated.");
    }
    allocations_left[index] -= allocations_left[index] > 0;
    void* const data = c10::alloc_cpu(size_bytes);
    auto* const block = new Block{data, size_bytes, key_of(current_stream(index)), {}, {}};
    if (timeline().is_watching) {
      const auto moment = timeline().issue(block->stream);
      block->uses.push_back({0, static_cast<int64_t>(size_bytes), moment, Kind::allocates});
    }
    count(index, [&](auto& sizes) { sizes.increase(size_bytes); }, [](auto& counts) { counts.increase(1); });
    ++stats.num_device_alloc;
    return {data, block, &free_block, device};
  }

  void release(Block* block) {
    const auto index = block->stream.first;
    count(index, [&](auto& sizes) { sizes.decrease(block->size_bytes); }, [](auto& counts) { counts.decrease(1); });
    ++stats_[index].num_device_free;
    c10::free_cpu(block->data);
    delete block;
  }

  bool initialized() override {
    return true;
  }

  void emptyCache(c10::MempoolId_t) override {}

  void recordStream(const c10::DataPtr& data, c10::Stream stream) override {
    if (auto* const block = data.cast_context<Block>(&free_block)) {
      Locked locked(timeline().mutex);
      block->also_on.insert(key_of(stream));
    }
  }

  c10::CachingDeviceAllocator::DeviceStats getDeviceStats(c10::DeviceIndex device) override {
    return stats_[device];
  }

  void resetAccumulatedStats(c10::DeviceIndex device) override {
    each(device, [](auto& stat) { stat.reset_accumulated(); });
  }

  void resetPeakStats(c10::DeviceIndex device) override {
    each(device, [](auto& stat) { stat.reset_peak(); });
  }

  std::pair<size_t, size_t> getMemoryInfo(c10::DeviceIndex device) override {
    const auto total = limits_bytes[device];
    const auto used = stats_[device].allocated_bytes[kAll].current;
    return {static_cast<size_t>(std::max<int64_t>(0, total - used)), static_cast<size_t>(total)};
  }

  void copy_data(void* to, const void* from, std::size_t size_bytes) const override {
    std::memcpy(to, from, size_bytes);
  }

  std::array<int64_t, kDevices> limits_bytes{kCapacityBytes, kCapacityBytes};
  std::array<int64_t, kDevices> allocations_left{-1, -1}; // negative: as many as fit

 private:
  template <typename Sizes, typename Counts>
  void count(c10::DeviceIndex device, Sizes sizes, Counts counts) {
    auto& stats = stats_[device];
    for (auto* const each : {&stats.allocated_bytes, &stats.reserved_bytes, &stats.active_bytes,
                             &stats.requested_bytes}) {
      sizes((*each)[kAll]);
    }
    for (auto* const each : {&stats.allocation, &stats.segment, &stats.active}) {
      counts((*each)[kAll]);
    }
  }

  template <typename Change>
  void each(c10::DeviceIndex device, Change change) {
    Locked locked(timeline().mutex);
    count(device, change, change);
  }

  std::array<c10::CachingDeviceAllocator::DeviceStats, kDevices> stats_;
};

inline DeviceMemory& device_memory() {
  static auto* const kept = new DeviceMemory();
  return *kept;
}

// A freed block belongs to its own stream again at once: other streams must be done with it, or have been recorded.
inline void free_block(void* context) {
  auto* const block = static_cast<Block*>(context);
  if (block == nullptr) {
    return;
  }
  Locked locked(timeline().mutex);
  for (const auto& use : block->uses) {
    if (!block->also_on.count(use.moment.stream) && !timeline().is_ordered(use.moment, block->stream)) {
      timeline().report("memory of " + name_of(block->stream) + " was freed while " + name_of(use.moment.stream) +
          " may still use it: record_stream, or wait");
      break;
    }
  }
  device_memory().release(block);
}

// Pinned host memory: ordinary memory whose addresses are remembered.
class PinnedMemory final : public at::HostAllocator {
 public:
  c10::DataPtr allocate(size_t size_bytes) override {
    void* const data = c10::alloc_cpu(std::max<size_t>(size_bytes, 1));
    std::lock_guard<std::mutex> locked(mutex_);
    blocks_[reinterpret_cast<uintptr_t>(data)] = size_bytes;
    stats_.active_bytes.increase(size_bytes);
    stats_.allocated_bytes.increase(size_bytes);
    return {data, data, &PinnedMemory::free, c10::Device(c10::kCPU)};
  }

  bool contains(const void* data) {
    const auto address = reinterpret_cast<uintptr_t>(data);
    std::lock_guard<std::mutex> locked(mutex_);
    auto after = blocks_.upper_bound(address);
    if (after == blocks_.begin()) {
      return false;
    }
    --after;
    return address < after->first + std::max<size_t>(after->second, 1);
  }

  static void free(void* data);

  bool record_event(void*, void*, c10::Stream) override {
    return true;
  }

  void empty_cache() override {}

  at::HostStats get_stats() override {
    std::lock_guard<std::mutex> locked(mutex_);
    return stats_;
  }

  void reset_accumulated_stats() override {
    std::lock_guard<std::mutex> locked(mutex_);
    stats_.active_bytes.reset_accumulated();
    stats_.allocated_bytes.reset_accumulated();
  }

  void reset_peak_stats() override {
    std::lock_guard<std::mutex> locked(mutex_);
    stats_.active_bytes.reset_peak();
    stats_.allocated_bytes.reset_peak();
  }

  void copy_data(void* to, const void* from, std::size_t size_bytes) const override {
    std::memcpy(to, from, size_bytes);
  }

 private:
  std::mutex mutex_;
  std::map<uintptr_t, size_t> blocks_;
  at::HostStats stats_;
};

inline PinnedMemory& pinned_memory() {
  static auto* const kept = new PinnedMemory();
  return *kept;
}

inline void PinnedMemory::free(void* data) {
  auto& memory = pinned_memory();
  {
    std::lock_guard<std::mutex> locked(memory.mutex_);
    const auto found = memory.blocks_.find(reinterpret_cast<uintptr_t>(data));
    memory.stats_.active_bytes.decrease(found->second);
    memory.stats_.allocated_bytes.decrease(found->second);
    memory.blocks_.erase(found);
  }
  c10::free_cpu(data);
}

} // namespace rig

// Order of work on streams, as vector clocks.
//
// Kernels run at once on the host, so a missing synchronisation would never show in the values. What is kept instead is
// which work is ordered before which: the host, every stream and every recorded event know how much of each stream's work
// they come after. Two uses of the same memory that are not ordered are a race, whatever the values say.
#pragma once

#include <Python.h>

#include <c10/core/Stream.h>

#include <algorithm>
#include <cstdint>
#include <functional>
#include <list>
#include <map>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

namespace rig {

constexpr auto kVirtual = c10::DeviceType::PrivateUse1;
constexpr c10::DeviceIndex kDevices = 2;

using StreamKey = std::pair<c10::DeviceIndex, c10::StreamId>;

inline StreamKey key_of(const c10::Stream& stream) {
  return {stream.device_index(), stream.id()};
}

inline std::string name_of(const StreamKey& key) {
  return "stream " + std::to_string(key.second) + " of virtual:" + std::to_string(key.first);
}

// How much of each stream's work is known to be over.
class Clock {
 public:
  void merge(const Clock& other) {
    for (const auto& [key, tick] : other.ticks_) {
      auto& mine = ticks_[key];
      mine = std::max(mine, tick);
    }
  }

  uint64_t advance(const StreamKey& key) {
    return ++ticks_[key];
  }

  bool covers(const StreamKey& key, uint64_t tick) const {
    const auto found = ticks_.find(key);
    return found != ticks_.end() && found->second >= tick;
  }

 private:
  std::map<StreamKey, uint64_t> ticks_;
};

// A moment on a stream.
struct Moment {
  StreamKey stream;
  uint64_t tick;
};

// Something that the host only sees once it has waited for a moment.
struct Arrival {
  Moment moment;
  std::function<void()> deliver;
};

class Timeline {
 public:
  // One piece of work on a stream; it comes after all that the host has waited for.
  Moment issue(const StreamKey& stream) {
    auto& clock = streams_[stream];
    clock.merge(host_);
    return {stream, clock.advance(stream)};
  }

  // Whether the host has waited for `moment`, so that everything from now on comes after it.
  bool is_over(const Moment& moment) const {
    return host_.covers(moment.stream, moment.tick);
  }

  // Whether what is issued on `stream` now comes after `moment`.
  bool is_ordered(const Moment& moment, const StreamKey& stream) {
    return moment.stream == stream || is_over(moment) || streams_[stream].covers(moment.stream, moment.tick);
  }

  Clock now(const StreamKey& stream) {
    auto clock = streams_[stream];
    clock.merge(host_);
    return clock;
  }

  void stream_waits(const StreamKey& stream, const Clock& clock) {
    streams_[stream].merge(clock);
  }

  void host_waits(const Clock& clock) {
    host_.merge(clock);
    for (auto arrival = arrivals_.begin(); arrival != arrivals_.end();) {
      if (is_over(arrival->moment)) {
        arrival->deliver();
        arrival = arrivals_.erase(arrival);
      } else {
        ++arrival;
      }
    }
  }

  bool host_is_past(const StreamKey& stream) {
    return is_covered(streams_[stream], stream);
  }

  bool host_covers(const Clock& clock, const StreamKey& stream) {
    return is_covered(clock, stream);
  }

  void host_waits_for_device(c10::DeviceIndex device) {
    for (const auto& [key, clock] : std::map<StreamKey, Clock>(streams_)) {
      if (key.first == device) {
        host_waits(clock);
      }
    }
  }

  void deliver_later(const Moment& moment, std::function<void()> deliver) {
    arrivals_.push_back({moment, std::move(deliver)});
  }

  void report(std::string race) {
    races_.push_back(std::move(race));
  }

  std::vector<std::string> take_races() {
    return std::exchange(races_, {});
  }

  bool is_watching = false;
  std::recursive_mutex mutex; // every use of a timeline holds it

 private:
  bool is_covered(const Clock& clock, const StreamKey& stream) {
    Clock ahead = clock;
    const auto tick = ahead.advance(stream) - 1;
    return tick == 0 || host_.covers(stream, tick);
  }

  Clock host_;
  std::map<StreamKey, Clock> streams_;
  std::list<Arrival> arrivals_;
  std::vector<std::string> races_;
};

inline Timeline& timeline() {
  static auto* const kept = new Timeline(); // deleters of tensors may run after static destruction
  return *kept;
}

// Work under the mutex may come to need the interpreter's lock (torch counts the Python objects of tensors), so nobody waits for the mutex
// who has that: a tensor is freed by one who does.
class Locked {
 public:
  explicit Locked(std::recursive_mutex& mutex) : mutex_(mutex) {
    if (mutex_.try_lock()) {
      return;
    }
    if (Py_IsInitialized() && PyGILState_Check()) {
      Py_BEGIN_ALLOW_THREADS
      mutex_.lock();
      Py_END_ALLOW_THREADS
    } else {
      mutex_.lock();
    }
  }
  ~Locked() {
    mutex_.unlock();
  }
  Locked(const Locked&) = delete;
  Locked& operator=(const Locked&) = delete;

 private:
  std::recursive_mutex& mutex_;
};

} // namespace rig

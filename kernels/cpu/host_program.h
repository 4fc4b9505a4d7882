#pragma once

#include <cstdint>
#include <functional>
#include <utility>

#include "kernels/ops.h"

namespace quicksilver {

/// Calls what it was given: on a device without launch costs there is nothing to gain by recording.
class HostProgram final : public Program {
 public:
  HostProgram(std::function<void()> enqueue, const int32_t* proceed)
      : enqueue_(std::move(enqueue)), proceed_(proceed) {}

  void Launch() override {
    do {
      enqueue_();
    } while (proceed_ != nullptr && *proceed_ != 0);
  }

 private:
  std::function<void()> enqueue_;
  const int32_t* proceed_;
};

}  // namespace quicksilver

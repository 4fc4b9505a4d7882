#pragma once

#include <algorithm>
#include <cmath>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/time.h"
#include "coordinator/core/api_error.h"
#include "coordinator/core/ids.h"

namespace quicksilver {

/// A fraction in [0, 1) that differs from request to request, so that clients told to come back do not come at once.
inline double Jitter(RequestId id) {
  uint64_t x = static_cast<uint64_t>(id) * 0x9E3779B97F4A7C15u;
  x = (x ^ (x >> 31)) * 0xBF58476D1CE4E5B9u;
  return static_cast<double>(x >> 40) / static_cast<double>(1 << 24);
}

/// serving.md §8.6: Retry-After = clamp(wait, 1, 30) * [1, 1.5).
inline ApiError OverloadedFor(RequestId id, absl::Duration wait, std::string message) {
  const double seconds = std::clamp(absl::ToDoubleSeconds(wait), 1.0, 30.0) * (1.0 + 0.5 * Jitter(id));
  return Overloaded(std::move(message), static_cast<int>(std::ceil(seconds)));
}

/// Retry-After of 1 to 5 seconds: a group that was lost is soon back.
inline ApiError NoReadyWorkerFor(RequestId id, const std::string& model) {
  ApiError error = NoReadyWorker(absl::StrCat("No worker group that serves `", model, "` is ready."));
  error.retry_after_seconds = 1 + static_cast<int>(Jitter(id) * 5);
  return error;
}

}  // namespace quicksilver

#pragma once

#include <cstdint>
#include <functional>
#include <string>

#include "absl/time/time.h"

namespace quicksilver::simulation {

/// What a step costs: max(bytes / bandwidth, flops / peak) over the ranks, and the all-reduces. The defaults are
/// SDAR-8B in bf16 on H100s by the floors of docs/benchmarks/gpu.md: assumptions, not measurements.
struct StepCost {
  double weight_bytes = 15.14e9;
  double position_bytes = 147456;  ///< KV of a visible position.
  double row_flops = 15.76e9;
  double bandwidth = 3.0e12;  ///< Bytes a second of one GPU.
  double peak = 790e12;       ///< Flops a second of one GPU.
  double collectives_seconds = 0.72e-3;
  int gpus = 8;

  absl::Duration Of(int64_t rows, int64_t positions) const;
};

struct CostOptions {
  int groups = 1000;
  int64_t requests = 100000;
  double load = 0.9;  ///< Arrivals, as a share of the capacity without shared prefixes.
  int sequences_max = 16;
  int block = 32;
  double tokens_per_forward = 4.0;
  int answer_tokens = 512;
  int prefixes = 2000;       ///< System prompts, by Zipf's law.
  int prefix_tokens = 1024;  ///< Of each, a multiple of kPrefixRunTokens.
  int tail_tokens = 128;     ///< Of each prompt's own.
  int prefill_rows_max = 1024;
  int64_t positions_max = 512 * 1024;  ///< Of a group's KV cache.
  bool affinity = true;                ///< Placement knows the prompts' prefixes.
  absl::Duration queue_time_max = absl::Seconds(2);
  uint64_t seed = 1;
  StepCost step;
};

struct CostReport {
  int64_t completed = 0;
  int64_t refused_at_once = 0;
  int64_t refused_late = 0;  ///< After a wait in vain.
  int64_t moved = 0;
  double offered = 0;    ///< Requests a second.
  double capacity = 0;   ///< Requests a second that all places full can end, with the prefixes that were found.
  double goodput = 0;    ///< Requests a second that ended, from one service time after the first arrival to the last.
  double hit_share = 0;  ///< Of the prompts' tokens, found in a prefix cache.
  absl::Duration latency_p50, latency_p99;
  absl::Duration queue_p50, queue_p99;  ///< Until the first row.
  absl::Duration simulated;
  absl::Duration drained;      ///< From the last arrival to the last end.
  double submit_micros = 0;    ///< Wall clock, of one Submit().
  double dispatch_micros = 0;  ///< Wall clock, of all calls to the dispatcher for one request.
  bool idle = false;           ///< Nothing is left at the end.

  std::string ToString() const;
};

/// Runs an open-loop stream of requests through the real dispatcher, over groups that are no more than a step cost and
/// a prefix cache. `progress` is told how many requests have come, ten times.
CostReport RunCostModel(const CostOptions& options, const std::function<void(int64_t)>& progress);

}  // namespace quicksilver::simulation

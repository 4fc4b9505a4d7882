#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "kernels/tensor.h"

namespace quicksilver {

/// Who says which algorithms all others of a family of products have to agree with.
enum class GemmAnchor : uint8_t {
  kAdvised,   ///< The library alone: its version, the device and the shapes decide, so that all processes agree.
  kMeasured,  ///< The clock, too: bits may differ between processes. GemmPlansReport::digest tells.
};

/// How algorithms of products are chosen.
struct GemmPlansOptions {
  /// Every row of a product, and every output feature, has the same bits whatever the batch, its place in it, and the
  /// slice of the weight.
  bool deterministic = true;
  size_t workspace_bytes = size_t{32} << 20;  ///< For the library.
  GemmAnchor anchor = GemmAnchor::kAdvised;
  /// Batches at which the anchor is chosen.
  int64_t small_rows = 32;
  int64_t large_rows = 1024;
  /// How algorithms are timed: the best of so many runs after so many others (fewer of slow ones), each with nothing in
  /// the second-level cache, as in a step that reads all weights. 0 timed runs: not at all, the library's order
  /// decides.
  int32_t timed_runs = 5;
  int32_t warm_ups = 2;
  bool cold_cache = true;
  /// A probe multiplies by no more of a weight, and writes no more outputs: more would only be more blocks.
  int64_t probe_weight_bytes_max = int64_t{256} << 20;
  int64_t probe_outputs_max = int64_t{64} << 20;
};

/// What was chosen, and what for.
struct GemmPlansReport {
  int32_t families = 0;  ///< Kinds of products that have to agree within themselves.
  int32_t plans = 0;
  int32_t algorithms_tried = 0;    ///< For every plan, those that ran.
  int32_t algorithms_refused = 0;  ///< Of these, those whose bits differed from what was agreed on, or that are next.
  int32_t algorithms_wrong = 0;    ///< Of those refused, those that leave out a part of the sum.
  int32_t rows_refused = 0;        ///< Numbers of rows that no algorithm which agrees can do at once.
  /// e4m3 weights whose products the library scales, and those that are scaled afterwards.
  int32_t weights_scaled_by_library = 0;
  int32_t weights_scaled_afterwards = 0;
  uint64_t digest = 0;  ///< Of the bits agreed on: processes with the same digest give the same results.
  std::string choices;  ///< A line for every plan: its time, and that of the fastest algorithm refused.
};

struct CudaGemmOptions {
  DType activation = DType::kBf16;
  /// Keeps layer weights as e4m3 with a scale an output feature, and rounds every row of x to e4m3 with a scale of its
  /// own. Needs kBf16.
  bool fp8_layers = false;
  GemmPlansOptions plans;
  size_t staging_bytes_max = size_t{128} << 20;  ///< For quantised and for unaligned rows; taken when needed.
  /// Ascending batches of work that is not recorded: other batches are cut and padded to them. Recorded products get
  /// plans for their own number of rows, up to the last of these. plans.small_rows is one of them.
  std::vector<int64_t> row_buckets = {8, 16, 32, 64, 128, 256, 512, 1024, 2048};
};

}  // namespace quicksilver

#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "kernels/ops.h"
#include "tools/gpu/step_cost.h"

namespace quicksilver {

/// Sequences that all denoise one block, over and over: a launch always begins with the block masked, so every step of
/// it does the same work.
struct StepCase {
  int32_t sequences = 1;
  int32_t context = 0;       ///< Clean positions before the block. A multiple of it.
  int32_t block_length = 0;  ///< Rows that are decided.
  /// Without a cache: every step runs all context + block_length rows and sees them all.
  bool whole_canvas = false;
};

/// The work of one step of `of`.
StepWork WorkOf(const StepCase& of);

/// An LM head and the rows that it is applied to.
struct CandidatesCase {
  int64_t rows = 0;
  int64_t hidden = 0;      ///< H
  int64_t vocabulary = 0;  ///< V
};

/// The routed experts of one layer, and the rows that go through them.
struct ExpertsCase {
  int64_t rows = 0;
  int64_t hidden = 0;   ///< H
  int64_t mlp = 0;      ///< Im
  RoutingRule routing;  ///< Without pointers.
};

/// What a row of the table should reach; 0: nothing is asked.
struct BenchAim {
  double floor_ratio_max = 0.0;     ///< Measured / floor.
  double gemm_share_min = 0.0;      ///< Arithmetic of the step per second, of the measured GEMM ceiling.
  double host_gap_share_max = 0.0;  ///< Of the step.
  double product_ratio_max = 0.0;   ///< Candidates / product alone.
};

/// Committed tokens that one forward of a sequence gives, and who says so.
struct TokensPerForward {
  double tokens = 1.0;
  std::string source;
};

struct BenchCase {
  std::string name;
  std::string what;
  std::string model;  ///< Of PublishedSpec(); empty: `experts` is meant if it has rows, else `candidates`.
  bool fp8_layers = false;
  bool deterministic = true;
  int ranks = 1;
  StepCase step;
  CandidatesCase candidates;
  ExpertsCase experts;
  BenchAim aim;
  std::vector<TokensPerForward> tokens_per_forward;
};

/// The rows of the table, those of one model and arithmetic next to each other. `toy`: the same kinds of rows at sizes
/// for any machine, whose figures mean nothing.
std::vector<BenchCase> BenchCases(bool toy);

}  // namespace quicksilver

#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "tools/bench_serve/options.h"

namespace quicksilver {

struct BenchPrompt {
  std::string text;
  uint64_t tokens = 0;      ///< By the tokenizer, else a guess.
  uint32_t tokens_max = 0;  ///< Of the answer.
};

/// The prompts that `options` ask for, num_prompts of them; those of a file are repeated as often as needed. Equal
/// options and files give equal prompts. InvalidArgument or NotFound names the file and line.
absl::StatusOr<std::vector<BenchPrompt>> MakePrompts(const BenchServeOptions& options);

}  // namespace quicksilver

#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "worker/checkpoint/checkpoint.h"
#include "worker/model/model_spec.h"

namespace quicksilver {

/// The network that is published as "llada-8b", "sdar-1.7b" or "sdar-8b", or one of the same kind that is small enough
/// for any test: "toy". InvalidArgument: another name.
absl::StatusOr<ModelSpec> PublishedSpec(const std::string& model);

/// A checkpoint of `spec` in bf16 that is nowhere stored: matrices of pseudo-random numbers of variance 1/H, no two
/// rows of a matrix alike, and gains of 1. Equal specs give equal numbers.
std::unique_ptr<Checkpoint> MakeRandomWeights(const ModelSpec& spec);

/// A [rows, cols] matrix of such numbers.
absl::StatusOr<std::vector<uint16_t>> RandomNumbers(int64_t rows, int64_t cols);

}  // namespace quicksilver

#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "kernels/tensor.h"
#include "tests/support/model_group.h"

namespace quicksilver {

/// One recorded forward pass of a directory in the golden format.
struct GoldenForward {
  std::string family;
  std::string name;
  std::vector<TokenId> ids;
  int32_t block_length = 0;  ///< kBidirectional for attention "full", 1 for "causal".
  HostRows logits;
  std::vector<std::pair<std::string, HostRows>> hidden;
  double bf16_mean_error = 0.0;  ///< The reference's own, when it computes in bfloat16.
};

/// A directory of recorded numbers: $QUICKSILVER_GOLDEN, else ../shared/golden beside the repository.
class Golden {
 public:
  /// NotFound, naming the place, when there is none.
  static absl::StatusOr<Golden> Open();
  static absl::StatusOr<Golden> OpenAt(const std::string& directory);

  const std::string& directory() const { return directory_; }
  /// Family and dtype of every checkpoint, in the manifest's order.
  std::vector<std::pair<std::string, std::string>> Checkpoints() const;
  /// NotFound: no checkpoint of that family and dtype ("f32", "bf16").
  absl::StatusOr<std::string> CheckpointDirectory(const std::string& family, const std::string& dtype) const;
  /// NotFound when there are none of that family.
  absl::StatusOr<std::vector<GoldenForward>> Forwards(const std::string& family) const;

 private:
  absl::StatusOr<HostRows> ReadRows(const std::string& file, int64_t rows, int64_t cols) const;

  std::string directory_;
  std::string manifest_;  // JSON
};

}  // namespace quicksilver

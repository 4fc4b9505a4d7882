#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "nlohmann/json_fwd.hpp"

namespace quicksilver {

/// The "normalizer" of tokenizer.json: null, the four Unicode forms, and sequences of them. Immutable, thread-safe.
class Normalizer {
 public:
  /// InvalidArgument names an unsupported type.
  static absl::StatusOr<Normalizer> Parse(const nlohmann::json& spec);

  /// `text`, valid UTF-8, normalized: a view of `text` itself when nothing changes, else of `storage`.
  absl::StatusOr<std::string_view> Apply(std::string_view text, std::string& storage) const;

  bool empty() const { return forms_.empty(); }

 private:
  absl::Status Add(const nlohmann::json& spec, int depth);

  std::vector<const void*> forms_;  // icu::Normalizer2 singletons, in order.
};

}  // namespace quicksilver

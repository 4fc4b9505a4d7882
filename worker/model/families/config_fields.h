#pragma once

#include <cstdint>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "kernels/tensor.h"

namespace quicksilver {

/// A field of config.json that changes the network, and the values that we have written the network for.
struct SupportedField {
  const char* name;
  const char* when_absent;             ///< JSON: what the family's published code assumes.
  std::vector<const char*> supported;  ///< JSON values.
};

/// Typed access to config.json. Every error is InvalidArgument, one line: file, field, expected, found.
class ConfigFields {
 public:
  ConfigFields(std::string file, nlohmann::json fields) : file_(std::move(file)), fields_(std::move(fields)) {}

  /// An integer in [1, max]. A null counts as absent, here and below; absent without a default is an error.
  absl::StatusOr<int64_t> Size(const char* name, int64_t max, std::optional<int64_t> when_absent = std::nullopt) const;
  /// A finite number above 0.
  absl::StatusOr<double> Positive(const char* name, std::optional<double> when_absent = std::nullopt) const;
  absl::StatusOr<bool> Flag(const char* name, bool when_absent) const;
  /// An integer in [0, max].
  absl::StatusOr<int64_t> Count(const char* name, int64_t max, int64_t when_absent) const;
  absl::StatusOr<std::string> Text(const char* name, const std::string& when_absent) const;
  /// One id or a list of ids, each in [0, 2^31). Empty when absent.
  absl::StatusOr<std::vector<TokenId>> Ids(const char* name) const;
  absl::Status Check(const std::vector<SupportedField>& fields) const;

  bool Has(const char* name) const { return Find(name) != nullptr; }
  const nlohmann::json* Find(const char* name) const;  ///< nullptr when absent or null.
  std::string Shown(const char* name) const;           ///< The value, for messages; "none" when absent or null.
  const std::string& file() const { return file_; }
  absl::Status Error(const std::string& name, const std::string& expected, const std::string& found) const;

 private:
  std::string file_;
  nlohmann::json fields_;
};

}  // namespace quicksilver

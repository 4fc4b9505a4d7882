#include "worker/model/families/config_fields.h"

#include <algorithm>
#include <cmath>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "common/status_macros.h"
#include "worker/checkpoint/safetensors.h"

namespace quicksilver {
namespace {

std::string TextOf(const nlohmann::json* value) {
  if (value == nullptr) return "none";
  return PrintableName(value->dump(-1, ' ', false, nlohmann::json::error_handler_t::replace));
}

}  // namespace

const nlohmann::json* ConfigFields::Find(const char* name) const {
  const auto found = fields_.find(name);
  return found == fields_.end() || found->is_null() ? nullptr : &*found;
}

std::string ConfigFields::Shown(const char* name) const { return TextOf(Find(name)); }

absl::Status ConfigFields::Error(const std::string& name, const std::string& expected, const std::string& found) const {
  return absl::InvalidArgumentError(
      absl::StrCat(file_, ": field '", name, "': expected ", expected, ", found ", found));
}

absl::StatusOr<int64_t> ConfigFields::Size(const char* name, int64_t max, std::optional<int64_t> when_absent) const {
  const nlohmann::json* value = Find(name);
  if (value == nullptr && when_absent) return *when_absent;
  if (value != nullptr && value->is_number_unsigned()) {
    const uint64_t size = value->get<uint64_t>();
    if (size >= 1 && size <= static_cast<uint64_t>(max)) return static_cast<int64_t>(size);
  }
  return Error(name, absl::StrCat("an integer from 1 to ", max), Shown(name));
}

absl::StatusOr<int64_t> ConfigFields::Count(const char* name, int64_t max, int64_t when_absent) const {
  const nlohmann::json* value = Find(name);
  if (value != nullptr && value->is_number_unsigned() && value->get<uint64_t>() == 0) return 0;
  if (value == nullptr) return when_absent;
  const absl::StatusOr<int64_t> size = Size(name, max);
  if (size.ok()) return size;
  return Error(name, absl::StrCat("an integer from 0 to ", max), Shown(name));
}

absl::StatusOr<double> ConfigFields::Positive(const char* name, std::optional<double> when_absent) const {
  const nlohmann::json* value = Find(name);
  if (value == nullptr && when_absent) return *when_absent;
  if (value != nullptr && value->is_number()) {
    const double number = value->get<double>();
    if (std::isfinite(number) && number > 0.0) return number;
  }
  return Error(name, "a number above 0", Shown(name));
}

absl::StatusOr<bool> ConfigFields::Flag(const char* name, bool when_absent) const {
  const nlohmann::json* value = Find(name);
  if (value == nullptr) return when_absent;
  if (value->is_boolean()) return value->get<bool>();
  return Error(name, "true or false", Shown(name));
}

absl::StatusOr<std::string> ConfigFields::Text(const char* name, const std::string& when_absent) const {
  const nlohmann::json* value = Find(name);
  if (value == nullptr) return when_absent;
  if (value->is_string()) return value->get<std::string>();
  return Error(name, "a string", Shown(name));
}

absl::StatusOr<std::vector<TokenId>> ConfigFields::Ids(const char* name) const {
  const nlohmann::json* value = Find(name);
  if (value == nullptr) return std::vector<TokenId>();
  const nlohmann::json list = value->is_array() ? *value : nlohmann::json::array({*value});
  std::vector<TokenId> ids;
  for (const nlohmann::json& item : list) {
    if (!item.is_number_unsigned() || item.get<uint64_t>() > INT32_MAX) {
      return Error(name, "a token id or a list of them", Shown(name));
    }
    ids.push_back(item.get<TokenId>());
  }
  return ids;
}

absl::Status ConfigFields::Check(const std::vector<SupportedField>& fields) const {
  for (const SupportedField& field : fields) {
    const auto stated = fields_.find(field.name);
    const bool absent = stated == fields_.end() || stated->is_null();
    const nlohmann::json value = absent ? nlohmann::json::parse(field.when_absent) : *stated;
    const bool supported = std::any_of(field.supported.begin(), field.supported.end(),
                                       [&](const char* text) { return value == nlohmann::json::parse(text); });
    if (supported) continue;
    return Error(field.name, absl::StrCat(absl::StrJoin(field.supported, " or "), " (all that is supported)"),
                 absent ? absl::StrCat("none, which means ", field.when_absent) : TextOf(&value));
  }
  return absl::OkStatus();
}

}  // namespace quicksilver

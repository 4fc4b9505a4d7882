#include "coordinator/tenants_file.h"

#include <yaml-cpp/yaml.h>

#include <cmath>
#include <limits>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "common/status_macros.h"
#include "coordinator/core/generate.h"

namespace quicksilver {
namespace {

constexpr size_t kTenantsMax = 100000;
// Where tenants are told apart, going before the others is for those to whom it is granted.
constexpr Priority kPriorityMax = Priority::kDefault;

class Reader {
 public:
  explicit Reader(std::string path) : path_(std::move(path)) {}

  absl::StatusOr<TenantsOptions> Read(const YAML::Node& root) const {
    TenantsOptions options;
    options.unknown.priority_max = kPriorityMax;
    if (root.IsNull()) return options;
    if (!root.IsMap()) return Wrong(root, "expected a map with `tenants` and `unknown`");
    for (const auto& entry : root) {
      const std::string key = Text(entry.first);
      if (key == "tenants") {
        RETURN_IF_ERROR(ReadTenants(entry.second, options));
      } else if (key == "unknown") {
        RETURN_IF_ERROR(ReadLimits("unknown", entry.second, options.unknown));
      } else {
        return Wrong(entry.first, absl::StrCat("unknown field '", key, "'; there are `tenants` and `unknown`"));
      }
    }
    return options;
  }

 private:
  static std::string Text(const YAML::Node& node) { return node.IsScalar() ? node.Scalar() : ""; }

  absl::Status Wrong(const YAML::Node& node, const std::string& why) const {
    return absl::InvalidArgumentError(absl::StrCat(path_, ":", node.Mark().line + 1, ": ", why));
  }

  absl::Status ReadTenants(const YAML::Node& node, TenantsOptions& options) const {
    if (node.IsNull()) return absl::OkStatus();
    if (!node.IsMap()) return Wrong(node, "tenants: expected a map from names to limits");
    for (const auto& entry : node) {
      const std::string name = Text(entry.first);
      if (name.empty() || name.size() > kTenantBytesMax) {
        return Wrong(entry.first,
                     absl::StrCat("tenants: a name of ", name.size(), " bytes; it needs 1 to ", kTenantBytesMax));
      }
      if (options.tenants.contains(name)) return Wrong(entry.first, absl::StrCat("tenants.", name, " is given twice"));
      if (options.tenants.size() >= kTenantsMax) {
        return Wrong(entry.first, absl::StrCat("tenants: more than ", kTenantsMax));
      }
      TenantLimits& limits = options.tenants[name];
      limits.priority_max = kPriorityMax;
      RETURN_IF_ERROR(ReadLimits("tenants." + name, entry.second, limits));
    }
    return absl::OkStatus();
  }

  absl::Status ReadLimits(const std::string& where, const YAML::Node& node, TenantLimits& limits) const {
    if (node.IsNull()) return absl::OkStatus();
    if (!node.IsMap()) return Wrong(node, absl::StrCat(where, ": expected a map of limits"));
    for (const auto& entry : node) {
      const std::string key = Text(entry.first);
      const std::string field = absl::StrCat(where, ".", key);
      const YAML::Node& value = entry.second;
      if (key == "weight") {
        RETURN_IF_ERROR(ReadNumber(field, value, 1e6, limits.weight));
      } else if (key == "concurrent_requests_max") {
        RETURN_IF_ERROR(ReadCount(field, value, limits.concurrent_requests_max));
      } else if (key == "queue_share_max") {
        RETURN_IF_ERROR(ReadNumber(field, value, 1.0, limits.queue_share_max.emplace()));
      } else if (key == "requests_per_minute") {
        RETURN_IF_ERROR(ReadCount(field, value, limits.requests_per_minute));
      } else if (key == "input_tokens_per_minute") {
        RETURN_IF_ERROR(ReadCount(field, value, limits.input_tokens_per_minute));
      } else if (key == "output_tokens_per_minute") {
        RETURN_IF_ERROR(ReadCount(field, value, limits.output_tokens_per_minute));
      } else if (key == "tokens_per_day") {
        RETURN_IF_ERROR(ReadCount(field, value, limits.tokens_per_day));
      } else if (key == "priority_max") {
        RETURN_IF_ERROR(ReadPriority(field, value, limits.priority_max));
      } else {
        return Wrong(
            entry.first,
            absl::StrCat(where, ": unknown limit '", key,
                         "'; there are weight, concurrent_requests_max, queue_share_max, requests_per_minute, "
                         "input_tokens_per_minute, output_tokens_per_minute, tokens_per_day and priority_max"));
      }
    }
    return absl::OkStatus();
  }

  absl::Status ReadPriority(const std::string& field, const YAML::Node& node, Priority& out) const {
    const std::string text = Text(node);
    if (text == "interactive") {
      out = Priority::kInteractive;
    } else if (text == "default") {
      out = Priority::kDefault;
    } else if (text == "batch") {
      out = Priority::kBatch;
    } else {
      return Wrong(node, absl::StrCat(field, ": '", text, "' is none of interactive, default and batch"));
    }
    return absl::OkStatus();
  }

  // In (0, max].
  absl::Status ReadNumber(const std::string& field, const YAML::Node& node, double max, double& out) const {
    const std::string text = Text(node);
    if (!absl::SimpleAtod(text, &out) || !std::isfinite(out) || out <= 0 || out > max) {
      return Wrong(node, absl::StrCat(field, ": '", text, "' is not a number above 0 and up to ", max));
    }
    return absl::OkStatus();
  }

  template <typename T>
  absl::Status ReadCount(const std::string& field, const YAML::Node& node, std::optional<T>& out) const {
    // Sums and minutes of it stay far inside 64 bits.
    constexpr uint64_t max = std::min<uint64_t>(std::numeric_limits<T>::max(), uint64_t{1} << 48);
    const std::string text = Text(node);
    uint64_t value = 0;
    if (!absl::SimpleAtoi(text, &value) || value < 1 || value > max) {
      return Wrong(node, absl::StrCat(field, ": '", text, "' is not a whole number from 1 to ", max));
    }
    out = static_cast<T>(value);
    return absl::OkStatus();
  }

  const std::string path_;
};

}  // namespace

absl::StatusOr<TenantsOptions> ReadTenantsFile(const std::string& path) {
  YAML::Node root;
  try {
    root = YAML::LoadFile(path);
  } catch (const YAML::BadFile&) {
    return absl::InvalidArgumentError(absl::StrCat(path, ": cannot be read; check --tenants"));
  } catch (const YAML::Exception& e) {
    return absl::InvalidArgumentError(absl::StrCat(path, ":", e.mark.line + 1, ": ", e.msg));
  }
  return Reader(path).Read(root);
}

}  // namespace quicksilver

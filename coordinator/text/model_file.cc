#include "coordinator/text/model_file.h"

#include <cerrno>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <optional>

#include "absl/strings/str_cat.h"
#include "common/json.h"
#include "nlohmann/json.hpp"

namespace quicksilver {
namespace {

constexpr size_t kDepthMax = 32;
constexpr size_t kItemsMax = 4 << 20;  // Entries of a vocabulary or merges of a tokenizer.

}  // namespace

absl::StatusOr<nlohmann::json> ParseModelJson(std::string_view text) {
  nlohmann::json value;
  const JsonTextLimits limits{
      .bytes_max = text.size(), .depth_max = kDepthMax, .items_max = kItemsMax, .keys_once = true};
  if (const std::optional<JsonError> error = ParseJson(text, limits, value)) {
    return absl::InvalidArgumentError(error->message);
  }
  return value;
}

absl::StatusOr<std::string> ReadModelFile(const std::string& path, size_t bytes_max) {
  std::error_code error;
  if (!std::filesystem::exists(path, error)) return absl::NotFoundError(absl::StrCat(path, ": no such file"));
  if (!std::filesystem::is_regular_file(path, error)) {
    return absl::InvalidArgumentError(absl::StrCat(path, ": not a regular file"));
  }
  std::ifstream file(path, std::ios::binary);
  if (!file) return absl::InvalidArgumentError(absl::StrCat(path, ": cannot be opened: ", std::strerror(errno)));
  std::string text;
  char buffer[64 << 10];
  while (file.read(buffer, sizeof(buffer)) || file.gcount() > 0) {
    text.append(buffer, static_cast<size_t>(file.gcount()));
    if (text.size() > bytes_max) {
      return absl::InvalidArgumentError(absl::StrCat(path, ": longer than ", bytes_max, " bytes"));
    }
  }
  if (file.bad()) return absl::InvalidArgumentError(absl::StrCat(path, ": cannot be read: ", std::strerror(errno)));
  return text;
}

}  // namespace quicksilver

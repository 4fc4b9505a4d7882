#include "worker/checkpoint/json_file.h"

#include <set>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "worker/checkpoint/safetensors.h"

namespace quicksilver {
namespace {

/// Sees what the parsed document no longer shows: nesting and repeated keys.
class Guard : public nlohmann::json_sax<nlohmann::json> {
 public:
  std::string error;

  bool null() override { return true; }
  bool boolean(bool) override { return true; }
  bool number_integer(number_integer_t) override { return true; }
  bool number_unsigned(number_unsigned_t) override { return true; }
  bool number_float(number_float_t, const string_t&) override { return true; }
  bool string(string_t&) override { return true; }
  bool binary(binary_t&) override { return true; }
  bool start_object(std::size_t) override { return Enter(); }
  bool end_object() override { return Leave(); }
  bool start_array(std::size_t) override { return Enter(); }
  bool end_array() override { return Leave(); }
  bool key(string_t& name) override {
    if (keys_.back().insert(name).second) return true;
    error = absl::StrCat("expected each key once, found '", PrintableName(name), "' twice");
    return false;
  }
  bool parse_error(std::size_t position, const std::string&, const nlohmann::detail::exception&) override {
    error = absl::StrCat("expected JSON, found something else at byte ", position);
    return false;
  }

 private:
  bool Enter() {
    keys_.emplace_back();
    if (keys_.size() <= kJsonDepthMax) return true;
    error = absl::StrCat("expected JSON nested at most ", kJsonDepthMax, " deep, found more");
    return false;
  }
  bool Leave() {
    keys_.pop_back();
    return true;
  }

  std::vector<std::set<std::string>> keys_;
};

}  // namespace

absl::StatusOr<nlohmann::json> ParseJsonObject(const std::string& file, const std::string& text) {
  Guard guard;
  if (!nlohmann::json::sax_parse(text, &guard)) {
    return absl::InvalidArgumentError(absl::StrCat(file, ": ", guard.error));
  }
  nlohmann::json parsed = nlohmann::json::parse(text, nullptr, /*allow_exceptions=*/false);
  if (parsed.is_object()) return parsed;
  return absl::InvalidArgumentError(absl::StrCat(file, ": expected an object, found ", parsed.type_name()));
}

}  // namespace quicksilver

// What the parser accepts is within its limits and survives being written and read again.
#include <cstddef>
#include <cstdint>
#include <nlohmann/json.hpp>
#include <optional>
#include <string_view>

#include "common/check.h"
#include "common/json.h"
#include "common/utf8.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace quicksilver;
  const std::string_view text(reinterpret_cast<const char*>(data), size);
  const JsonTextLimits limits{.bytes_max = 1 << 16, .depth_max = 8, .digits_max = 32, .items_max = 64};
  nlohmann::json value;
  if (const std::optional<JsonError> error = ParseJson(text, limits, value)) {
    CHECK(error->code == "invalid_json" || error->code == "invalid_utf8" || error->code == "invalid_value");
    CHECK(error->byte <= size);
    CHECK(FindInvalidUtf8(error->message) == std::string_view::npos);
    CHECK(value.is_null());
    return 0;
  }
  CHECK(FindInvalidUtf8(text) == std::string_view::npos);
  nlohmann::json again;
  CHECK(!ParseJson(value.dump(), {}, again));
  CHECK(again == value);
  return 0;
}

// A request is judged the same whether its bytes arrive at once or one by one, and never beyond the limits.
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

#include "common/check.h"
#include "common/http/request_reader.h"

namespace {

using quicksilver::http::MessageLimits;
using quicksilver::http::RequestReader;
using State = RequestReader::State;

const MessageLimits kLimits{.head_bytes_max = 512, .headers_max = 8, .body_bytes_max = 256};

struct Outcome {
  int status = 0;
  std::string path, body;
  size_t taken = 0;
};

Outcome Feed(std::string_view bytes, size_t piece) {
  RequestReader reader(kLimits);
  std::string input;
  const size_t size = bytes.size();
  while (true) {
    State state = reader.Read(input);
    if (state == State::kHead) state = reader.Read(input);
    if (state == State::kRefused) {
      CHECK(reader.refusal().status >= 400 && !reader.refusal().code.empty());
      return {reader.refusal().status, "", "", 0};
    }
    if (state == State::kComplete) {
      CHECK(reader.request().body.size() <= kLimits.body_bytes_max);
      CHECK(reader.request().headers.size() <= kLimits.headers_max);
      return {200, reader.request().path, reader.request().body, size - bytes.size() - input.size()};
    }
    if (bytes.empty()) return {};
    input += bytes.substr(0, piece);
    bytes.remove_prefix(std::min(piece, bytes.size()));
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string_view bytes(reinterpret_cast<const char*>(data), std::min<size_t>(size, 4096));
  const Outcome whole = Feed(bytes, std::max<size_t>(1, bytes.size()));
  const Outcome single = Feed(bytes, 1);
  // Which of several faults is met first may depend on the pieces; whether it is a request may not.
  CHECK((whole.status == 200) == (single.status == 200));
  CHECK(whole.path == single.path && whole.body == single.body && whole.taken == single.taken);
  return 0;
}

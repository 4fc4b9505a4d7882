#include "tools/bench_serve/response_reader.h"

#include <boost/beast/http/basic_parser.hpp>
#include <cstdint>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"

namespace quicksilver {
namespace {

namespace beast = boost::beast::http;
using boost::system::error_code;
using View = boost::beast::string_view;

}  // namespace

class ResponseReader::Parser final : public beast::basic_parser<false> {
 public:
  Parser() {
    eager(true);
    header_limit(static_cast<uint32_t>(kHeadBytesMax));
    body_limit(boost::none);
  }

  int status = 0;
  bool event_stream = false;
  std::string* body = nullptr;

 private:
  void on_request_impl(beast::verb, View, View, int, error_code&) override {}
  void on_response_impl(int code, View, int, error_code&) override { status = code; }
  void on_field_impl(beast::field name, View, View value, error_code&) override {
    if (name != beast::field::content_type) return;
    event_stream = absl::StartsWithIgnoreCase(absl::string_view(value.data(), value.size()), "text/event-stream");
  }
  void on_header_impl(error_code&) override {}
  void on_body_init_impl(const boost::optional<uint64_t>&, error_code&) override {}
  size_t on_body_impl(View piece, error_code&) override { return Take(piece); }
  void on_chunk_header_impl(uint64_t, View, error_code&) override {}
  size_t on_chunk_body_impl(uint64_t, View piece, error_code&) override { return Take(piece); }
  void on_finish_impl(error_code&) override {}

  size_t Take(View piece) {
    body->append(piece.data(), piece.size());
    return piece.size();
  }
};

ResponseReader::ResponseReader() : parser_(std::make_unique<Parser>()) {}
ResponseReader::~ResponseReader() = default;

absl::Status ResponseReader::Read(std::string& input, std::string& body) {
  parser_->body = &body;
  size_t taken = 0;
  while (taken < input.size() && !parser_->is_done()) {
    error_code error;
    const size_t n = parser_->put(boost::asio::buffer(input.data() + taken, input.size() - taken), error);
    taken += n;
    if (error == beast::error::need_more) break;
    if (error) return absl::DataLossError(absl::StrCat("malformed HTTP response: ", error.message()));
    if (n == 0) break;
  }
  input.erase(0, taken);
  return absl::OkStatus();
}

absl::Status ResponseReader::ReadEnd() {
  if (parser_->is_done()) return absl::OkStatus();
  error_code error;
  if (parser_->got_some()) parser_->put_eof(error);
  if (parser_->got_some() && !error) return absl::OkStatus();
  return absl::DataLossError(parser_->got_some() ? "the server closed the connection in the middle of its answer"
                                                 : "the server closed the connection without an answer");
}

bool ResponseReader::head_done() const { return parser_->is_header_done(); }
bool ResponseReader::complete() const { return parser_->is_done(); }
bool ResponseReader::keep_alive() const { return parser_->is_done() && parser_->keep_alive(); }
int ResponseReader::status() const { return parser_->status; }
bool ResponseReader::event_stream() const { return parser_->event_stream; }
void ResponseReader::Reset() { parser_ = std::make_unique<Parser>(); }

}  // namespace quicksilver

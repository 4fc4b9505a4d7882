#include "common/http/request_reader.h"

#include <algorithm>
#include <boost/beast/http/parser.hpp>
#include <boost/beast/http/string_body.hpp>
#include <optional>
#include <string_view>
#include <utility>

namespace quicksilver::http {
namespace {

namespace beast = boost::beast::http;

// What chunk framing may cost beside the body it carries: a body in one-byte chunks is an attack on the parser.
constexpr size_t kFramingBytesMax = 64 * 1024;
constexpr size_t kLastChunkBytes = 5;  // "0", CRLF, CRLF
// A chunk header with its extensions, or the trailers.
constexpr size_t kChunkHeadBytesMax = 16 * 1024;

std::string Lower(std::string_view text) {
  std::string lower(text);
  for (char& c : lower) {
    if (c >= 'A' && c <= 'Z') c = static_cast<char>(c - 'A' + 'a');
  }
  return lower;
}

int HexDigit(char c) {
  if (c >= '0' && c <= '9') return c - '0';
  if (c >= 'a' && c <= 'f') return c - 'a' + 10;
  if (c >= 'A' && c <= 'F') return c - 'A' + 10;
  return -1;
}

std::optional<std::string> PercentDecode(std::string_view text) {
  std::string out;
  out.reserve(text.size());
  for (size_t i = 0; i < text.size(); ++i) {
    if (text[i] != '%') {
      out += text[i];
      continue;
    }
    if (i + 2 >= text.size()) return std::nullopt;
    const int high = HexDigit(text[i + 1]), low = HexDigit(text[i + 2]);
    if (high < 0 || low < 0 || (high == 0 && low == 0)) return std::nullopt;
    out += static_cast<char>(high * 16 + low);
    i += 2;
  }
  return out;
}

Refusal Bad(std::string message) { return {400, "invalid_request", std::move(message)}; }

// Splits `request.target` into path and query; an absolute form must name the host of the Host header.
std::optional<Refusal> ReadTarget(Request& request) {
  std::string_view target = request.target;
  if (target == "*" && request.method == "OPTIONS") {
    request.path = "*";
    return std::nullopt;
  }
  for (std::string_view scheme : {"http://", "https://"}) {
    if (Lower(target.substr(0, scheme.size())) != scheme) continue;
    target.remove_prefix(scheme.size());
    const size_t end = std::min(target.find_first_of("/?"), target.size());
    const std::string* host = request.Find("host");
    if (host == nullptr || Lower(target.substr(0, end)) != Lower(*host)) {
      return Bad("The authority of the request target is not the Host header.");
    }
    target.remove_prefix(end);
    request.target = target.empty() || target[0] == '?' ? "/" + std::string(target) : std::string(target);
    target = request.target;
    break;
  }
  if (target.empty() || target[0] != '/') return Bad("The request target is not a path.");
  const size_t question = std::min(target.find('?'), target.size());
  if (question < target.size()) request.query = target.substr(question + 1);
  std::optional<std::string> path = PercentDecode(target.substr(0, question));
  if (!path) return Bad("The path has an invalid percent escape.");
  while (path->size() > 1 && path->back() == '/') path->pop_back();
  request.path = std::move(*path);
  return std::nullopt;
}

// Where two servers could disagree about the end of the message, there is no request (serving.md §8.1).
std::optional<Refusal> CheckFraming(const Request& request) {
  size_t hosts = 0, lengths = 0, encodings = 0;
  for (const Header& header : request.headers) {
    hosts += header.name == "host";
    if (header.name == "content-length") {
      ++lengths;
      if (header.value.find(',') != std::string::npos) return Bad("Content-Length is a list.");
    }
    if (header.name == "transfer-encoding") {
      ++encodings;
      if (Lower(header.value) != "chunked") return Bad("Transfer-Encoding is not exactly \"chunked\".");
    }
  }
  if (hosts > 1) return Bad("There are several Host headers.");
  if (hosts == 0 && request.version_minor == 1) return Bad("The Host header is missing.");
  if (lengths > 1) return Bad("There are several Content-Length headers.");
  if (encodings > 1) return Bad("There are several Transfer-Encoding headers.");
  if (encodings == 1 && request.version_minor == 0) return Bad("HTTP/1.0 has no Transfer-Encoding.");
  return std::nullopt;
}

}  // namespace

struct RequestReader::Impl {
  using Parser = beast::request_parser<beast::string_body>;

  explicit Impl(MessageLimits message_limits) : limits(message_limits) { Reset(); }

  void Reset() {
    parser.emplace();
    parser->header_limit(static_cast<uint32_t>(limits.head_bytes_max + 2));
    parser->body_limit(boost::none);
    request = {};
    refusal = {};
    scanned = framing_bytes = body_bytes = 0;
    head_done = refused = line_skipped = false;
  }

  State Refuse(Refusal reason) {
    refusal = std::move(reason);
    refused = true;
    return State::kRefused;
  }

  State ReadHead(std::string& input);
  State TakeHead(std::string_view head);
  State ReadBody(std::string& input);

  const MessageLimits limits;
  std::optional<Parser> parser;
  Request request;
  Refusal refusal;
  size_t scanned = 0;  // Of the head, by ReadHead.
  size_t framing_bytes = 0, body_bytes = 0;
  bool head_done = false, refused = false, line_skipped = false;
};

// Finds the end of the head before the parser sees it, so that its form can be judged as it was sent.
RequestReader::State RequestReader::Impl::ReadHead(std::string& input) {
  if (scanned == 0 && !line_skipped) {  // One empty line before a request is no fault: RFC 9112 §2.2.
    if (input == "\r") return State::kNeedsMore;
    line_skipped = input.compare(0, 2, "\r\n") == 0;
    if (line_skipped) input.erase(0, 2);
  }
  for (; scanned < input.size(); ++scanned) {
    if (scanned >= limits.head_bytes_max) {
      return Refuse({431, "headers_too_large",
                     "The request line and headers exceed " + std::to_string(limits.head_bytes_max) + " bytes."});
    }
    const char c = input[scanned];
    if (c == '\0') return Refuse(Bad("There is a NUL byte in the headers."));
    if (scanned > 0 && (c == '\n') != (input[scanned - 1] == '\r')) return Refuse(Bad("A line does not end in CRLF."));
    if (scanned > 1 && input[scanned - 1] == '\n' && (c == ' ' || c == '\t')) {
      return Refuse(Bad("A header is folded over lines."));
    }
    if (c == '\n' && scanned >= 3 && input[scanned - 2] == '\n') {
      const size_t head_bytes = scanned + 1;
      const State state = TakeHead(std::string_view(input).substr(0, head_bytes));
      input.erase(0, head_bytes);
      return state;
    }
  }
  return State::kNeedsMore;
}

RequestReader::State RequestReader::Impl::TakeHead(std::string_view head) {
  boost::system::error_code error;
  const size_t taken = parser->put(boost::asio::buffer(head.data(), head.size()), error);
  if (error == beast::error::bad_version) {
    return Refuse({505, "http_version_not_supported", "Only HTTP/1.0 and HTTP/1.1 are served."});
  }
  if (error) return Refuse(Bad("The request is malformed: " + error.message() + "."));
  if (taken != head.size() || !parser->is_header_done()) return Refuse(Bad("The request is malformed."));
  const auto& message = parser->get();
  request.method = std::string(message.method_string());
  request.target = std::string(message.target());
  request.version_minor = message.version() == 10 ? 0 : 1;
  for (const auto& field : message) {
    if (request.headers.size() >= limits.headers_max) {
      return Refuse(
          {431, "headers_too_large", "There are more than " + std::to_string(limits.headers_max) + " headers."});
    }
    request.headers.push_back({Lower({field.name_string().data(), field.name_string().size()}),
                               std::string(field.value().data(), field.value().size())});
  }
  if (std::optional<Refusal> reason = CheckFraming(request)) return Refuse(std::move(*reason));
  if (std::optional<Refusal> reason = ReadTarget(request)) return Refuse(std::move(*reason));
  if (parser->content_length().value_or(0) > limits.body_bytes_max) {
    return Refuse({413, "request_too_large",
                   "The body of " + std::to_string(*parser->content_length()) + " bytes exceeds " +
                       std::to_string(limits.body_bytes_max) + "."});
  }
  const std::string* expect = request.Find("expect");
  if (expect != nullptr && Lower(*expect) != "100-continue") {
    return Refuse({417, "expectation_failed", "Only the expectation 100-continue can be met."});
  }
  head_done = true;
  return State::kHead;
}

RequestReader::State RequestReader::Impl::ReadBody(std::string& input) {
  parser->eager(true);
  size_t taken = 0;
  boost::system::error_code error;
  while (!parser->is_done()) {
    // Beast asserts that it sees the whole of a last chunk that is also the first; every chunked rest has that much.
    if (parser->chunked() && input.size() - taken < kLastChunkBytes) break;
    const size_t n = parser->put(boost::asio::buffer(input.data() + taken, input.size() - taken), error);
    taken += n;
    if (error == beast::error::need_more) break;
    if (error) return Refuse(Bad("The body is malformed: " + error.message() + "."));
    if (n == 0) break;
  }
  const size_t body_before = std::exchange(body_bytes, parser->get().body().size());
  framing_bytes += taken - std::min(taken, body_bytes - body_before);
  input.erase(0, taken);
  if (body_bytes > limits.body_bytes_max) {
    return Refuse({413, "request_too_large", "The body exceeds " + std::to_string(limits.body_bytes_max) + " bytes."});
  }
  if (framing_bytes > kFramingBytesMax + body_bytes / 8) return Refuse(Bad("The chunks are too small."));
  if (parser->is_done()) {
    request.body = std::move(parser->get().body());
    return State::kComplete;
  }
  if (input.size() > kChunkHeadBytesMax) return Refuse(Bad("A chunk header or the trailers are too long."));
  return State::kNeedsMore;
}

RequestReader::RequestReader(MessageLimits limits) : impl_(std::make_unique<Impl>(limits)) {}
RequestReader::~RequestReader() = default;

RequestReader::State RequestReader::Read(std::string& input) {
  if (impl_->refused) return State::kRefused;
  if (!impl_->head_done) return impl_->ReadHead(input);
  return impl_->ReadBody(input);
}

Request& RequestReader::request() { return impl_->request; }
bool RequestReader::keep_alive() const { return impl_->request.version_minor == 1 && impl_->parser->keep_alive(); }
bool RequestReader::expects_body() const { return impl_->head_done && !impl_->parser->is_done(); }
bool RequestReader::expects_continue() const {
  return expects_body() && impl_->request.version_minor == 1 && impl_->request.Find("expect") != nullptr;
}
size_t RequestReader::body_bytes() const { return impl_->body_bytes; }
const Refusal& RequestReader::refusal() const { return impl_->refusal; }
bool RequestReader::begun() const { return impl_->head_done || impl_->refused || impl_->scanned > 0; }
void RequestReader::Reset() { impl_->Reset(); }

}  // namespace quicksilver::http

#include "common/http/message.h"

#include <algorithm>
#include <cstdint>

#include "common/utf8.h"

namespace quicksilver::http {
namespace {

constexpr char kHex[] = "0123456789abcdef";
constexpr std::string_view kReplacement = "\xEF\xBF\xBD";

void AppendEscaped(char c, std::string& out) {
  switch (c) {
    case '"':
      out += "\\\"";
      break;
    case '\\':
      out += "\\\\";
      break;
    case '\n':
      out += "\\n";
      break;
    case '\r':
      out += "\\r";
      break;
    case '\t':
      out += "\\t";
      break;
    default:
      out += "\\u00";
      out += kHex[static_cast<uint8_t>(c) >> 4];
      out += kHex[c & 15];
  }
}

}  // namespace

const std::string* Request::Find(std::string_view name) const {
  for (const Header& header : headers) {
    if (header.name == name) return &header.value;
  }
  return nullptr;
}

void AppendJsonString(std::string_view text, std::string& out) {
  const auto is_plain = [](char c) { return c >= 0x20 && c != '"' && c != '\\' && static_cast<uint8_t>(c) < 0x80; };
  out.reserve(out.size() + text.size() + 2);
  out += '"';
  while (!text.empty()) {
    const size_t plain = static_cast<size_t>(std::find_if_not(text.begin(), text.end(), is_plain) - text.begin());
    out.append(text.substr(0, plain));
    text.remove_prefix(plain);
    if (text.empty()) break;
    const size_t length = Utf8CharacterLength(text);
    if (length == 0) {
      out += kReplacement;
    } else if (length == 1) {
      AppendEscaped(text[0], out);
    } else {
      out.append(text.substr(0, length));
    }
    text.remove_prefix(std::max<size_t>(1, length));
  }
  out += '"';
}

Response ErrorResponse(int status, std::string_view type, std::string_view code, std::string_view message,
                       std::string_view param) {
  Response response;
  response.status = status;
  response.body = "{\"error\":{\"message\":";
  AppendJsonString(message, response.body);
  response.body += ",\"type\":";
  AppendJsonString(type, response.body);
  response.body += ",\"param\":";
  if (param.empty()) {
    response.body += "null";
  } else {
    AppendJsonString(param, response.body);
  }
  response.body += ",\"code\":";
  AppendJsonString(code, response.body);
  response.body += "}}";
  return response;
}

std::string_view ReasonPhrase(int status) {
  switch (status) {
    case 200:
      return "OK";
    case 204:
      return "No Content";
    case 400:
      return "Bad Request";
    case 401:
      return "Unauthorized";
    case 403:
      return "Forbidden";
    case 404:
      return "Not Found";
    case 405:
      return "Method Not Allowed";
    case 408:
      return "Request Timeout";
    case 413:
      return "Content Too Large";
    case 415:
      return "Unsupported Media Type";
    case 417:
      return "Expectation Failed";
    case 429:
      return "Too Many Requests";
    case 431:
      return "Request Header Fields Too Large";
    case 500:
      return "Internal Server Error";
    case 501:
      return "Not Implemented";
    case 503:
      return "Service Unavailable";
    case 504:
      return "Gateway Timeout";
    case 505:
      return "HTTP Version Not Supported";
    default:
      return "Status";
  }
}

}  // namespace quicksilver::http

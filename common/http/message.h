#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace quicksilver::http {

struct Header {
  std::string name;
  std::string value;
};

/// A request that passed every check of the parser (serving.md §7.4, §8.1).
struct Request {
  std::string method;
  std::string target;  ///< As sent, origin form.
  std::string path;    ///< Percent-decoded, no query, no trailing slash.
  std::string rest;    ///< What the `*` of the route's pattern matched.
  std::string query;   ///< Behind the '?', as sent.
  int version_minor = 1;
  std::vector<Header> headers;  ///< Names in lower case. Trailers are dropped.
  std::string body;
  std::string peer;  ///< The client's address without its port.
  std::string id;    ///< What x-request-id of the reply says: the client's, if valid, else random.

  /// The first header of that (lower-case) name, or null.
  const std::string* Find(std::string_view name) const;
};

struct Response {
  int status = 200;
  std::string content_type = "application/json";  ///< Empty: no such header.
  std::string body;
  std::vector<Header> headers;  ///< In addition to content-type, content-length, date, connection, x-request-id.
};

/// The error object of serving.md §1.8. `param`: empty is null.
Response ErrorResponse(int status, std::string_view type, std::string_view code, std::string_view message,
                       std::string_view param = {});

/// Appends `text` as a JSON string with its quotes. Bytes that are not UTF-8 become U+FFFD.
void AppendJsonString(std::string_view text, std::string& out);

std::string_view ReasonPhrase(int status);

}  // namespace quicksilver::http

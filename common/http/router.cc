#include "common/http/router.h"

#include <utility>

#include "common/check.h"

namespace quicksilver::http {
namespace {

// How well `pattern` fits `path`: 0 not at all; an exact pattern beats every prefix.
size_t Fit(std::string_view pattern, std::string_view path) {
  if (!pattern.empty() && pattern.back() == '*') {
    const std::string_view prefix = pattern.substr(0, pattern.size() - 1);
    return path.size() > prefix.size() && path.substr(0, prefix.size()) == prefix ? prefix.size() : 0;
  }
  return pattern == path ? std::string_view::npos : 0;
}

}  // namespace

void Router::Add(RouteEntry entry) {
  CHECK(!entry.pattern.empty() && entry.pattern[0] == '/');
  CHECK((entry.handler != nullptr) != (entry.async_handler != nullptr));
  entries_.push_back(std::move(entry));
}

Router::Match Router::Find(std::string_view method, std::string_view path) const {
  size_t best = 0;
  for (const RouteEntry& entry : entries_) best = std::max(best, Fit(entry.pattern, path));
  Match match;
  if (best == 0) return match;
  for (const RouteEntry& entry : entries_) {
    if (Fit(entry.pattern, path) != best) continue;
    if (!match.allow.empty()) match.allow += ", ";
    match.allow += entry.method;
    if (entry.method == "GET") match.allow += ", HEAD";
    if (entry.method == method || (method == "HEAD" && entry.method == "GET")) {
      match.entry = &entry;
      if (entry.pattern.back() == '*') match.rest = path.substr(entry.pattern.size() - 1);
    }
  }
  return match;
}

}  // namespace quicksilver::http

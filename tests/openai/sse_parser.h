#pragma once

#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace quicksilver {

/// What the HTML standard's "server-sent events" parser delivers: the data of each event, comments left out. Strict:
/// nullopt when the text ends inside an event, or holds a field that this API never sends.
inline std::optional<std::vector<std::string>> ParseEvents(std::string_view text) {
  std::vector<std::string> events;
  std::string data;
  bool has_data = false;
  while (!text.empty()) {
    // A lone CR ends a line, too: an unescaped one in the text would cut the event.
    const size_t end = text.find_first_of("\r\n");
    if (end == std::string_view::npos) return std::nullopt;
    const std::string_view line = text.substr(0, end);
    text.remove_prefix(end + (text.substr(end, 2) == "\r\n" ? 2 : 1));
    if (line.empty()) {
      if (has_data) events.push_back(data);
      data.clear();
      has_data = false;
    } else if (line.substr(0, 6) == "data: ") {
      if (has_data) data += '\n';
      data += line.substr(6);
      has_data = true;
    } else if (line[0] != ':') {
      return std::nullopt;
    }
  }
  if (has_data) return std::nullopt;
  return events;
}

}  // namespace quicksilver

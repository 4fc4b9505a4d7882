#include "tools/bench_serve/sse_reader.h"

#include <algorithm>
#include <utility>

namespace quicksilver {

bool SseReader::Feed(std::string_view piece, std::vector<std::string>& events) {
  while (!piece.empty() && !too_long_) {
    if (after_cr_ && piece.front() == '\n') piece.remove_prefix(1);
    after_cr_ = false;
    const size_t end = std::min(piece.find_first_of("\r\n"), piece.size());
    if (line_.size() + data_.size() + end > kEventBytesMax) {
      too_long_ = true;
      break;
    }
    line_ += piece.substr(0, end);
    if (end == piece.size()) break;
    after_cr_ = piece[end] == '\r';
    piece.remove_prefix(end + 1);
    TakeLine(events);
  }
  return !too_long_;
}

void SseReader::TakeLine(std::vector<std::string>& events) {
  if (line_.empty()) {
    if (has_data_) events.push_back(std::move(data_));
    data_.clear();
    has_data_ = false;
  } else if (line_.compare(0, 5, "data:") == 0) {
    if (has_data_) data_ += '\n';
    data_.append(line_, line_.size() > 5 && line_[5] == ' ' ? 6 : 5);
    has_data_ = true;
  }
  line_.clear();
}

}  // namespace quicksilver

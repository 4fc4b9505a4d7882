#pragma once

#include <cstddef>
#include <string>
#include <string_view>
#include <vector>

namespace quicksilver {

/// Takes a text/event-stream in pieces of any size and gives the data of each event that is complete. Comments and
/// fields other than `data` are left out; lines end in LF, CRLF or CR. Pure.
class SseReader {
 public:
  /// Of the line and of the event that are being read; a stream that exceeds it is not read on.
  static constexpr size_t kEventBytesMax = 4 * 1024 * 1024;

  /// Appends the data of the events that `piece` completes. False: an event exceeds the bound, now or before.
  bool Feed(std::string_view piece, std::vector<std::string>& events);

 private:
  void TakeLine(std::vector<std::string>& events);

  std::string line_;
  std::string data_;
  bool has_data_ = false;
  bool after_cr_ = false;  // A LF that comes next belongs to the line that has ended.
  bool too_long_ = false;
};

}  // namespace quicksilver

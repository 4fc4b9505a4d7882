#pragma once

#include <cstddef>
#include <memory>
#include <string>
#include <string_view>

#include "absl/status/status.h"

namespace quicksilver {

/// Reads HTTP/1.x responses of a server out of pieces of any size, one after the other on a connection that is kept
/// alive. Pure: no socket.
class ResponseReader {
 public:
  static constexpr size_t kHeadBytesMax = 64 * 1024;

  ResponseReader();
  ~ResponseReader();

  /// Takes bytes off the front of `input` and appends what they hold of the body to `body`. DataLoss: no response.
  absl::Status Read(std::string& input, std::string& body);
  /// The server closed the connection. DataLoss: in the middle of a response.
  absl::Status ReadEnd();

  bool head_done() const;
  bool complete() const;
  bool keep_alive() const;  ///< Once complete: the connection may carry another request.
  int status() const;
  bool event_stream() const;  ///< The body is text/event-stream.

  /// Ready for the next response.
  void Reset();

 private:
  class Parser;
  std::unique_ptr<Parser> parser_;
};

}  // namespace quicksilver

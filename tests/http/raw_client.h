#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/time/time.h"

namespace quicksilver::http {

/// A TCP client that sends exactly the bytes it is told to.
class RawClient {
 public:
  explicit RawClient(uint16_t port, int receive_buffer_bytes = 0);
  ~RawClient();
  RawClient(const RawClient&) = delete;
  RawClient& operator=(const RawClient&) = delete;

  /// False when the peer has closed.
  bool Send(std::string_view bytes);
  void CloseWriting();
  void Close();

  struct Reply {
    int status = 0;  ///< 0: the connection ended first.
    std::string head;
    std::string body;  ///< Chunks joined.
    /// The value of the first header of that (lower-case) name; empty when there is none.
    std::string Header(std::string_view name) const;
  };
  /// One reply. `has_body` is false for the answer to HEAD.
  Reply Read(bool has_body = true);
  /// Reads until `text` has been seen; false when the connection ended or `timeout` passed.
  bool ReadUntil(std::string_view text, absl::Duration timeout = absl::Seconds(5));
  /// Everything up to the end of the connection. `reset`: it ended with RST.
  std::string ReadAll(bool* reset = nullptr, absl::Duration timeout = absl::Seconds(5));
  /// The peer closes within `timeout`, sending nothing more.
  bool ClosedWithin(absl::Duration timeout);
  const std::string& buffer() const { return buffer_; }

 private:
  enum class Got { kData, kEnd, kReset, kTimeout };
  Got Receive(absl::Duration timeout);

  int fd_ = -1;
  std::string buffer_;
};

}  // namespace quicksilver::http

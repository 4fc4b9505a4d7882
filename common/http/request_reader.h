#pragma once

#include <cstddef>
#include <memory>
#include <optional>
#include <string>

#include "common/http/message.h"

namespace quicksilver::http {

struct MessageLimits {
  size_t head_bytes_max = 16 * 1024;  ///< Request line and headers.
  size_t headers_max = 100;
  size_t body_bytes_max = 8 * 1024 * 1024;
};

/// Why a message is refused; the connection closes behind the reply.
struct Refusal {
  int status = 400;
  std::string code;
  std::string message;
};

/// Reads one HTTP/1.x request out of a growing buffer; decides alone what is a request and what is an attack. Pure:
/// no socket, no clock.
class RequestReader {
 public:
  enum class State {
    kNeedsMore,  ///< Everything of use was taken from the buffer.
    kHead,       ///< The head is there; reported once.
    kComplete,
    kRefused,
  };

  explicit RequestReader(MessageLimits limits);
  ~RequestReader();

  /// Takes bytes off the front of `input`. After kComplete the rest of `input` belongs to the next request.
  State Read(std::string& input);

  /// From kHead on. The body is there from kComplete on.
  Request& request();
  bool keep_alive() const;
  /// Some of the body is still to come.
  bool expects_body() const;
  /// The client waits for "100 Continue".
  bool expects_continue() const;
  size_t body_bytes() const;
  /// Of kRefused.
  const Refusal& refusal() const;
  /// Part of a head has been seen.
  bool begun() const;

  /// Ready for the next request.
  void Reset();

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace quicksilver::http

#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <string_view>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "common/http/exchange.h"
#include "common/http/message.h"
#include "common/http/request_reader.h"
#include "common/http/router.h"

namespace quicksilver::http {

struct ServerOptions {
  std::string address = "127.0.0.1";  ///< A numeric address, or "localhost".
  uint16_t port = 0;                  ///< 0: any free one.
  int threads = 1;
  MessageLimits limits;
  size_t connections_max = 10000;
  size_t connections_per_address_max = 256;
  absl::Duration header_timeout = absl::Seconds(10);  ///< From the first byte of a request to the end of its head.
  absl::Duration body_timeout = absl::Seconds(60);
  absl::Duration body_grace = absl::Seconds(10);  ///< Behind it the average must stay above the rate.
  size_t body_bytes_per_second_min = 1024;
  absl::Duration idle_timeout = absl::Seconds(75);
  absl::Duration write_stall_timeout = absl::Seconds(30);
  absl::Duration linger = absl::Seconds(5);  ///< For a refused client that is still sending to read the reply.
  int stream_send_buffer_bytes = 64 * 1024;  ///< The kernel's; a stalled reader pins no more.
  std::string common_headers;                ///< Whole lines ("name: value\r\n") for every reply.
  std::string elapsed_ms_header;             ///< Name of a header that says how long the reply took. Empty: none.
  /// Told of every reply that no handler made (bad requests, unknown routes). On a connection's thread.
  std::function<void(int status)> on_refusal;
};

/// An HTTP/1.1 server for a few trusted routes and any number of untrusted clients (serving.md §7.4, §8). HEAD works
/// on GET routes, a trailing slash is ignored, pipelined requests are served one after the other, errors have the body
/// of §1.8. Add routes, then Start.
class Server {
 public:
  explicit Server(ServerOptions options);
  /// Stops at once.
  ~Server();
  Server(const Server&) = delete;
  Server& operator=(const Server&) = delete;

  void Route(std::string method, std::string pattern, Handler handler);
  void RouteAsync(std::string method, std::string pattern, AsyncHandler handler);

  /// Binds and serves on threads of its own. The error names the address that could not be bound.
  absl::Status Start();
  /// The port that is bound.
  uint16_t port() const;
  /// Closes the listener and idle connections, gives the others `bound` to finish, resets the rest. Blocks.
  void Stop(absl::Duration bound);

  size_t connections() const;
  /// Stream data that waits for slow clients, all connections together.
  size_t buffered_bytes() const;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace quicksilver::http

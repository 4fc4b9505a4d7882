#pragma once

#include <boost/asio/awaitable.hpp>
#include <boost/asio/basic_stream_socket.hpp>
#include <boost/asio/basic_waitable_timer.hpp>
#include <boost/asio/io_context.hpp>
#include <boost/asio/ip/tcp.hpp>
#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "tools/bench_serve/response_reader.h"

namespace quicksilver {

namespace asio = boost::asio;

using AsioExecutor = asio::io_context::executor_type;
using AsioTimer =
    asio::basic_waitable_timer<std::chrono::steady_clock, asio::wait_traits<std::chrono::steady_clock>, AsioExecutor>;
template <typename T>
using Awaitable = asio::awaitable<T, AsioExecutor>;

/// HTTP/1.1 requests to one server over connections that are kept alive and used again. Belongs to the one thread that
/// runs its io_context, which carries any number of requests at a time.
class HttpClient {
 public:
  /// A request goes out whole; `on_body` gets what came of its body, as it comes, and may stop it with an error.
  struct Call {
    std::string request;  ///< Head and body.
    std::chrono::seconds timeout{600};
    std::function<absl::Status(const ResponseReader& response, std::string& piece)> on_body;
    int status = 0;  ///< HTTP status once the head is there.
  };

  HttpClient(asio::io_context& io, std::string host, uint16_t port);

  /// Looks the host up. Blocks. Unavailable: it has no address.
  absl::Status Resolve();
  /// Unavailable: no connection; DeadlineExceeded: `timeout` is over; DataLoss: not HTTP, or cut short.
  Awaitable<absl::Status> Run(Call& call);

 private:
  struct Connection;

  Awaitable<absl::Status> Connect(Connection& connection);
  Awaitable<absl::Status> Exchange(Connection& connection, Call& call);
  Awaitable<absl::Status> ReadResponse(Connection& connection, Call& call);

  asio::io_context& io_;
  const std::string host_;
  const uint16_t port_;
  std::vector<asio::ip::tcp::endpoint> endpoints_;
  std::vector<std::shared_ptr<Connection>> idle_;
};

}  // namespace quicksilver

#include "tools/bench_serve/http_client.h"

#include <array>
#include <boost/asio/as_tuple.hpp>
#include <boost/asio/use_awaitable.hpp>
#include <boost/asio/write.hpp>
#include <utility>

#include "absl/strings/str_cat.h"

namespace quicksilver {
namespace {

constexpr auto kAwait = asio::as_tuple(asio::use_awaitable_t<AsioExecutor>{});

}  // namespace

struct HttpClient::Connection {
  explicit Connection(asio::io_context& io) : socket(io.get_executor()), timer(io.get_executor()) {}

  absl::Status Failure(const boost::system::error_code& error, const char* doing) const {
    if (expired) return absl::DeadlineExceededError(absl::StrCat("timed out while ", doing));
    return absl::UnavailableError(absl::StrCat(doing, ": ", error.message()));
  }

  asio::basic_stream_socket<asio::ip::tcp, AsioExecutor> socket;
  AsioTimer timer;
  ResponseReader reader;
  std::string inbound;
  uint64_t runs = 0;      // Tells an alarm of this request from one that comes too late.
  bool used = false;      // It has carried a request before.
  bool answered = false;  // Something of the current response has come.
  bool expired = false;
};

HttpClient::HttpClient(asio::io_context& io, std::string host, uint16_t port)
    : io_(io), host_(std::move(host)), port_(port) {}

absl::Status HttpClient::Resolve() {
  asio::ip::tcp::resolver resolver(io_);
  boost::system::error_code error;
  for (const auto& entry : resolver.resolve(host_, std::to_string(port_), error))
    endpoints_.push_back(entry.endpoint());
  if (endpoints_.empty()) return absl::UnavailableError(absl::StrCat("'", host_, "': ", error.message()));
  return absl::OkStatus();
}

Awaitable<absl::Status> HttpClient::Connect(Connection& connection) {
  boost::system::error_code error;
  for (const asio::ip::tcp::endpoint& endpoint : endpoints_) {
    boost::system::error_code ignored;
    connection.socket.close(ignored);
    connection.socket.open(endpoint.protocol(), error);
    if (error) continue;
    connection.socket.non_blocking(true, ignored);
    connection.socket.set_option(asio::ip::tcp::no_delay(true), ignored);
    const auto [connected] = co_await connection.socket.async_connect(endpoint, kAwait);
    error = connected;
    if (!error) co_return absl::OkStatus();
    if (connection.expired) break;
  }
  co_return connection.Failure(error, "connecting");
}

Awaitable<absl::Status> HttpClient::ReadResponse(Connection& connection, Call& call) {
  // Shared by all connections: nothing is waited for between filling and emptying it.
  thread_local std::array<char, 64 * 1024> buffer;
  std::string piece;
  while (!connection.reader.complete()) {
    const auto [waited] = co_await connection.socket.async_wait(asio::socket_base::wait_read, kAwait);
    if (waited || connection.expired) co_return connection.Failure(waited, "waiting for the answer");
    boost::system::error_code error;
    const size_t n = connection.socket.read_some(asio::buffer(buffer), error);
    if (error == asio::error::would_block) continue;
    if (error == asio::error::eof) co_return connection.reader.ReadEnd();
    if (error) co_return connection.Failure(error, "reading the answer");
    connection.answered = true;
    connection.inbound.append(buffer.data(), n);
    piece.clear();
    const absl::Status read = connection.reader.Read(connection.inbound, piece);
    call.status = connection.reader.status();
    const absl::Status taken = piece.empty() ? absl::OkStatus() : call.on_body(connection.reader, piece);
    if (!read.ok() || !taken.ok()) co_return read.ok() ? taken : read;
  }
  co_return absl::OkStatus();
}

Awaitable<absl::Status> HttpClient::Exchange(Connection& connection, Call& call) {
  if (!connection.used) {
    const absl::Status connected = co_await Connect(connection);
    if (!connected.ok()) co_return connected;
  }
  connection.reader.Reset();
  connection.inbound.clear();
  connection.answered = false;
  const auto [error, written] = co_await asio::async_write(connection.socket, asio::buffer(call.request), kAwait);
  if (error) co_return connection.Failure(error, "sending the request");
  co_return co_await ReadResponse(connection, call);
}

Awaitable<absl::Status> HttpClient::Run(Call& call) {
  while (true) {
    auto connection = idle_.empty() ? std::make_shared<Connection>(io_) : std::move(idle_.back());
    if (connection->used) idle_.pop_back();
    connection->expired = false;
    connection->timer.expires_after(call.timeout);
    connection->timer.async_wait(
        [weak = std::weak_ptr(connection), run = ++connection->runs](const boost::system::error_code& error) {
          const auto late = weak.lock();
          if (error || late == nullptr || late->runs != run) return;
          late->expired = true;
          boost::system::error_code ignored;
          late->socket.cancel(ignored);
        });
    const absl::Status status = co_await Exchange(*connection, call);
    connection->timer.cancel();
    ++connection->runs;
    // The server may have closed an idle connection just before it was used again.
    if (!status.ok() && connection->used && !connection->answered && !connection->expired) continue;
    connection->used = true;
    if (status.ok() && connection->reader.keep_alive()) idle_.push_back(std::move(connection));
    co_return status;
  }
}

}  // namespace quicksilver

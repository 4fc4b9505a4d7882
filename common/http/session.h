#pragma once

#include <atomic>
#include <boost/asio/awaitable.hpp>
#include <boost/asio/basic_stream_socket.hpp>
#include <boost/asio/io_context.hpp>
#include <boost/asio/ip/tcp.hpp>
#include <boost/asio/steady_timer.hpp>
#include <chrono>
#include <functional>
#include <memory>
#include <string>
#include <string_view>

#include "common/http/exchange.h"
#include "common/http/request_reader.h"
#include "common/http/server.h"

namespace quicksilver::http {

namespace asio = boost::asio;

using Executor = asio::io_context::executor_type;
using Socket = asio::basic_stream_socket<asio::ip::tcp, Executor>;
template <typename T>
using Awaitable = asio::awaitable<T, Executor>;

/// What the connections of one server share. Thread-safe.
struct SessionContext {
  ServerOptions options;
  Router router;
  std::atomic<int64_t> buffered_bytes{0};
  std::atomic<bool> draining{false};
};

/// One connection: reads a request, has it answered, and again. Lives on the one thread of its io_context; only
/// Exchange crosses threads.
class Session : public std::enable_shared_from_this<Session> {
 public:
  Session(Socket socket, std::string peer, std::shared_ptr<SessionContext> context);

  /// `on_end` is called when the socket is closed.
  void Start(std::function<void(const std::shared_ptr<Session>&)> on_end);
  /// Closes when no request is in hand, else behind the reply.
  void Drain();
  /// Resets the connection.
  void Abort();

 private:
  using Clock = std::chrono::steady_clock;
  enum class Io { kOk, kTimeout, kGone, kStopped };

  Awaitable<void> Run();
  Awaitable<bool> ServeOne();
  Awaitable<Io> ReadRequest();
  Awaitable<bool> Answer();
  Awaitable<bool> AnswerAsync(const AsyncHandler& handler, Request& request, bool head_only);
  Awaitable<EndReason> RunExchange(Exchange& exchange, bool head_only);
  Awaitable<Io> Carry(Exchange::Work& work, bool head_only);
  Awaitable<Io> SendReply(const Response& response, bool head_only);
  // GCC 12 destroys class-type arguments of a coroutine twice: they are passed by reference to a local of the caller.
  Awaitable<bool> Refuse(const Response& response);
  Awaitable<Io> ReadMore(Clock::time_point deadline);
  Awaitable<Io> WriteAll(std::string_view data);
  Awaitable<void> Linger();
  Awaitable<bool> WaitUntil(Clock::time_point deadline);

  void WatchReadable();
  void TakeReadable();
  void Wake();
  void CloseSocket(bool reset);
  std::string FormatHead(const Response& response, std::string_view framing) const;
  Clock::time_point ReadDeadline(Clock::time_point idle_since) const;
  bool stopping() const { return aborted_ || gone_; }

  Socket socket_;
  const std::string peer_;
  const std::shared_ptr<SessionContext> context_;
  std::function<void(const std::shared_ptr<Session>&)> on_end_;
  asio::basic_waitable_timer<Clock, asio::wait_traits<Clock>, Executor> timer_;  ///< Everything that waits, waits here.
  RequestReader reader_;
  std::string inbound_;  ///< Read and not yet consumed.
  std::string request_id_;
  Clock::time_point begun_at_{}, body_begun_at_{};
  bool body_begun_ = false;
  bool waiting_for_request_ = true;
  bool watching_ = false;  ///< A wait for readability is outstanding.
  bool writable_ = false;  ///< Set by the wait for writability.
  bool gone_ = false;      ///< The client closed its side.
  bool aborted_ = false;
  bool keep_alive_ = true;
  bool chunked_ = false;
};

}  // namespace quicksilver::http

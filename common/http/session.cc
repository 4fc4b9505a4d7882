#include "common/http/session.h"

#include <algorithm>
#include <array>
#include <boost/asio/as_tuple.hpp>
#include <boost/asio/co_spawn.hpp>
#include <boost/asio/detached.hpp>
#include <boost/asio/post.hpp>
#include <boost/asio/use_awaitable.hpp>
#include <cstdio>
#include <ctime>
#include <utility>

#include "common/http/random_id.h"

namespace quicksilver::http {
namespace {

constexpr size_t kReadBytes = 64 * 1024;
// What a client may pipeline behind a request that is being answered.
constexpr size_t kPipelinedBytesMax = 64 * 1024;
constexpr size_t kLingerBytesMax = 64 * 1024 * 1024;
constexpr auto kAwait = asio::as_tuple(asio::use_awaitable_t<Executor>{});

std::chrono::steady_clock::duration Chrono(absl::Duration duration) { return absl::ToChronoNanoseconds(duration); }

bool IsValidRequestId(std::string_view id) {
  return !id.empty() && id.size() <= 128 && std::all_of(id.begin(), id.end(), [](char c) {
    return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || c == '.' || c == '_' ||
           c == '-';
  });
}

std::string NewRequestId() { return "req_" + RandomHex(12); }

// The Date header's value, made once a second.
const std::string& HttpDate() {
  thread_local std::time_t made_at = 0;
  thread_local std::string text;
  const std::time_t now = std::time(nullptr);
  if (now != made_at) {
    made_at = now;
    std::tm utc{};
    gmtime_r(&now, &utc);
    std::array<char, 64> buffer;
    text.assign(buffer.data(), std::strftime(buffer.data(), buffer.size(), "%a, %d %b %Y %H:%M:%S GMT", &utc));
  }
  return text;
}

Response InternalError() {
  return ErrorResponse(500, "server_error", "internal_error", "The server failed to answer this request.");
}

}  // namespace

Session::Session(Socket socket, std::string peer, std::shared_ptr<SessionContext> context)
    : socket_(std::move(socket)),
      peer_(std::move(peer)),
      context_(std::move(context)),
      timer_(socket_.get_executor()),
      reader_(context_->options.limits) {}

void Session::Start(std::function<void(const std::shared_ptr<Session>&)> on_end) {
  on_end_ = std::move(on_end);
  boost::system::error_code ignored;
  socket_.non_blocking(true, ignored);
  socket_.set_option(asio::ip::tcp::no_delay(true), ignored);
  asio::co_spawn(socket_.get_executor(), Run(), asio::detached);
}

void Session::Drain() { Wake(); }

void Session::Abort() {
  aborted_ = true;
  Wake();
}

void Session::Wake() { timer_.cancel(); }

// False when the deadline passed first. A wake without a cause is possible: callers check in a loop.
Awaitable<bool> Session::WaitUntil(Clock::time_point deadline) {
  timer_.expires_at(deadline);
  const auto [error] = co_await timer_.async_wait(kAwait);
  co_return error == asio::error::operation_aborted;
}

Awaitable<void> Session::Run() {
  const std::shared_ptr<Session> self = shared_from_this();
  bool more = true;
  while (more) more = co_await ServeOne();
  CloseSocket(aborted_);
  if (on_end_) std::exchange(on_end_, nullptr)(self);
}

void Session::CloseSocket(bool reset) {
  boost::system::error_code ignored;
  if (reset) socket_.set_option(asio::socket_base::linger(true, 0), ignored);
  socket_.close(ignored);
}

// At most one wait for readability is outstanding; what it finds goes to inbound_, or sets gone_.
void Session::WatchReadable() {
  if (watching_ || gone_ || !socket_.is_open()) return;
  watching_ = true;
  socket_.async_wait(Socket::wait_read, [self = shared_from_this()](boost::system::error_code error) {
    self->watching_ = false;
    if (!error) self->TakeReadable();
    self->Wake();
  });
}

void Session::TakeReadable() {
  thread_local std::array<char, kReadBytes> buffer;
  boost::system::error_code error;
  const size_t n = socket_.read_some(asio::buffer(buffer), error);
  if (error == asio::error::would_block) return;
  if (error) {
    gone_ = true;
  } else {
    inbound_.append(buffer.data(), n);
  }
}

Awaitable<Session::Io> Session::ReadMore(Clock::time_point deadline) {
  const size_t before = inbound_.size();
  while (inbound_.size() == before) {
    if (aborted_) co_return Io::kStopped;
    if (gone_) co_return Io::kGone;
    if (context_->draining && waiting_for_request_ && !reader_.begun()) co_return Io::kStopped;
    WatchReadable();
    const bool woken = co_await WaitUntil(deadline);
    if (!woken && inbound_.size() == before) co_return Io::kTimeout;
  }
  co_return Io::kOk;
}

// A write that makes no progress for the stall time fails.
Awaitable<Session::Io> Session::WriteAll(std::string_view data) {
  while (true) {
    boost::system::error_code error;
    while (!data.empty()) {
      const size_t n = socket_.write_some(asio::buffer(data.data(), data.size()), error);
      if (error) break;
      data.remove_prefix(n);
    }
    if (data.empty()) co_return Io::kOk;
    if (error != asio::error::would_block) co_return Io::kGone;
    writable_ = false;
    socket_.async_wait(Socket::wait_write, [self = shared_from_this()](boost::system::error_code wait_error) {
      self->writable_ = !wait_error;
      self->Wake();
    });
    const Clock::time_point deadline = Clock::now() + Chrono(context_->options.write_stall_timeout);
    while (!writable_) {
      if (aborted_) co_return Io::kStopped;
      if (gone_) co_return Io::kGone;
      if (inbound_.size() < kPipelinedBytesMax) WatchReadable();
      const bool woken = co_await WaitUntil(deadline);
      if (!woken && !writable_) co_return Io::kTimeout;
    }
  }
}

Session::Clock::time_point Session::ReadDeadline(Clock::time_point idle_since) const {
  const ServerOptions& options = context_->options;
  if (!reader_.begun()) return idle_since + Chrono(options.idle_timeout);
  if (!body_begun_) return begun_at_ + Chrono(options.header_timeout);
  const auto earned = std::chrono::duration_cast<Clock::duration>(std::chrono::duration<double>(
      static_cast<double>(reader_.body_bytes()) / static_cast<double>(options.body_bytes_per_second_min)));
  return body_begun_at_ + std::min(Chrono(options.body_timeout), std::max(Chrono(options.body_grace), earned));
}

// Reads until a whole request, or a refusal, is in reader_. Routes are looked up before a body is asked for.
Awaitable<Session::Io> Session::ReadRequest() {
  const Clock::time_point idle_since = Clock::now();
  while (true) {
    const bool begun = reader_.begun();
    const RequestReader::State state = reader_.Read(inbound_);
    if (!begun && reader_.begun()) {
      begun_at_ = Clock::now();
      waiting_for_request_ = false;
    }
    if (state == RequestReader::State::kComplete || state == RequestReader::State::kRefused) co_return Io::kOk;
    if (state == RequestReader::State::kHead) {
      body_begun_at_ = Clock::now();
      body_begun_ = true;
      const std::string* id = reader_.request().Find("x-request-id");
      request_id_ = id != nullptr && IsValidRequestId(*id) ? *id : NewRequestId();
      if (!reader_.expects_body()) continue;
      const Request& request = reader_.request();
      if (context_->router.Find(request.method, request.path).entry == nullptr) co_return Io::kOk;
      if (reader_.expects_continue() && inbound_.empty()) {
        const Io sent = co_await WriteAll("HTTP/1.1 100 Continue\r\n\r\n");
        if (sent != Io::kOk) co_return sent;
      }
      continue;
    }
    const Io read = co_await ReadMore(ReadDeadline(idle_since));
    if (read != Io::kOk) co_return read;
  }
}

Awaitable<bool> Session::ServeOne() {
  reader_.Reset();
  request_id_.clear();
  body_begun_ = false;
  waiting_for_request_ = true;
  const Io io = co_await ReadRequest();
  if (io == Io::kTimeout && reader_.begun()) {
    const Response response =
        ErrorResponse(408, "invalid_request_error", "request_timeout", "The request was not received in time.");
    co_return co_await Refuse(response);
  }
  if (io != Io::kOk) co_return false;
  const Refusal& refusal = reader_.refusal();
  if (!refusal.code.empty()) {
    const Response response = ErrorResponse(refusal.status, "invalid_request_error", refusal.code, refusal.message);
    co_return co_await Refuse(response);
  }
  co_return co_await Answer();
}

Awaitable<bool> Session::Answer() {
  Request& request = reader_.request();
  request.peer = peer_;
  request.id = request_id_;
  keep_alive_ = reader_.keep_alive() && !context_->draining;
  const bool head_only = request.method == "HEAD";
  Router::Match match = context_->router.Find(request.method, request.path);
  if (match.entry == nullptr) {
    Response response =
        match.allow.empty()
            ? ErrorResponse(404, "invalid_request_error", "not_found", "There is no such route.")
            : ErrorResponse(405, "invalid_request_error", "method_not_allowed", "The route has no such method.");
    if (!match.allow.empty()) response.headers.push_back({"allow", match.allow});
    if (reader_.expects_body() || !keep_alive_) co_return co_await Refuse(response);
    if (context_->options.on_refusal) context_->options.on_refusal(response.status);
    const Io sent = co_await SendReply(response, head_only);
    co_return sent == Io::kOk;
  }
  request.rest = std::move(match.rest);
  if (match.entry->async_handler) {
    co_return co_await AnswerAsync(match.entry->async_handler, request, head_only);
  }
  const Response response = match.entry->handler(request);
  const Io sent = co_await SendReply(response, head_only);
  co_return sent == Io::kOk ? keep_alive_ : false;
}

Awaitable<bool> Session::AnswerAsync(const AsyncHandler& handler, Request& request, bool head_only) {
  chunked_ = request.version_minor == 1;
  const auto exchange = std::make_shared<Exchange>(
      [self = shared_from_this()] { asio::post(self->socket_.get_executor(), [self] { self->Wake(); }); },
      context_->buffered_bytes);
  // The handler's own handle: dropping it unanswered is answered here.
  handler(std::move(request),
          std::shared_ptr<Exchange>(exchange.get(), [exchange](Exchange*) { exchange->Reply(InternalError()); }));
  const EndReason reason = co_await RunExchange(*exchange, head_only);
  exchange->End(reason);
  if (reason != EndReason::kDone) aborted_ = true;  // Never a clean end of a body that is not whole.
  const bool goes_on = keep_alive_ && !aborted_;
  co_return reason == EndReason::kDone ? goes_on : false;
}

Awaitable<EndReason> Session::RunExchange(Exchange& exchange, bool head_only) {
  Clock::time_point ping_at = Clock::time_point::max(), drained_at = Clock::time_point::min();
  Clock::duration ping_interval{}, drained_interval{};
  std::string ping;
  while (true) {
    if (aborted_) co_return EndReason::kServerStopped;
    if (gone_) co_return EndReason::kClientGone;
    Exchange::Work work = exchange.Take();
    for (const auto& task : work.tasks) task();
    if (work.reset) {
      aborted_ = true;
      co_return EndReason::kDone;
    }
    if (work.start_stream) {
      ping = work.options.ping;
      ping_interval = Chrono(work.options.ping_interval);
      drained_interval = Chrono(work.options.drained_interval);
    }
    const bool acts = work.reply || work.start_stream || !work.data.empty() || work.finish;
    if (!acts && work.drained_asked && Clock::now() >= drained_at) {
      drained_at = Clock::now() + drained_interval;
      exchange.Drained();
      continue;
    }
    if (!acts && !ping.empty() && Clock::now() >= ping_at) work.data = ping;
    const bool is_ping = !acts && !work.data.empty();
    if (acts || is_ping) {
      const size_t bytes = work.data.size();
      const Io io = co_await Carry(work, head_only);
      if (io == Io::kOk && !is_ping) exchange.Sent(bytes);
      if (io == Io::kTimeout) co_return EndReason::kStalled;
      if (io == Io::kStopped) co_return EndReason::kServerStopped;
      if (io == Io::kGone) co_return EndReason::kClientGone;
      if (work.reply || work.finish) co_return EndReason::kDone;
      if (!ping.empty()) ping_at = Clock::now() + ping_interval;
      continue;
    }
    if (inbound_.size() < kPipelinedBytesMax) WatchReadable();
    co_await WaitUntil(work.drained_asked ? std::min(ping_at, drained_at) : ping_at);
  }
}

// Writes what `work` says.
Awaitable<Session::Io> Session::Carry(Exchange::Work& work, bool head_only) {
  if (work.reply) co_return co_await SendReply(work.head, head_only);
  std::string out;
  if (work.start_stream) {
    boost::system::error_code ignored;
    socket_.set_option(asio::socket_base::send_buffer_size(context_->options.stream_send_buffer_bytes), ignored);
    if (!chunked_) keep_alive_ = false;
    out = FormatHead(work.head, chunked_ ? "transfer-encoding: chunked\r\n" : "");
  }
  if (!work.data.empty()) {
    if (chunked_) {
      std::array<char, 24> size;
      const int n = std::snprintf(size.data(), size.size(), "%zx\r\n", work.data.size());
      out.append(size.data(), static_cast<size_t>(n));
    }
    out += work.data;
    if (chunked_) out += "\r\n";
  }
  if (work.finish && chunked_) out += "0\r\n\r\n";
  work.data.clear();
  work.data.shrink_to_fit();
  co_return co_await WriteAll(out);
}

std::string Session::FormatHead(const Response& response, std::string_view framing) const {
  const ServerOptions& options = context_->options;
  std::string head;
  head.reserve(512);
  head += "HTTP/1.1 ";
  head += std::to_string(response.status);
  head += ' ';
  head += ReasonPhrase(response.status);
  head += "\r\n";
  const auto add = [&head](std::string_view name, std::string_view value) {
    head += name;
    head += ": ";
    head += value;
    head += "\r\n";
  };
  add("date", HttpDate());
  if (!response.content_type.empty()) add("content-type", response.content_type);
  head += framing;
  add("x-request-id", request_id_);
  if (!options.elapsed_ms_header.empty()) {
    const auto elapsed = std::chrono::duration_cast<std::chrono::milliseconds>(Clock::now() - begun_at_);
    add(options.elapsed_ms_header, std::to_string(elapsed.count()));
  }
  head += options.common_headers;
  for (const Header& header : response.headers) add(header.name, header.value);
  if (!keep_alive_) add("connection", "close");
  head += "\r\n";
  return head;
}

Awaitable<Session::Io> Session::SendReply(const Response& response, bool head_only) {
  if (context_->draining) keep_alive_ = false;
  std::string out = FormatHead(response, "content-length: " + std::to_string(response.body.size()) + "\r\n");
  if (!head_only) out += response.body;
  co_return co_await WriteAll(out);
}

// The last reply of a connection whose next byte cannot be trusted, or whose body nobody wants.
Awaitable<bool> Session::Refuse(const Response& response) {
  if (request_id_.empty()) request_id_ = NewRequestId();
  keep_alive_ = false;
  if (context_->options.on_refusal) context_->options.on_refusal(response.status);
  const bool head_only = reader_.request().method == "HEAD";
  const Io sent = co_await SendReply(response, head_only);
  if (sent == Io::kOk) co_await Linger();
  co_return false;
}

// Closing with unread bytes would reset the connection and could destroy the reply on its way: lets the client finish.
Awaitable<void> Session::Linger() {
  boost::system::error_code ignored;
  socket_.shutdown(Socket::shutdown_send, ignored);
  const Clock::time_point deadline = Clock::now() + Chrono(context_->options.linger);
  size_t drained = inbound_.size();
  inbound_.clear();
  while (!stopping() && drained < kLingerBytesMax) {
    WatchReadable();
    const bool woken = co_await WaitUntil(deadline);
    drained += inbound_.size();
    inbound_.clear();
    if (!woken) break;
  }
}

}  // namespace quicksilver::http

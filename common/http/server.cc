#include "common/http/server.h"

#include <boost/asio/co_spawn.hpp>
#include <boost/asio/detached.hpp>
#include <boost/asio/executor_work_guard.hpp>
#include <boost/asio/ip/address.hpp>
#include <boost/asio/ip/tcp.hpp>
#include <boost/asio/post.hpp>
#include <map>
#include <thread>
#include <unordered_set>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "common/check.h"
#include "common/http/session.h"
#include "common/mutex.h"
#include "common/status_macros.h"

namespace quicksilver::http {
namespace {

using Acceptor = asio::basic_socket_acceptor<asio::ip::tcp, Executor>;
constexpr auto kAcceptPause = std::chrono::milliseconds(100);

// An io_context with its one thread and the connections that live on it.
struct Loop {
  asio::io_context context{1};
  asio::executor_work_guard<Executor> work{context.get_executor()};
  std::unordered_set<std::shared_ptr<Session>> sessions;  // Touched on the thread only.
  std::thread thread;
};

}  // namespace

struct Server::Impl {
  explicit Impl(ServerOptions options) : shared(std::make_shared<SessionContext>()) {
    shared->options = std::move(options);
  }

  absl::Status Bind();
  void Accept();
  void OnAccepted(Loop& loop, Socket socket);
  bool Admit(const std::string& peer) EXCLUDES_LOCK(mutex);
  void Release(const std::string& peer) EXCLUDES_LOCK(mutex);
  /// Runs `action` for every connection, on its thread.
  void ForEachSession(void (Session::*action)());

  const std::shared_ptr<SessionContext> shared;
  std::vector<std::unique_ptr<Loop>> loops;
  std::unique_ptr<Acceptor> acceptor;         // On the first loop's thread, once started.
  std::unique_ptr<asio::steady_timer> pause;  // Likewise.
  uint16_t port = 0;
  size_t next_loop = 0;

  mutable Mutex mutex;
  CondVar changed;
  size_t connections GUARDED_BY(mutex) = 0;
  std::map<std::string, size_t> per_address GUARDED_BY(mutex);
};

bool Server::Impl::Admit(const std::string& peer) {
  MutexLock lock(mutex);
  if (connections >= shared->options.connections_max) return false;
  size_t& of_peer = per_address[peer];
  if (of_peer >= shared->options.connections_per_address_max) return false;
  ++of_peer;
  ++connections;
  return true;
}

void Server::Impl::Release(const std::string& peer) {
  MutexLock lock(mutex);
  const auto it = per_address.find(peer);
  CHECK(it != per_address.end());
  if (--it->second == 0) per_address.erase(it);
  --connections;
  changed.NotifyAll();
}

absl::Status Server::Impl::Bind() {
  const ServerOptions& options = shared->options;
  const std::string name = absl::StrCat(options.address, ":", options.port);
  boost::system::error_code error;
  const asio::ip::address address =
      asio::ip::make_address(options.address == "localhost" ? "127.0.0.1" : options.address, error);
  if (error) return absl::InvalidArgumentError(absl::StrCat("HTTP address ", name, " is not numeric"));
  const asio::ip::tcp::endpoint endpoint(address, options.port);
  acceptor = std::make_unique<Acceptor>(loops[0]->context);
  acceptor->open(endpoint.protocol(), error);
  if (!error) acceptor->set_option(asio::socket_base::reuse_address(true), error);
  if (!error) acceptor->bind(endpoint, error);
  if (!error) acceptor->listen(asio::socket_base::max_listen_connections, error);
  if (error) return absl::UnavailableError(absl::StrCat("cannot listen on ", name, ": ", error.message()));
  port = acceptor->local_endpoint(error).port();
  return absl::OkStatus();
}

void Server::Impl::Accept() {
  Loop& loop = *loops[next_loop++ % loops.size()];
  acceptor->async_accept(loop.context, [this, &loop](boost::system::error_code error, Socket socket) {
    if (error == asio::error::operation_aborted || !acceptor->is_open()) return;
    if (!error) {
      OnAccepted(loop, std::move(socket));
      return Accept();
    }
    // Out of descriptors, most likely: trying again at once would spin.
    pause->expires_after(kAcceptPause);
    pause->async_wait([this](boost::system::error_code stopped) {
      if (!stopped) Accept();
    });
  });
}

void Server::Impl::OnAccepted(Loop& loop, Socket socket) {
  boost::system::error_code error;
  const asio::ip::tcp::endpoint endpoint = socket.remote_endpoint(error);
  if (error) return;
  const std::string peer = endpoint.address().to_string();
  if (!Admit(peer)) return;  // Closes.
  auto session = std::make_shared<Session>(std::move(socket), peer, shared);
  asio::post(loop.context, [this, &loop, session = std::move(session), peer] {
    loop.sessions.insert(session);
    session->Start([this, &loop, peer](const std::shared_ptr<Session>& ended) {
      loop.sessions.erase(ended);
      Release(peer);
    });
  });
}

void Server::Impl::ForEachSession(void (Session::*action)()) {
  for (const std::unique_ptr<Loop>& loop : loops) {
    asio::post(loop->context, [&loop = *loop, action] {
      const std::vector<std::shared_ptr<Session>> sessions(loop.sessions.begin(), loop.sessions.end());
      for (const std::shared_ptr<Session>& session : sessions) (*session.*action)();
    });
  }
}

Server::Server(ServerOptions options) : impl_(std::make_unique<Impl>(std::move(options))) {}

Server::~Server() { Stop(absl::ZeroDuration()); }

void Server::Route(std::string method, std::string pattern, Handler handler) {
  impl_->shared->router.Add({std::move(method), std::move(pattern), std::move(handler), nullptr});
}

void Server::RouteAsync(std::string method, std::string pattern, AsyncHandler handler) {
  impl_->shared->router.Add({std::move(method), std::move(pattern), nullptr, std::move(handler)});
}

absl::Status Server::Start() {
  Impl& impl = *impl_;
  CHECK(impl.loops.empty());
  for (int i = 0; i < std::max(1, impl.shared->options.threads); ++i) impl.loops.push_back(std::make_unique<Loop>());
  if (absl::Status status = impl.Bind(); !status.ok()) {
    impl.acceptor.reset();
    impl.loops.clear();
    return status;
  }
  impl.pause = std::make_unique<asio::steady_timer>(impl.loops[0]->context);
  impl.Accept();
  for (const std::unique_ptr<Loop>& loop : impl.loops) {
    loop->thread = std::thread([&context = loop->context] { context.run(); });
  }
  return absl::OkStatus();
}

uint16_t Server::port() const { return impl_->port; }

void Server::Stop(absl::Duration bound) {
  Impl& impl = *impl_;
  if (impl.loops.empty()) return;
  impl.shared->draining = true;
  asio::post(impl.loops[0]->context, [&impl] {
    boost::system::error_code ignored;
    impl.acceptor->close(ignored);
    impl.pause->cancel();
  });
  impl.ForEachSession(&Session::Drain);
  const absl::Time deadline = absl::Now() + bound;
  {
    MutexLock lock(impl.mutex);
    while (impl.connections > 0) {
      const absl::Duration left = deadline - absl::Now();
      if (left <= absl::ZeroDuration()) break;
      impl.changed.WaitFor(impl.mutex, left);
    }
  }
  while (true) {
    impl.ForEachSession(&Session::Abort);
    MutexLock lock(impl.mutex);
    if (impl.connections == 0) break;
    impl.changed.WaitFor(impl.mutex, absl::Milliseconds(100));
  }
  for (const std::unique_ptr<Loop>& loop : impl.loops) {
    loop->work.reset();
    asio::post(loop->context, [&context = loop->context] { context.stop(); });
  }
  for (const std::unique_ptr<Loop>& loop : impl.loops) loop->thread.join();
  impl.acceptor.reset();
  impl.pause.reset();
  impl.loops.clear();
}

size_t Server::connections() const {
  MutexLock lock(impl_->mutex);
  return impl_->connections;
}

size_t Server::buffered_bytes() const { return static_cast<size_t>(impl_->shared->buffered_bytes.load()); }

}  // namespace quicksilver::http

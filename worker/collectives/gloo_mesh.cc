#include "worker/collectives/gloo_mesh.h"

#include <dirent.h>
#include <gloo/common/error.h>
#include <gloo/rendezvous/context.h>
#include <gloo/rendezvous/store.h>
#include <gloo/transport/tcp/address.h>
#include <gloo/transport/tcp/device.h>
#include <poll.h>
#include <sched.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <utility>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "common/check.h"
#include "common/clock.h"
#include "common/status_macros.h"

namespace quicksilver {
namespace {

// Debian's default limit grants 416 KiB, which is more than twelve messages of kMessageBytesMax.
constexpr int kSocketBufferBytes = 1 << 20;
// Longer than a sleeping core takes to wake (about 35 us on a virtual machine) and than peers differ within a step;
// short enough not to be felt when a group is idle.
constexpr absl::Duration kSpinTime = absl::Microseconds(200);
constexpr int kSlot = 0;

class GlooStore final : public gloo::rendezvous::Store {
 public:
  GlooStore(RendezvousStore& store, std::string prefix, absl::Duration timeout)
      : store_(store), prefix_(std::move(prefix)), timeout_(timeout) {}

  void set(const std::string& key, const std::vector<char>& data) override {
    Check(store_.Put(prefix_ + key, std::string(data.begin(), data.end())));
  }
  std::vector<char> get(const std::string& key) override {
    const auto values = store_.Get({prefix_ + key}, timeout_);
    Check(values.status());
    return {values->front().begin(), values->front().end()};
  }
  void wait(const std::vector<std::string>& keys) override { WaitFor(keys, timeout_); }
  void wait(const std::vector<std::string>& keys, const std::chrono::milliseconds&) override {
    WaitFor(keys, timeout_);  // gloo's own constant is shorter than the time that ranks take to load.
  }

 private:
  // gloo's only way to tell of a failure.
  static void Check(const absl::Status& status) {
    if (!status.ok()) throw gloo::IoException(std::string(status.message()));
  }
  void WaitFor(std::vector<std::string> keys, absl::Duration timeout) {
    for (std::string& key : keys) key.insert(0, prefix_);
    Check(store_.Get(keys, timeout).status());
  }

  RendezvousStore& store_;
  const std::string prefix_;
  const absl::Duration timeout_;
};

bool CoresSuffice(int ranks) {
  cpu_set_t set;
  CPU_ZERO(&set);
  if (sched_getaffinity(0, sizeof(set), &set) != 0) return false;
  return ranks <= CPU_COUNT(&set);
}

bool ChooseSpin(const GlooOptions& options) {
  if (options.wait != CollectiveWait::kAuto) return options.wait == CollectiveWait::kSpin;
  return CoresSuffice(options.host_ranks > 0 ? options.host_ranks : options.size);
}

// gloo does not give its sockets away, and without one a wait can neither be bounded nor broken from another thread.
// A connected pair's address() is the local end of its socket, which is unique among the connected ones. Returns a
// duplicate, or -1.
int DuplicateSocket(const std::string& local_address) {
  DIR* directory = opendir("/proc/self/fd");
  if (directory == nullptr) return -1;
  int found = -1;
  while (const dirent* entry = readdir(directory)) {
    int fd = -1;
    if (!absl::SimpleAtoi(entry->d_name, &fd)) continue;
    sockaddr_storage peer;
    socklen_t length = sizeof(peer);
    if (getpeername(fd, reinterpret_cast<sockaddr*>(&peer), &length) != 0) continue;
    if (peer.ss_family != AF_INET && peer.ss_family != AF_INET6) continue;
    if (gloo::transport::tcp::Address::fromSockName(fd).str() != local_address) continue;
    found = dup(fd);
    break;
  }
  closedir(directory);
  return found;
}

}  // namespace

struct GlooMesh::Peer {
  ~Peer() {
    if (socket >= 0) close(socket);
  }
  int socket = -1;  // A duplicate of gloo's.
  std::vector<std::byte> incoming;
  std::unique_ptr<gloo::transport::Buffer> send;
  std::unique_ptr<gloo::transport::Buffer> receive;
  uint64_t sent = 0;
  uint64_t received = 0;
};

GlooMesh::GlooMesh(const GlooOptions& options, std::shared_ptr<gloo::Context> context)
    : options_(options),
      spin_(ChooseSpin(options)),
      context_(std::move(context)),
      outgoing_(kHeaderBytes + kMessageBytesMax),
      peers_(static_cast<size_t>(options.size)) {}

GlooMesh::~GlooMesh() {
  Abort();
  peers_.clear();  // Before the pairs that their buffers point to.
}

absl::StatusOr<std::unique_ptr<GlooMesh>> GlooMesh::Connect(const GlooOptions& options, const std::string& name,
                                                            RendezvousStore& store, absl::Duration formation_timeout) {
  CHECK(options.rank >= 0 && options.rank < options.size);
  try {
    gloo::transport::tcp::attr attributes;
    attributes.hostname = options.hostname;
    attributes.iface = options.interface_name;
    if (attributes.hostname.empty() && attributes.iface.empty()) attributes.hostname = "127.0.0.1";
    std::shared_ptr<gloo::transport::Device> device = gloo::transport::tcp::CreateDevice(attributes);
    auto context = std::make_shared<gloo::rendezvous::Context>(options.rank, options.size);
    context->setTimeout(std::chrono::milliseconds(absl::ToInt64Milliseconds(options.timeout)));
    GlooStore gloo_store(store, name + "/", formation_timeout);
    context->connectFullMesh(gloo_store, device);
    std::unique_ptr<GlooMesh> mesh(new GlooMesh(options, std::move(context)));
    for (int peer = 0; peer < options.size; ++peer) {
      if (peer != options.rank) RETURN_IF_ERROR(mesh->Bind(peer));
    }
    // Nobody sends before everybody's buffers stand.
    RETURN_IF_ERROR(store.Put(absl::StrCat(name, "/bound/", options.rank), "1"));
    std::vector<std::string> all;
    for (int peer = 0; peer < options.size; ++peer) all.push_back(absl::StrCat(name, "/bound/", peer));
    RETURN_IF_ERROR(store.Get(all, formation_timeout).status());
    return mesh;
  } catch (const std::exception& error) {
    return absl::UnavailableError(absl::StrCat("collectives: rank ", options.rank, " could not join its group of ",
                                               options.size, ": ", error.what()));
  }
}

absl::Status GlooMesh::Bind(int peer) {
  auto& pair = context_->getPair(peer);
  auto state = std::make_unique<Peer>();
  state->socket = DuplicateSocket(pair->address().str());
  if (state->socket < 0) {
    return absl::InternalError(
        absl::StrCat("collectives: no socket of this process has the address ", pair->address().str()));
  }
  // Best effort: a smaller buffer costs speed, and a blocked write ends with the timeout.
  setsockopt(state->socket, SOL_SOCKET, SO_SNDBUF, &kSocketBufferBytes, sizeof(kSocketBufferBytes));
  setsockopt(state->socket, SOL_SOCKET, SO_RCVBUF, &kSocketBufferBytes, sizeof(kSocketBufferBytes));
  state->incoming.resize(kHeaderBytes + kMessageBytesMax);
  state->send = pair->createSendBuffer(kSlot, outgoing_.data(), outgoing_.size());
  state->receive = pair->createRecvBuffer(kSlot, state->incoming.data(), state->incoming.size());
  pair->setSync(true, spin_);
  peers_[peer] = std::move(state);
  return absl::OkStatus();
}

absl::Status GlooMesh::Send(int peer, size_t bytes) {
  CHECK(bytes <= kMessageBytesMax);
  Peer& state = *peers_[peer];
  if (aborted_.load(std::memory_order_relaxed)) return Fail(peer, "aborted");
  const uint64_t header[2] = {state.sent++, bytes};
  std::memcpy(outgoing_.data(), header, kHeaderBytes);
  try {
    state.send->send(0, kHeaderBytes + bytes);
    state.send->waitSend();
  } catch (const std::exception& error) {
    return Fail(peer, error.what());
  }
  return absl::OkStatus();
}

absl::StatusOr<const std::byte*> GlooMesh::Receive(int peer, size_t bytes, absl::Duration timeout) {
  ASSIGN_OR_RETURN(const Message message, ReceiveAny(peer, timeout));
  if (message.bytes != bytes) {
    Abort();
    return absl::InternalError(absl::StrCat("collectives: rank ", peer, " sent ", message.bytes, " bytes where rank ",
                                            options_.rank, " expects ", bytes, ": the ranks have diverged"));
  }
  return message.data;
}

absl::StatusOr<GlooMesh::Message> GlooMesh::ReceiveAny(int peer, absl::Duration timeout) {
  Peer& state = *peers_[peer];
  RETURN_IF_ERROR(WaitReadable(peer, timeout));
  try {
    state.receive->waitRecv();
  } catch (const std::exception& error) {
    return Fail(peer, error.what());
  }
  uint64_t header[2];
  std::memcpy(header, state.incoming.data(), kHeaderBytes);
  if (header[0] != state.received || header[1] > kMessageBytesMax) {
    return Fail(peer, absl::StrCat("message ", header[0], " of ", header[1], " bytes came in place of message ",
                                   state.received));
  }
  ++state.received;
  return Message{state.incoming.data() + kHeaderBytes, header[1]};
}

bool GlooMesh::Readable(int peer) const {
  pollfd descriptor = {peers_[peer]->socket, POLLIN, 0};
  return poll(&descriptor, 1, 0) > 0;
}

absl::Status GlooMesh::WaitReadable(int peer, absl::Duration timeout) {
  if (Readable(peer)) return absl::OkStatus();
  const absl::Duration start = MonotonicNow();
  if (spin_) {
    while (MonotonicNow() - start < kSpinTime) {
      if (Readable(peer)) return absl::OkStatus();
      sched_yield();  // The scheduler may have put the peer on this very core.
    }
  }
  while (true) {
    const absl::Duration left = timeout - (MonotonicNow() - start);
    if (left <= absl::ZeroDuration()) return Fail(peer, absl::StrCat("silent for ", absl::FormatDuration(timeout)));
    pollfd descriptor = {peers_[peer]->socket, POLLIN, 0};
    const int ready = poll(&descriptor, 1, static_cast<int>(absl::ToInt64Milliseconds(left)) + 1);
    if (ready > 0) return absl::OkStatus();
    if (ready < 0 && errno != EINTR) return Fail(peer, std::strerror(errno));
  }
}

absl::Status GlooMesh::Fail(int peer, const std::string& reason) {
  const bool aborted = aborted_.load();
  Abort();
  return absl::UnavailableError(
      absl::StrCat("collectives: rank ", options_.rank, " lost rank ", peer, ": ", aborted ? "aborted" : reason));
}

void GlooMesh::Abort() {
  aborted_.store(true);
  for (const auto& peer : peers_) {
    if (peer != nullptr) shutdown(peer->socket, SHUT_RDWR);
  }
}

}  // namespace quicksilver

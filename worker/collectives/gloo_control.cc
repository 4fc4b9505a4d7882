#include "worker/collectives/gloo_control.h"

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "common/check.h"
#include "common/clock.h"
#include "common/status_macros.h"
#include "worker/collectives/gloo_mesh.h"

namespace quicksilver {
namespace {

constexpr int kLeader = 0;
constexpr absl::Duration kBeat = absl::Seconds(1);

class GlooControlChannel final : public ControlChannel {
 public:
  explicit GlooControlChannel(std::unique_ptr<GlooMesh> mesh)
      : mesh_(std::move(mesh)), unanswered_(static_cast<size_t>(mesh_->size())) {}

  absl::StatusOr<std::string> Broadcast(std::string message, absl::Duration timeout) override {
    RETURN_IF_ERROR(status_);
    if (mesh_->rank() != kLeader) {
      absl::StatusOr<std::string> received = ReceiveFromLeader(timeout);
      if (!received.ok()) status_ = received.status();
      return received;
    }
    status_ = SendToFollowers(message, timeout);
    RETURN_IF_ERROR(status_);
    return message;
  }

  absl::Status Barrier(absl::Duration timeout) override {
    RETURN_IF_ERROR(status_);
    status_ = mesh_->rank() == kLeader ? GatherAndRelease(timeout) : ReportAndWait(timeout);
    return status_;
  }

 private:
  struct Unanswered {
    uint64_t count = 0;
    absl::Duration since;  // When the last answer came, or the first unanswered message went.
  };

  absl::Status SendToFollowers(const std::string& message, absl::Duration timeout) {
    if (message.size() > kControlMessageBytesMax) {
      return absl::InternalError(absl::StrCat("control channel: a message of ", message.size(), " bytes, at most ",
                                              kControlMessageBytesMax, " are allowed"));
    }
    for (int peer = 1; peer < mesh_->size(); ++peer) {
      RETURN_IF_ERROR(TakeAnswers(peer, timeout));
      RETURN_IF_ERROR(SendMessage(peer, message));
      Unanswered& unanswered = unanswered_[peer];
      if (unanswered.count++ == 0) unanswered.since = MonotonicNow();
    }
    return absl::OkStatus();
  }

  absl::Status TakeAnswers(int peer, absl::Duration timeout) {
    Unanswered& unanswered = unanswered_[peer];
    while (mesh_->Readable(peer)) {
      RETURN_IF_ERROR(mesh_->Receive(peer, 0, timeout).status());
      CHECK(unanswered.count > 0);
      --unanswered.count;
      unanswered.since = MonotonicNow();
    }
    const absl::Duration bound = std::max(timeout - kBeat, timeout / 2);
    if (unanswered.count > 0 && MonotonicNow() - unanswered.since >= bound) {
      mesh_->Abort();
      return absl::UnavailableError(absl::StrCat("control channel: rank ", peer, " has not answered for ",
                                                 absl::FormatDuration(MonotonicNow() - unanswered.since)));
    }
    return absl::OkStatus();
  }

  // The length first, with as much of the message as fits.
  absl::Status SendMessage(int peer, const std::string& message) {
    const uint64_t total = message.size();
    std::memcpy(mesh_->outgoing(), &total, sizeof(total));
    const size_t first = std::min<size_t>(total, GlooMesh::kMessageBytesMax - sizeof(total));
    std::memcpy(mesh_->outgoing() + sizeof(total), message.data(), first);
    RETURN_IF_ERROR(mesh_->Send(peer, sizeof(total) + first));
    for (size_t sent = first; sent < total;) {
      const size_t chunk = std::min<size_t>(total - sent, GlooMesh::kMessageBytesMax);
      std::memcpy(mesh_->outgoing(), message.data() + sent, chunk);
      RETURN_IF_ERROR(mesh_->Send(peer, chunk));
      sent += chunk;
    }
    return absl::OkStatus();
  }

  absl::StatusOr<std::string> ReceiveFromLeader(absl::Duration timeout) {
    ASSIGN_OR_RETURN(GlooMesh::Message part, mesh_->ReceiveAny(kLeader, timeout));
    uint64_t total = 0;
    if (part.bytes < sizeof(total)) return absl::InternalError("control channel: the leader sent no length");
    std::memcpy(&total, part.data, sizeof(total));
    if (total > kControlMessageBytesMax) {
      return absl::InternalError(absl::StrCat("control channel: the leader announced ", total, " bytes"));
    }
    std::string message(reinterpret_cast<const char*>(part.data) + sizeof(total), part.bytes - sizeof(total));
    while (message.size() < total) {
      ASSIGN_OR_RETURN(part, mesh_->ReceiveAny(kLeader, timeout));
      message.append(reinterpret_cast<const char*>(part.data), part.bytes);
    }
    RETURN_IF_ERROR(mesh_->Send(kLeader, 0));
    return message;
  }

  absl::Status GatherAndRelease(absl::Duration timeout) {
    for (int peer = 1; peer < mesh_->size(); ++peer) {
      // Answers to earlier broadcasts come first.
      for (; unanswered_[peer].count > 0; --unanswered_[peer].count) {
        RETURN_IF_ERROR(mesh_->Receive(peer, 0, timeout).status());
      }
      RETURN_IF_ERROR(mesh_->Receive(peer, 0, timeout).status());
    }
    for (int peer = 1; peer < mesh_->size(); ++peer) RETURN_IF_ERROR(mesh_->Send(peer, 0));
    return absl::OkStatus();
  }

  absl::Status ReportAndWait(absl::Duration timeout) {
    RETURN_IF_ERROR(mesh_->Send(kLeader, 0));
    return mesh_->Receive(kLeader, 0, timeout).status();
  }

  const std::unique_ptr<GlooMesh> mesh_;
  std::vector<Unanswered> unanswered_;  // By rank; on the leader.
  absl::Status status_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<ControlChannel>> MakeGlooControlChannel(const GlooOptions& options,
                                                                       RendezvousStore& store,
                                                                       absl::Duration formation_timeout) {
  ASSIGN_OR_RETURN(std::unique_ptr<GlooMesh> mesh, GlooMesh::Connect(options, "control", store, formation_timeout));
  return std::make_unique<GlooControlChannel>(std::move(mesh));
}

}  // namespace quicksilver

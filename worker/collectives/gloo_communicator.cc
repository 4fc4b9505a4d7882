#include "worker/collectives/gloo_communicator.h"

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <deque>
#include <utility>
#include <vector>

#include "common/check.h"
#include "common/status_macros.h"
#include "worker/collectives/gloo_mesh.h"
#include "worker/collectives/rank_order_sum.h"

namespace quicksilver {
namespace {

// One shot sends (tp - 1) M bytes a rank in one exchange, two shots 2 (tp - 1) / tp M in two. On loopback an exchange
// costs about as much time as 32 KiB take, so from there on a third of the bytes less (tp = 4) wins. With two ranks the
// bytes are equal and one shot always wins.
constexpr size_t kTwoShotBytesMin = 32 << 10;
constexpr size_t kChunkBytes = GlooMesh::kMessageBytesMax;
// Chunks that are sent ahead of the one that is waited for: the peers' copying overlaps. See GlooMesh::Connect on why
// the sum of both sides fits the sockets.
constexpr size_t kChunksAhead = 2;

class GlooCommunicator final : public Communicator {
 public:
  GlooCommunicator(std::unique_ptr<GlooMesh> mesh, absl::Duration timeout)
      : mesh_(std::move(mesh)), timeout_(timeout), parts_(static_cast<size_t>(mesh_->size())) {}

  int rank() const override { return mesh_->rank(); }
  int size() const override { return mesh_->size(); }

  void AllReduceSum(Matrix x) override {
    CHECK(x.stride == x.cols || x.rows <= 1);
    const int64_t elements = x.rows * x.cols;
    if (!status_.ok() || elements == 0) return;
    auto* data = static_cast<std::byte*>(x.data);
    const bool two_shot = size() > 2 && static_cast<size_t>(elements) * ElementBytes(x.dtype) >= kTwoShotBytesMin;
    status_ = two_shot ? ReduceInTwoShots(data, elements, x.dtype) : ReduceInOneShot(data, elements, x.dtype);
  }

  void AllGather(const void* in, void* out, size_t bytes) override {
    if (!status_.ok() || bytes == 0) return;
    status_ = Gather(static_cast<const std::byte*>(in), static_cast<std::byte*>(out), bytes);
  }

  absl::Status Synchronize() override { return status_; }
  void Abort() override { mesh_->Abort(); }

 private:
  absl::Status SendToAll(const std::byte* data, size_t bytes) {
    std::memcpy(mesh_->outgoing(), data, bytes);
    // Each rank starts with its successor, so that not all of them wake rank 0 first.
    for (int step = 1; step < size(); ++step) RETURN_IF_ERROR(mesh_->Send((rank() + step) % size(), bytes));
    return absl::OkStatus();
  }

  // Receives `bytes` from every peer into parts_, next to this rank's own part.
  absl::Status ReceiveFromAll(const std::byte* own, size_t bytes) {
    for (int peer = 0; peer < size(); ++peer) {
      if (peer == rank()) {
        parts_[peer] = own;
      } else {
        ASSIGN_OR_RETURN(parts_[peer], mesh_->Receive(peer, bytes, timeout_));
      }
    }
    return absl::OkStatus();
  }

  // Sends `bytes` bytes of `own` to everyone in chunks and calls done(first, bytes) with the parts_ of each chunk.
  template <typename Done>
  absl::Status Exchange(const std::byte* own, size_t bytes, const Done& done) {
    size_t sent = 0;
    for (size_t received = 0; received < bytes;) {
      while (sent < bytes && sent - received <= (kChunksAhead - 1) * kChunkBytes) {
        const size_t chunk = std::min(kChunkBytes, bytes - sent);
        RETURN_IF_ERROR(SendToAll(own + sent, chunk));
        sent += chunk;
      }
      const size_t chunk = std::min(kChunkBytes, bytes - received);
      RETURN_IF_ERROR(ReceiveFromAll(own + received, chunk));
      done(received, chunk);
      received += chunk;
    }
    return absl::OkStatus();
  }

  absl::Status ReduceInOneShot(std::byte* x, int64_t elements, DType dtype) {
    return Exchange(x, static_cast<size_t>(elements) * ElementBytes(dtype), [&](size_t first, size_t bytes) {
      SumInRankOrder(parts_.data(), size(), static_cast<int64_t>(bytes / ElementBytes(dtype)), dtype, x + first);
    });
  }

  // Rank r sums the r-th of tp bands and sends the sum to all: the same additions in the same order as in one shot.
  absl::Status ReduceInTwoShots(std::byte* x, int64_t elements, DType dtype) {
    const size_t element_bytes = ElementBytes(dtype);
    const int64_t band_max = static_cast<int64_t>(kChunkBytes / element_bytes);
    for (int64_t first = 0; first < elements; first += band_max * size()) {
      const int64_t count = std::min(band_max * size(), elements - first);
      const auto band_start = [&](int r) { return static_cast<size_t>(first + count * r / size()) * element_bytes; };
      for (int step = 1; step < size(); ++step) {
        const int peer = (rank() + step) % size();
        const size_t bytes = band_start(peer + 1) - band_start(peer);
        std::memcpy(mesh_->outgoing(), x + band_start(peer), bytes);
        RETURN_IF_ERROR(mesh_->Send(peer, bytes));
      }
      std::byte* own = x + band_start(rank());
      const size_t own_bytes = band_start(rank() + 1) - band_start(rank());
      RETURN_IF_ERROR(ReceiveFromAll(own, own_bytes));
      SumInRankOrder(parts_.data(), size(), static_cast<int64_t>(own_bytes / element_bytes), dtype, own);
      RETURN_IF_ERROR(SendToAll(own, own_bytes));
      for (int step = 1; step < size(); ++step) {
        const int peer = (rank() + step) % size();
        const size_t bytes = band_start(peer + 1) - band_start(peer);
        ASSIGN_OR_RETURN(const std::byte* sum, mesh_->Receive(peer, bytes, timeout_));
        std::memcpy(x + band_start(peer), sum, bytes);
      }
    }
    return absl::OkStatus();
  }

  absl::Status Gather(const std::byte* in, std::byte* out, size_t bytes) {
    return Exchange(in, bytes, [&](size_t first, size_t chunk) {
      for (int peer = 0; peer < size(); ++peer) {
        std::byte* to = out + static_cast<size_t>(peer) * bytes + first;
        if (to != parts_[peer]) std::memcpy(to, parts_[peer], chunk);
      }
    });
  }

  const std::unique_ptr<GlooMesh> mesh_;
  const absl::Duration timeout_;
  std::vector<const void*> parts_;  // Of one chunk, by rank.
  absl::Status status_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<Communicator>> MakeGlooCommunicator(const GlooOptions& options, RendezvousStore& store,
                                                                   absl::Duration formation_timeout) {
  ASSIGN_OR_RETURN(std::unique_ptr<GlooMesh> mesh, GlooMesh::Connect(options, "data", store, formation_timeout));
  return std::make_unique<GlooCommunicator>(std::move(mesh), options.timeout);
}

}  // namespace quicksilver

#pragma once

#include <cstdint>
#include <cstring>
#include <vector>

#include "absl/status/status.h"
#include "absl/types/span.h"
#include "common/check.h"
#include "kernels/ops.h"
#include "worker/collectives/communicator.h"
#include "worker/engine/scheduler.h"
#include "worker/model/transformer.h"

namespace quicksilver {

/// Runs planned steps on one rank's device: lays out the ragged batch, one upload, one forward, candidates of the rows
/// that are wanted, one gather, one download, and merges what the ranks say. Buffers are made once. All ranks run the
/// same plans. Not thread-safe.
class StepRunner {
 public:
  /// All references outlive it. A step has at most `rows_max` rows and `sequences_max` sequences.
  StepRunner(Transformer& model, Ops& ops, Communicator& ranks, int32_t rows_max, int32_t sequences_max);

  /// Makes the device buffers. ResourceExhausted: they do not fit.
  absl::Status Allocate();

  /// Runs `plan`, which is not empty. `seal` stands for every decision so far. Internal: the ranks' seals differ, or
  /// the device failed; Unavailable: a rank is gone.
  absl::Status Run(absl::Span<const PlannedSegment> plan, uint64_t seal);

  /// After Run(): what the masked rows of plan[index] chose, in the order of Sequence::masked(). Empty for prefill.
  absl::Span<const RowChoice> choices(size_t index) const;

 private:
  /// Rows of one call of Transformer::Candidates; only draws with top-k or top-p pay for top lists.
  struct Part {
    std::vector<int32_t> rows;
    std::vector<CandidateRequest> requests;
    int32_t first_record = 0;  // Of its first request among the step's records.
  };

  /// Where the choices of one planned segment are.
  struct Wanted {
    int32_t part = 0;
    int32_t first_request = 0;
    int32_t count = 0;
  };

  void AddSegment(const RunningSequence& running, const Segment& segment, bool guide);
  void AddRequests(const RunningSequence& running, int32_t first_row, int32_t guide_first_row, const Segment& segment);
  void LayOut(absl::Span<const PlannedSegment> plan);
  void Launch();
  absl::Status Gather(uint64_t seal);
  absl::Status CheckSeals(uint64_t seal) const;
  void Merge(absl::Span<const PlannedSegment> plan);
  int32_t records() const { return 1 + static_cast<int32_t>(parts_[0].requests.size() + parts_[1].requests.size()); }

  /// Copies `values` into the step's upload and returns where they will be on the device.
  template <typename T>
  const T* Place(const std::vector<T>& values) {
    constexpr size_t kAlignment = 64;
    staged_ = (staged_ + kAlignment - 1) / kAlignment * kAlignment;
    const size_t bytes = values.size() * sizeof(T);
    CHECK(staged_ + bytes <= staging_.size());
    if (bytes > 0) std::memcpy(staging_.data() + staged_, values.data(), bytes);
    const char* device = static_cast<const char*>(uploaded_.data()) + staged_;
    staged_ += bytes;
    return reinterpret_cast<const T*>(device);
  }

  Transformer& model_;
  Ops& ops_;
  Communicator& ranks_;
  const int32_t rows_max_;
  const int32_t segments_max_;

  // The step on the host, reused from step to step.
  std::vector<int32_t> ids_;
  std::vector<int32_t> positions_;
  std::vector<int32_t> slots_;
  std::vector<int32_t> page_table_;
  std::vector<AttentionSegment> segments_;
  StepLayout layout_;
  Part parts_[2];  // Without and with top lists.
  std::vector<Wanted> wanted_;
  std::vector<RowChoice> choices_;  // By record, from 1.
  std::vector<char> staging_;
  size_t staged_ = 0;
  std::vector<Candidate> seal_record_;
  std::vector<Candidate> host_candidates_;  // [tp, records]
  std::vector<TopLogit> host_top_;          // [tp, requests of part 1, kTopLogitsMax]

  DeviceBuffer uploaded_;
  DeviceBuffer candidates_;  // [records]: the seal, then one a request.
  DeviceBuffer gathered_candidates_;
  DeviceBuffer top_;
  DeviceBuffer gathered_top_;
};

}  // namespace quicksilver

#include "tests/model/gemma_group.h"

#include <algorithm>
#include <cstring>
#include <thread>
#include <utility>

#include "common/check.h"
#include "common/status_macros.h"
#include "worker/collectives/local_communicator.h"
#include "worker/model/load_spec.h"

namespace quicksilver {
namespace {

constexpr int32_t kRowsMax = 96;
constexpr int32_t kPages = 32;

template <typename T>
DeviceBuffer ToDevice(Ops& ops, const std::vector<T>& values) {
  absl::StatusOr<DeviceBuffer> buffer = ops.Allocate(std::max<size_t>(1, values.size() * sizeof(T)));
  CHECK(buffer.ok());
  ops.Upload(values.data(), buffer->data(), values.size() * sizeof(T));
  CHECK(ops.Synchronize().ok());
  return std::move(buffer).value();
}

}  // namespace

struct GemmaGroup::Arrays {
  std::vector<int32_t> ids, positions, slots, conditioning, page_table;
  std::vector<AttentionSegment> segments;
  std::vector<int32_t> all_rows, canvas_rows, canvas_slots;
  std::vector<CandidateRequest> requests;  // Of canvas_rows.
  std::vector<size_t> span_of;             // By request.
  int32_t rows_max = 0, keys_max = 0;
};

absl::StatusOr<std::unique_ptr<GemmaGroup>> GemmaGroup::Load(const std::string& directory, int ranks,
                                                             const MakeOps& make_ops) {
  ASSIGN_OR_RETURN(const std::unique_ptr<Checkpoint> checkpoint, Checkpoint::Open(directory));
  ASSIGN_OR_RETURN(const ModelSpec spec, LoadModelSpec(*checkpoint));
  std::unique_ptr<GemmaGroup> group(new GemmaGroup(ranks));
  for (int rank = 0; rank < ranks; ++rank) {
    Member& member = group->members_[static_cast<size_t>(rank)];
    member.ops = make_ops();
    member.communicator = ranks == 1 ? MakeLocalCommunicator() : group->group_.Join(rank);
    ASSIGN_OR_RETURN(member.model, Transformer::Load(spec, *checkpoint, *member.ops, *member.communicator, kRowsMax,
                                                     kPages, kPageSize));
  }
  return group;
}

GemmaGroup::Arrays GemmaGroup::LayOut(const std::vector<GemmaSpan>& spans) {
  Arrays a;
  for (size_t s = 0; s < spans.size(); ++s) {
    const GemmaSpan& span = spans[s];
    const auto rows = static_cast<int32_t>(span.ids.size()), keys = span.first_position + rows;
    const bool canvas = span.kind != GemmaSpan::Kind::kCommitted;
    a.segments.push_back({.first_row = static_cast<int32_t>(a.ids.size()),
                          .rows = rows,
                          .first_position = span.first_position,
                          .keys = keys,
                          .first_page = static_cast<int32_t>(a.page_table.size()),
                          .block_length = canvas ? kBidirectional : 1});
    for (int32_t i = 0; i < rows; ++i) {
      const int32_t p = span.first_position + i, row = static_cast<int32_t>(a.ids.size());
      const int32_t slot = span.pages.at(static_cast<size_t>(p / kPageSize)) * kPageSize + p % kPageSize;
      a.all_rows.push_back(row);
      a.ids.push_back(span.ids[static_cast<size_t>(i)]);
      a.positions.push_back(p);
      a.slots.push_back(slot);
      a.conditioning.push_back(!canvas ? -1 : span.kind == GemmaSpan::Kind::kCanvas ? slot : INT32_MAX);
      if (!canvas) continue;
      CandidateRequest request;
      request.row = static_cast<int32_t>(a.canvas_rows.size());
      request.temperature = span.sampling.temperature;
      request.place = {span.sampling.seed, span.sampling.choice, static_cast<uint32_t>(p), span.forward};
      a.requests.push_back(request);
      a.canvas_rows.push_back(row);
      a.canvas_slots.push_back(slot);
      a.span_of.push_back(s);
    }
    a.page_table.insert(a.page_table.end(), span.pages.begin(), span.pages.end());
    a.rows_max = std::max(a.rows_max, rows);
    a.keys_max = std::max(a.keys_max, keys);
  }
  return a;
}

void GemmaGroup::RunRank(int rank, const Arrays& arrays, const std::vector<GemmaSpan>& spans, HostRows& logits,
                         Result& result) {
  Member& member = members_[static_cast<size_t>(rank)];
  Ops& ops = *member.ops;
  const auto rows = static_cast<int32_t>(arrays.ids.size()), count = static_cast<int32_t>(arrays.requests.size());
  const auto ranks = static_cast<int32_t>(members_.size());
  const DeviceBuffer ids = ToDevice(ops, arrays.ids), positions = ToDevice(ops, arrays.positions);
  const DeviceBuffer slots = ToDevice(ops, arrays.slots), segments = ToDevice(ops, arrays.segments);
  const DeviceBuffer pages = ToDevice(ops, arrays.page_table), conditioning = ToDevice(ops, arrays.conditioning);
  const DeviceBuffer all = ToDevice(ops, arrays.all_rows), canvas = ToDevice(ops, arrays.canvas_rows);
  const DeviceBuffer requests = ToDevice(ops, arrays.requests), targets = ToDevice(ops, arrays.canvas_slots);
  const auto ints = [](const DeviceBuffer& buffer) { return static_cast<const int32_t*>(buffer.data()); };
  StepLayout layout;
  layout.rows = rows;
  layout.positions = ints(positions);
  layout.slots = ints(slots);
  layout.segments = static_cast<const AttentionSegment*>(segments.data());
  layout.segments_count = static_cast<int32_t>(arrays.segments.size());
  layout.page_table = ints(pages);
  layout.page_size = kPageSize;
  layout.rows_max = arrays.rows_max;
  layout.keys_max = arrays.keys_max;
  layout.conditioning = count > 0 ? ints(conditioning) : nullptr;
  member.model->Forward(ints(ids), layout);

  const int64_t cols = (spec().vocabulary + ranks - 1) / ranks;
  const DType dtype = ops.activation_dtype();
  const DeviceBuffer memory = ToDevice(ops, std::vector<char>(static_cast<size_t>(rows * cols) * ElementBytes(dtype)));
  const Matrix of_rank{memory.data(), rows, cols, cols, dtype};
  member.model->Logits(ints(all), rows, of_rank);
  logits = ToHost(ops, of_rank);
  if (count == 0) return;

  const size_t bytes = static_cast<size_t>(count) * sizeof(Candidate);
  const DeviceBuffer records = ToDevice(ops, std::vector<char>(bytes));
  const DeviceBuffer gathered = ToDevice(ops, std::vector<char>(bytes * static_cast<size_t>(ranks)));
  const auto* const device_requests = static_cast<const CandidateRequest*>(requests.data());
  member.model->Candidates(ints(canvas), count, {.requests = device_requests, .count = count}, 0,
                           static_cast<Candidate*>(records.data()), nullptr);
  if (ranks > 1) member.communicator->AllGather(records.data(), gathered.data(), bytes);
  const auto* const everywhere = static_cast<const Candidate*>((ranks > 1 ? gathered : records).data());
  member.model->Condition(
      ints(canvas), count,
      {.requests = device_requests, .count = count, .records = everywhere, .records_stride = count, .ranks = ranks},
      ints(targets));
  if (rank != 0) return;
  std::vector<Candidate> host(static_cast<size_t>(ranks * count));
  ops.Download(everywhere, host.data(), host.size() * sizeof(Candidate));
  CHECK(ops.Synchronize().ok());
  for (int32_t i = 0; i < count; ++i) {
    const SamplingRule& sampling = spans[arrays.span_of[static_cast<size_t>(i)]].sampling;
    const GatheredRow row = {.candidates = host.data() + i, .candidate_stride = count, .ranks = ranks};
    result.choices.push_back(
        MergeCandidates(row, sampling, /*raw_confidence=*/false, arrays.requests[static_cast<size_t>(i)].place));
  }
}

GemmaGroup::Result GemmaGroup::Step(const std::vector<GemmaSpan>& spans) {
  const Arrays arrays = LayOut(spans);
  Result result;
  std::vector<HostRows> shards(members_.size());
  std::vector<std::thread> threads;
  const auto run = [&](int rank) { RunRank(rank, arrays, spans, shards[static_cast<size_t>(rank)], result); };
  for (int rank = 1; rank < static_cast<int>(members_.size()); ++rank) threads.emplace_back(run, rank);
  run(0);
  for (std::thread& thread : threads) thread.join();
  CHECK(members_[0].communicator->Synchronize().ok());
  result.logits.cols = spec().vocabulary;
  for (int64_t row = 0; row < shards[0].rows(); ++row) {
    for (int64_t id = 0; id < result.logits.cols; ++id) {
      const HostRows& shard = shards[static_cast<size_t>(id / shards[0].cols)];
      result.logits.values.push_back(shard.row(row)[id % shards[0].cols]);
    }
  }
  return result;
}

}  // namespace quicksilver

#include "worker/engine/step_runner.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "common/status_macros.h"

namespace quicksilver {
namespace {

// The first record of a gather carries the seal in place of a candidate.
static_assert(sizeof(uint64_t) <= sizeof(Candidate));

constexpr size_t kUploadSlack = 1024;  // Alignment of the arrays.

uint64_t ReadSeal(const Candidate& record) {
  uint64_t seal = 0;
  std::memcpy(&seal, &record, sizeof seal);
  return seal;
}

}  // namespace

StepRunner::StepRunner(Transformer& model, Ops& ops, Communicator& ranks, int32_t rows_max, int32_t sequences_max)
    : model_(model),
      ops_(ops),
      ranks_(ranks),
      rows_max_(rows_max),
      segments_max_(std::min(rows_max, 2 * sequences_max)),
      seal_record_(1) {
  CHECK(ranks.size() <= kRanksMax);
}

absl::Status StepRunner::Allocate() {
  const size_t rows = static_cast<size_t>(rows_max_);
  const size_t ranks = static_cast<size_t>(ranks_.size());
  // ids, positions, slots and the rows of the two parts; one request a row at most; every page at most once.
  const size_t upload = rows * (4 * sizeof(int32_t) + sizeof(CandidateRequest)) +
                        static_cast<size_t>(segments_max_) * sizeof(AttentionSegment) +
                        static_cast<size_t>(model_.pages()) * sizeof(int32_t) + kUploadSlack;
  staging_.resize(upload);
  ASSIGN_OR_RETURN(uploaded_, ops_.Allocate(upload));
  const size_t candidates = (rows + 1) * sizeof(Candidate);
  const size_t top = rows * kTopLogitsMax * sizeof(TopLogit);
  ASSIGN_OR_RETURN(candidates_, ops_.Allocate(candidates));
  ASSIGN_OR_RETURN(top_, ops_.Allocate(top));
  if (ranks == 1) return absl::OkStatus();
  ASSIGN_OR_RETURN(gathered_candidates_, ops_.Allocate(candidates * ranks));
  ASSIGN_OR_RETURN(gathered_top_, ops_.Allocate(top * ranks));
  return absl::OkStatus();
}

absl::Status StepRunner::Run(absl::Span<const PlannedSegment> plan, uint64_t seal) {
  CHECK(!plan.empty());
  LayOut(plan);
  Launch();
  RETURN_IF_ERROR(Gather(seal));
  RETURN_IF_ERROR(ranks_.Synchronize());
  if (const absl::Status device = ops_.Synchronize(); !device.ok()) {
    return absl::InternalError(absl::StrCat("device: ", std::string(device.message())));
  }
  RETURN_IF_ERROR(CheckSeals(seal));
  Merge(plan);
  return absl::OkStatus();
}

absl::Span<const RowChoice> StepRunner::choices(size_t index) const {
  const Wanted& wanted = wanted_[index];
  const size_t first = static_cast<size_t>(parts_[wanted.part].first_record + wanted.first_request);
  return absl::MakeConstSpan(choices_).subspan(first, static_cast<size_t>(wanted.count));
}

void StepRunner::AddSegment(const RunningSequence& running, const Segment& segment, bool guide) {
  const Sequence& sequence = running.sequence;
  const std::vector<int32_t>& pages = guide ? running.guide_pages : running.pages;
  const int32_t page_size = model_.page_size();
  AttentionSegment out;
  out.first_row = static_cast<int32_t>(ids_.size());
  out.rows = segment.rows;
  out.first_position = segment.first_position;
  out.keys = segment.keys;
  out.first_page = static_cast<int32_t>(page_table_.size());
  segments_.push_back(out);
  for (int32_t p = segment.first_position; p < segment.first_position + segment.rows; ++p) {
    ids_.push_back(guide ? sequence.GuideTokenAt(p) : sequence.canvas()[static_cast<size_t>(p)]);
    positions_.push_back(p);
    slots_.push_back(pages[static_cast<size_t>(p / page_size)] * page_size + p % page_size);
  }
  const int32_t pages_seen = (segment.keys + page_size - 1) / page_size;
  page_table_.insert(page_table_.end(), pages.begin(), pages.begin() + pages_seen);
  layout_.rows_max = std::max(layout_.rows_max, segment.rows);
  layout_.keys_max = std::max(layout_.keys_max, segment.keys);
}

void StepRunner::AddRequests(const RunningSequence& running, int32_t first_row, int32_t guide_first_row,
                             const Segment& segment) {
  const Sequence& sequence = running.sequence;
  const SequenceSpec& spec = sequence.spec();
  const int32_t part_index = NeedsTopLogits(spec.sampling) ? 1 : 0;
  Part& part = parts_[part_index];
  wanted_.push_back(
      {part_index, static_cast<int32_t>(part.requests.size()), static_cast<int32_t>(sequence.masked().size())});
  for (const int32_t position : sequence.masked()) {
    CandidateRequest request;
    request.row = static_cast<int32_t>(part.rows.size());
    part.rows.push_back(first_row + position - segment.first_position);
    if (guide_first_row >= 0) {
      request.guide_row = static_cast<int32_t>(part.rows.size());
      part.rows.push_back(guide_first_row + position - segment.first_position);
      request.guidance = spec.decoding.guidance_scale;
    }
    request.temperature = spec.sampling.temperature;
    request.suppressed_id = spec.decoding.suppressed_id;
    request.place = sequence.PlaceOf(position);
    part.requests.push_back(request);
  }
}

void StepRunner::LayOut(absl::Span<const PlannedSegment> plan) {
  ids_.clear();
  positions_.clear();
  slots_.clear();
  page_table_.clear();
  segments_.clear();
  wanted_.clear();
  layout_ = StepLayout();
  for (Part& part : parts_) {
    part.rows.clear();
    part.requests.clear();
  }
  for (const PlannedSegment& planned : plan) {
    const int32_t first_row = static_cast<int32_t>(ids_.size());
    AddSegment(*planned.running, planned.segment, /*guide=*/false);
    int32_t guide_first_row = -1;
    if (planned.running->sequence.guided()) {
      guide_first_row = static_cast<int32_t>(ids_.size());
      AddSegment(*planned.running, planned.segment, /*guide=*/true);
    }
    if (planned.segment.denoise) {
      AddRequests(*planned.running, first_row, guide_first_row, planned.segment);
    } else {
      wanted_.push_back({});
    }
  }
  parts_[0].first_record = 1;
  parts_[1].first_record = 1 + static_cast<int32_t>(parts_[0].requests.size());
  CHECK(static_cast<int32_t>(ids_.size()) <= rows_max_ && static_cast<int32_t>(segments_.size()) <= segments_max_);
}

void StepRunner::Launch() {
  staged_ = 0;
  const int32_t* ids = Place(ids_);
  layout_.rows = static_cast<int32_t>(ids_.size());
  layout_.positions = Place(positions_);
  layout_.slots = Place(slots_);
  layout_.segments = Place(segments_);
  layout_.segments_count = static_cast<int32_t>(segments_.size());
  layout_.page_table = Place(page_table_);
  layout_.page_size = model_.page_size();
  const ModelSpec& spec = model_.spec();
  layout_.block_length = spec.grid == BlockGrid::kAbsolute ? spec.block_length : kBidirectional;
  const int32_t* rows[2] = {Place(parts_[0].rows), Place(parts_[1].rows)};
  const CandidateRequest* requests[2] = {Place(parts_[0].requests), Place(parts_[1].requests)};
  ops_.Upload(staging_.data(), uploaded_.data(), staged_);

  model_.Forward(ids, layout_);
  for (int32_t i = 0; i < 2; ++i) {
    const Part& part = parts_[i];
    if (part.requests.empty()) continue;
    model_.Candidates(rows[i], static_cast<int32_t>(part.rows.size()), requests[i],
                      static_cast<int32_t>(part.requests.size()), i == 0 ? 0 : kTopLogitsMax,
                      static_cast<Candidate*>(candidates_.data()) + part.first_record,
                      i == 0 ? nullptr : static_cast<TopLogit*>(top_.data()));
  }
}

absl::Status StepRunner::Gather(uint64_t seal) {
  const size_t ranks = static_cast<size_t>(ranks_.size());
  const size_t candidates = static_cast<size_t>(records());
  const size_t top = parts_[1].requests.size() * kTopLogitsMax;
  std::memcpy(static_cast<void*>(seal_record_.data()), &seal, sizeof seal);
  ops_.Upload(seal_record_.data(), candidates_.data(), sizeof(Candidate));
  const void* from = candidates_.data();
  const void* from_top = top_.data();
  if (ranks > 1) {
    // A rank whose device failed must not hand its numbers to the others, who would decide on them.
    if (const absl::Status device = ops_.Synchronize(); !device.ok()) {
      ranks_.Abort();
      return absl::InternalError(absl::StrCat("device: ", std::string(device.message())));
    }
    ranks_.AllGather(candidates_.data(), gathered_candidates_.data(), candidates * sizeof(Candidate));
    from = gathered_candidates_.data();
    if (top > 0) ranks_.AllGather(top_.data(), gathered_top_.data(), top * sizeof(TopLogit));
    from_top = gathered_top_.data();
  }
  host_candidates_.resize(ranks * candidates);
  ops_.Download(from, host_candidates_.data(), host_candidates_.size() * sizeof(Candidate));
  host_top_.resize(ranks * top);
  if (top > 0) ops_.Download(from_top, host_top_.data(), host_top_.size() * sizeof(TopLogit));
  return absl::OkStatus();
}

absl::Status StepRunner::CheckSeals(uint64_t seal) const {
  for (size_t rank = 0; rank < static_cast<size_t>(ranks_.size()); ++rank) {
    const uint64_t other = ReadSeal(host_candidates_[rank * static_cast<size_t>(records())]);
    if (other != seal) {
      return absl::InternalError(absl::StrCat("ranks disagree: the decisions of rank ", rank, " hash to ", other,
                                              ", those of rank ", ranks_.rank(), " to ", seal));
    }
  }
  return absl::OkStatus();
}

void StepRunner::Merge(absl::Span<const PlannedSegment> plan) {
  const int32_t stride = records();
  choices_.resize(static_cast<size_t>(stride));
  for (size_t i = 0; i < plan.size(); ++i) {
    const Sequence& sequence = plan[i].running->sequence;
    const Wanted& wanted = wanted_[i];
    const Part& part = parts_[wanted.part];
    for (int32_t k = 0; k < wanted.count; ++k) {
      const int32_t request = wanted.first_request + k;
      const size_t record = static_cast<size_t>(part.first_record + request);
      GatheredRow row;
      row.candidates = host_candidates_.data() + record;
      row.candidate_stride = stride;
      row.ranks = ranks_.size();
      if (wanted.part == 1) {
        row.top = host_top_.data() + static_cast<size_t>(request) * kTopLogitsMax;
        row.top_stride = static_cast<int64_t>(part.requests.size()) * kTopLogitsMax;
        row.top_count = kTopLogitsMax;
      }
      choices_[record] = MergeCandidates(row, sequence.spec().sampling, sequence.spec().decoding.raw_confidence,
                                         part.requests[static_cast<size_t>(request)].place);
    }
  }
}

}  // namespace quicksilver

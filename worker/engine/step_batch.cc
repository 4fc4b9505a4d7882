#include "worker/engine/step_batch.h"

#include <algorithm>

#include "common/check.h"

namespace quicksilver {
namespace {

constexpr int32_t kRowsMin = 8;
constexpr int32_t kListTokensMin = 64;
constexpr int32_t kShortSegmentRows = 64;
constexpr size_t kAlignment = 64;

// The smallest of least, 1.5 least, 2 least, 3 least, 4 least, … that is not below `count`; 0 for 0.
int32_t RoundUpCount(int32_t count, int32_t least) {
  if (count == 0) return 0;
  int32_t size = least;
  while (size < count) {
    if (size + size / 2 >= count) return size + size / 2;
    size *= 2;
  }
  return size;
}

// None, half or all of the rows: what is too many costs the LM head alone, and other counts would add shapes.
int32_t RoundUpHeadRows(int32_t head_rows, int32_t rows) {
  if (head_rows == 0) return 0;
  return head_rows <= rows / 2 ? rows / 2 : rows;
}

// Segments of up to kShortSegmentRows are told apart by the attention, which may find many in a step: 16, 32, 64 rows.
int32_t RoundUpSegmentRows(int32_t segment_rows, int32_t rows) {
  if (segment_rows > kShortSegmentRows) return rows;
  int32_t up = kShortSegmentRows / 4;
  while (up < segment_rows) up *= 2;
  return std::min(up, rows);
}

int32_t SegmentsOf(const PlannedSegment& planned) { return planned.running->sequence.guided() ? 2 : 1; }

int32_t PartOf(const Sequence& sequence) { return NeedsTopLogits(sequence.spec().sampling) ? 1 : 0; }

// Hands out memory, array by array.
class Places {
 public:
  explicit Places(char* base) : base_(base) {}

  template <typename T>
  T* Take(int32_t count) {
    used_ = (used_ + kAlignment - 1) / kAlignment * kAlignment;
    T* const place = reinterpret_cast<T*>(base_ + used_);
    used_ += static_cast<size_t>(count) * sizeof(T);
    return place;
  }
  size_t used() const { return used_; }

 private:
  char* base_;
  size_t used_ = 0;
};

}  // namespace

StepShape RoundUp(const StepShape& shape, int32_t rows_max, int32_t sequences_max) {
  StepShape up;
  up.rows = std::max(shape.rows, std::min(rows_max, RoundUpCount(shape.rows, kRowsMin)));
  up.segment_rows = RoundUpSegmentRows(shape.segment_rows, up.rows);
  // A row at least each, so that these add no shapes of their own.
  up.segments = std::max(shape.segments, std::min(up.rows, 2 * sequences_max));
  up.blocks = std::max(shape.blocks, std::min(up.rows, sequences_max));
  for (int i = 0; i < 2; ++i) up.head_rows[i] = RoundUpHeadRows(shape.head_rows[i], up.rows);
  up.list_tokens = RoundUpCount(std::max(1, shape.list_tokens), kListTokensMin);
  return up;
}

StepArrays MapStepArrays(char* base, const StepShape& shape) {
  Places places(base);
  StepArrays arrays;
  arrays.control = places.Take<StepControl>(1);
  arrays.ids = places.Take<int32_t>(shape.rows);
  arrays.positions = places.Take<int32_t>(shape.rows);
  arrays.slots = places.Take<int32_t>(shape.rows);
  arrays.segments = places.Take<AttentionSegment>(shape.segments);
  for (int i = 0; i < 2; ++i) arrays.head_rows[i] = places.Take<int32_t>(shape.head_rows[i]);
  arrays.requests = places.Take<CandidateRequest>(shape.requests());
  arrays.block_rows = places.Take<BlockRow>(shape.requests());
  arrays.live = places.Take<int32_t>(shape.requests());
  arrays.live_positions = places.Take<int32_t>(shape.requests());
  arrays.blocks = places.Take<OpenBlock>(shape.blocks);
  arrays.token_lists = places.Take<TokenId>(shape.list_tokens);
  arrays.page_table = places.Take<int32_t>(0);
  arrays.bytes_before_pages = places.used();
  return arrays;
}

StepShape StepBatch::ShapeOf(absl::Span<const PlannedSegment> plan) {
  StepShape shape;
  for (const PlannedSegment& planned : plan) {
    const Sequence& sequence = planned.running->sequence;
    const int32_t copies = SegmentsOf(planned);
    shape.segments += copies;
    shape.rows += copies * planned.segment.rows;
    shape.segment_rows = std::max(shape.segment_rows, planned.segment.rows);
    if (!planned.segment.denoise) continue;
    ++shape.blocks;
    shape.head_rows[PartOf(sequence)] += copies * static_cast<int32_t>(sequence.masked().size());
    shape.list_tokens += static_cast<int32_t>(sequence.distrusted().size() + sequence.spec().stop_ids.size());
  }
  return shape;
}

int32_t StepBatch::CleanRows(absl::Span<const PlannedSegment> plan) {
  int32_t rows = 0;
  for (const PlannedSegment& planned : plan) {
    const int32_t first_open = planned.segment.denoise ? planned.running->sequence.open_block_start()
                                                       : planned.segment.first_position + planned.segment.rows;
    rows += SegmentsOf(planned) * std::max(0, first_open - planned.segment.first_position);
  }
  return rows;
}

int32_t StepBatch::PagesOf(absl::Span<const PlannedSegment> plan) const {
  int32_t pages = 0;
  for (const PlannedSegment& planned : plan) {
    pages += SegmentsOf(planned) * ((planned.segment.keys + page_size_ - 1) / page_size_);
  }
  return pages;
}

void StepBatch::LayOut(absl::Span<const PlannedSegment> plan, const StepShape& shape, const StepArrays& arrays) {
  rows_ = segments_ = blocks_ = list_tokens_ = pages_ = 0;
  for (int i = 0; i < 2; ++i) head_rows_[i] = requests_[i] = 0;
  open_rows_.assign(plan.size(), {});
  for (size_t i = 0; i < plan.size(); ++i) {
    const RunningSequence& running = *plan[i].running;
    const int32_t first_row = AddSegment(running, plan[i].segment, /*guide=*/false, arrays);
    int32_t guide_first_row = -1;
    if (running.sequence.guided()) guide_first_row = AddSegment(running, plan[i].segment, /*guide=*/true, arrays);
    if (plan[i].segment.denoise) {
      AddBlock(running, plan[i].segment, first_row, guide_first_row, shape, arrays, open_rows_[i]);
    }
  }
  CHECK(rows_ <= shape.rows && segments_ <= shape.segments && blocks_ <= shape.blocks);
  CHECK(head_rows_[0] <= shape.head_rows[0] && head_rows_[1] <= shape.head_rows[1]);
  CHECK(list_tokens_ <= shape.list_tokens);
  Pad(shape, arrays);
}

int32_t StepBatch::AddSegment(const RunningSequence& running, const Segment& segment, bool guide,
                              const StepArrays& arrays) {
  const Sequence& sequence = running.sequence;
  const std::vector<int32_t>& pages = guide ? running.guide_pages : running.pages;
  const int32_t first_row = rows_;
  arrays.segments[segments_++] = {.first_row = first_row,
                                  .rows = segment.rows,
                                  .first_position = segment.first_position,
                                  .keys = segment.keys,
                                  .first_page = pages_,
                                  .block_length = mask_block_};
  for (int32_t p = segment.first_position; p < segment.first_position + segment.rows; ++p, ++rows_) {
    arrays.ids[rows_] = guide ? sequence.GuideTokenAt(p) : sequence.canvas()[static_cast<size_t>(p)];
    arrays.positions[rows_] = p;
    arrays.slots[rows_] = pages[static_cast<size_t>(p / page_size_)] * page_size_ + p % page_size_;
  }
  const int32_t pages_seen = (segment.keys + page_size_ - 1) / page_size_;
  std::copy_n(pages.begin(), pages_seen, arrays.page_table + pages_);
  pages_ += pages_seen;
  return first_row;
}

void StepBatch::AddBlock(const RunningSequence& running, const Segment& segment, int32_t first_row,
                         int32_t guide_first_row, const StepShape& shape, const StepArrays& arrays, OpenRows& open) {
  const Sequence& sequence = running.sequence;
  const SequenceSpec& spec = sequence.spec();
  const int32_t part = PartOf(sequence);
  int32_t* const head_rows = arrays.head_rows[part];
  open.first_row = (part == 0 ? 0 : shape.head_rows[0]) + requests_[part];
  open.positions.assign(sequence.masked().begin(), sequence.masked().end());
  const int32_t rows = static_cast<int32_t>(open.positions.size());
  for (int32_t i = 0; i < rows; ++i) {
    const int32_t offset = open.positions[static_cast<size_t>(i)] - segment.first_position;
    CandidateRequest request;
    request.row = head_rows_[part];
    head_rows[head_rows_[part]++] = first_row + offset;
    BlockRow row = {first_row + offset, -1};
    if (guide_first_row >= 0) {
      request.guide_row = head_rows_[part];
      head_rows[head_rows_[part]++] = row.guide_id_row = guide_first_row + offset;
      request.guidance = spec.decoding.guidance_scale;
    }
    request.temperature = spec.sampling.temperature;
    request.suppressed_id = spec.decoding.suppressed_id;
    request.place = sequence.PlaceOf(segment.first_position + offset);
    arrays.requests[open.first_row + i] = request;
    arrays.block_rows[open.first_row + i] = row;
    arrays.live[open.first_row + i] = i;
    arrays.live_positions[open.first_row + i] = open.positions[static_cast<size_t>(i)];
  }
  requests_[part] += rows;
  OpenBlock& block = arrays.blocks[blocks_++] = {};
  block.rule = sequence.rule();
  block.forwards = sequence.block_forwards();
  block.first_row = open.first_row;
  block.rows = block.live = rows;
  block.distrusted_count = static_cast<int32_t>(sequence.distrusted().size());
  block.first_distrusted = AddList(sequence.distrusted(), arrays);
  block.stop_count = static_cast<int32_t>(spec.stop_ids.size());
  block.first_stop = AddList(spec.stop_ids, arrays);
  if (const int32_t stop = sequence.NextStop(); stop >= 0) {
    const auto before = std::lower_bound(open.positions.begin(), open.positions.end(), stop);
    block.rows_before_stop = static_cast<int32_t>(before - open.positions.begin());
  }
}

int32_t StepBatch::AddList(absl::Span<const TokenId> tokens, const StepArrays& arrays) {
  const int32_t first = list_tokens_;
  std::copy(tokens.begin(), tokens.end(), arrays.token_lists + first);
  list_tokens_ += static_cast<int32_t>(tokens.size());
  return first;
}

// Padding rows belong to no segment and leave no key; padding requests ask for nothing.
void StepBatch::Pad(const StepShape& shape, const StepArrays& arrays) {
  std::fill(arrays.ids + rows_, arrays.ids + shape.rows, 0);
  std::fill(arrays.positions + rows_, arrays.positions + shape.rows, 0);
  std::fill(arrays.slots + rows_, arrays.slots + shape.rows, -1);
  std::fill(arrays.segments + segments_, arrays.segments + shape.segments, AttentionSegment());
  CandidateRequest nothing;
  nothing.row = -1;
  for (int i = 0; i < 2; ++i) {
    std::fill(arrays.head_rows[i] + head_rows_[i], arrays.head_rows[i] + shape.head_rows[i], 0);
    const int32_t first = i == 0 ? 0 : shape.head_rows[0];
    std::fill(arrays.requests + first + requests_[i], arrays.requests + first + shape.head_rows[i], nothing);
    std::fill(arrays.block_rows + first + requests_[i], arrays.block_rows + first + shape.head_rows[i], BlockRow());
    std::fill(arrays.live + first + requests_[i], arrays.live + first + shape.head_rows[i], 0);
    std::fill(arrays.live_positions + first + requests_[i], arrays.live_positions + first + shape.head_rows[i], 0);
  }
  std::fill(arrays.blocks + blocks_, arrays.blocks + shape.blocks, OpenBlock());
  std::fill(arrays.token_lists + list_tokens_, arrays.token_lists + shape.list_tokens, 0);
}

}  // namespace quicksilver

#include "worker/engine/step_batch.h"

#include <algorithm>

#include "common/check.h"

namespace quicksilver {
namespace {

constexpr int32_t kRowsMin = 8;
constexpr int32_t kListTokensMin = 64;
constexpr int32_t kBiasesMin = 256;
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

int32_t CopiesOf(const PlannedSegment& planned) { return planned.running->sequence.guided() ? 2 : 1; }

int32_t PartOf(const Sequence& sequence) { return NeedsTopLogits(sequence.rule()) ? 1 : 0; }

// Clean rows of a canvas family see what is before them, the canvas sees all of them and itself.
int32_t CausalRows(const Sequence& sequence, const Segment& segment) {
  if (sequence.spec().grid != BlockGrid::kCanvas) return 0;
  return segment.denoise ? sequence.open_block_start() - segment.first_position : segment.rows;
}

int32_t AttentionSegmentsOf(const PlannedSegment& planned) {
  const int32_t causal = CausalRows(planned.running->sequence, planned.segment);
  const int32_t parts = causal > 0 && causal < planned.segment.rows ? 2 : 1;
  return CopiesOf(planned) * parts + (planned.segment.shadow_rows > 0 ? 1 : 0);
}

int32_t MaskBlockOf(const Sequence& sequence) {
  return sequence.spec().grid == BlockGrid::kAbsolute ? sequence.spec().decoding.block_length : kBidirectional;
}

// What is added to the logits of the rows that a sequence asks for. Rows with equal lists share a run.
struct BlockBiases {
  struct Run {
    int32_t first = 0;
    int32_t count = 0;
  };
  std::vector<TokenBias> biases;
  std::vector<Run> runs;  // One a row.
};

// Good until the thread's next call: a step of a size that was there before allocates nothing.
const BlockBiases& BiasesOf(const Sequence& sequence) {
  thread_local BlockBiases all;
  all.biases.clear();
  all.runs.clear();
  const auto same = [](const TokenBias& a, const TokenBias& b) { return a.id == b.id && a.bias == b.bias; };
  for (const RowAsk& ask : sequence.asked()) {
    const int32_t first = static_cast<int32_t>(all.biases.size());
    sequence.AppendBiases(ask, all.biases);
    const auto begin = all.biases.begin() + first;
    if (!all.runs.empty()) {
      const BlockBiases::Run last = all.runs.back();
      const auto before = all.biases.begin() + last.first;
      if (std::equal(before, before + last.count, begin, all.biases.end(), same)) {
        all.biases.erase(begin, all.biases.end());
        all.runs.push_back(last);
        continue;
      }
    }
    all.runs.push_back({first, static_cast<int32_t>(all.biases.size()) - first});
  }
  return all;
}

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
  up.segments = std::max(shape.segments, std::min(up.rows, kSegmentsEach * sequences_max));
  up.blocks = std::max(shape.blocks, std::min(up.rows, sequences_max));
  for (int i = 0; i < 2; ++i) up.head_rows[i] = RoundUpHeadRows(shape.head_rows[i], up.rows);
  up.list_tokens = RoundUpCount(std::max(1, shape.list_tokens), kListTokensMin);
  up.biases = RoundUpCount(shape.biases, kBiasesMin);
  up.conditioned = shape.conditioned;
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
  arrays.block_positions = places.Take<int32_t>(shape.requests());
  arrays.blocks = places.Take<OpenBlock>(shape.blocks);
  arrays.token_lists = places.Take<TokenId>(shape.list_tokens);
  arrays.biases = places.Take<TokenBias>(shape.biases);
  if (shape.conditioned != 0) {
    arrays.conditioning = places.Take<int32_t>(shape.rows);
    arrays.condition_slots = places.Take<int32_t>(shape.requests());
  }
  arrays.page_table = places.Take<int32_t>(0);
  arrays.bytes_before_pages = places.used();
  return arrays;
}

StepShape StepBatch::ShapeOf(absl::Span<const PlannedSegment> plan) {
  StepShape shape;
  for (const PlannedSegment& planned : plan) {
    const Sequence& sequence = planned.running->sequence;
    const int32_t copies = CopiesOf(planned);
    shape.segments += AttentionSegmentsOf(planned);
    shape.rows += copies * planned.segment.rows + planned.segment.shadow_rows;
    shape.segment_rows = std::max(shape.segment_rows, planned.segment.rows);
    if (!planned.segment.denoise) continue;
    if (sequence.conditioned()) shape.conditioned = 1;
    ++shape.blocks;
    shape.head_rows[PartOf(sequence)] += copies * static_cast<int32_t>(sequence.asked().size());
    shape.list_tokens += static_cast<int32_t>(sequence.distrusted().size() + sequence.spec().stop_ids.size());
    shape.biases += static_cast<int32_t>(BiasesOf(sequence).biases.size());
  }
  return shape;
}

int32_t StepBatch::CleanRows(absl::Span<const PlannedSegment> plan) {
  int32_t rows = 0;
  for (const PlannedSegment& planned : plan) {
    // Those of a whole canvas are needed in every step.
    if (planned.running->sequence.spec().grid == BlockGrid::kAfterPrompt) continue;
    const int32_t first_open = planned.segment.denoise ? planned.running->sequence.open_block_start()
                                                       : planned.segment.first_position + planned.segment.rows;
    rows += CopiesOf(planned) * std::max(0, first_open - planned.segment.first_position);
  }
  return rows;
}

int32_t StepBatch::PagesOf(absl::Span<const PlannedSegment> plan) const {
  int32_t pages = 0;
  for (const PlannedSegment& planned : plan) {
    pages += AttentionSegmentsOf(planned) * ((planned.segment.keys_held() + page_size_ - 1) / page_size_);
  }
  return pages;
}

void StepBatch::LayOut(absl::Span<const PlannedSegment> plan, const StepShape& shape, const StepArrays& arrays) {
  rows_ = segments_ = blocks_ = list_tokens_ = biases_ = pages_ = 0;
  for (int i = 0; i < 2; ++i) head_rows_[i] = requests_[i] = 0;
  if (open_rows_.size() < plan.size()) open_rows_.resize(plan.size());
  for (OpenRows& open : open_rows_) open.asked.clear();
  for (size_t i = 0; i < plan.size(); ++i) {
    const RunningSequence& running = *plan[i].running;
    const Segment& segment = plan[i].segment;
    Places places;
    places.first_row = AddRows(running, segment, RowKind::kMain, arrays);
    if (running.sequence.guided()) places.guide_first_row = AddRows(running, segment, RowKind::kGuide, arrays);
    if (segment.shadow_rows > 0) places.shadow_first_row = AddRows(running, segment, RowKind::kShadow, arrays);
    if (segment.denoise) AddBlock(running, segment, places, shape, arrays, open_rows_[i]);
  }
  CHECK(rows_ <= shape.rows && segments_ <= shape.segments && blocks_ <= shape.blocks);
  CHECK(head_rows_[0] <= shape.head_rows[0] && head_rows_[1] <= shape.head_rows[1]);
  CHECK(list_tokens_ <= shape.list_tokens && biases_ <= shape.biases);
  Pad(shape, arrays);
}

int32_t StepBatch::AddRows(const RunningSequence& running, const Segment& segment, RowKind kind,
                           const StepArrays& arrays) {
  const Sequence& sequence = running.sequence;
  const std::vector<int32_t>& pages = kind == RowKind::kGuide ? running.guide_pages : running.pages;
  AttentionSegment attention;
  attention.first_row = rows_;
  attention.rows = segment.rows;
  attention.first_position = segment.first_position;
  attention.keys = segment.keys;
  attention.block_length = MaskBlockOf(sequence);
  int32_t position = segment.first_position;
  if (kind == RowKind::kShadow) {
    position = sequence.open_block_start();
    attention.rows = segment.shadow_rows;
    attention.first_position = segment.keys;
    attention.keys = segment.keys_held();
    attention.unseen_key = position;
  }
  const int32_t first_row = rows_;
  for (int32_t i = 0; i < attention.rows; ++i, ++rows_) {
    const int32_t p = position + i, key = attention.first_position + i;
    arrays.ids[rows_] = kind == RowKind::kMain    ? sequence.InputAt(p)
                        : kind == RowKind::kGuide ? sequence.GuideInputAt(p)
                                                  : sequence.spec().mask_id;
    arrays.positions[rows_] = p;
    arrays.slots[rows_] = pages[static_cast<size_t>(key / page_size_)] * page_size_ + key % page_size_;
    if (arrays.conditioning != nullptr) {
      const bool canvas = sequence.conditioned() && segment.denoise && p >= sequence.open_block_start();
      // What the canvas expected stands beside its keys.
      arrays.conditioning[rows_] = !canvas ? -1 : sequence.block_forwards() == 0 ? INT32_MAX : arrays.slots[rows_];
    }
  }
  const int32_t causal = CausalRows(sequence, segment);
  if (causal > 0) {
    AttentionSegment clean = attention;
    clean.rows = causal;
    clean.keys = segment.first_position + causal;
    clean.block_length = 1;
    AddAttention(clean, pages, arrays);
    attention.first_row += causal;
    attention.first_position += causal;
    attention.rows -= causal;
  }
  if (attention.rows > 0) AddAttention(attention, pages, arrays);
  return first_row;
}

void StepBatch::AddAttention(AttentionSegment segment, const std::vector<int32_t>& pages, const StepArrays& arrays) {
  segment.first_page = pages_;
  arrays.segments[segments_++] = segment;
  const int32_t pages_seen = (segment.keys + page_size_ - 1) / page_size_;
  std::copy_n(pages.begin(), pages_seen, arrays.page_table + pages_);
  pages_ += pages_seen;
}

void StepBatch::AddBlock(const RunningSequence& running, const Segment& segment, const Places& places,
                         const StepShape& shape, const StepArrays& arrays, OpenRows& open) {
  const Sequence& sequence = running.sequence;
  const SequenceSpec& spec = sequence.spec();
  OpenBlock& block = arrays.blocks[blocks_++] = {};
  block.rule = sequence.rule();
  const int32_t part = PartOf(sequence);
  open.first_row = (part == 0 ? 0 : shape.head_rows[0]) + requests_[part];
  open.asked.assign(sequence.asked().begin(), sequence.asked().end());
  const int32_t rows = static_cast<int32_t>(open.asked.size());
  AddRequests(running, segment, places, arrays, open);
  AddBiases(sequence, open, arrays);
  requests_[part] += rows;
  block.forwards = sequence.block_forwards();
  block.first_row = open.first_row;
  block.rows = block.live = rows;
  block.distrusted_count = static_cast<int32_t>(sequence.distrusted().size());
  block.first_distrusted = AddList(sequence.distrusted(), arrays);
  block.stop_count = static_cast<int32_t>(spec.stop_ids.size());
  block.first_stop = AddList(spec.stop_ids, arrays);
  if (const int32_t stop = sequence.NextStop(); stop >= 0) {
    const auto before = std::find_if(open.asked.begin(), open.asked.end(),
                                     [stop](const RowAsk& ask) { return ask.shadow || ask.position >= stop; });
    block.rows_before_stop = static_cast<int32_t>(before - open.asked.begin());
  }
}

void StepBatch::AddRequests(const RunningSequence& running, const Segment& segment, const Places& places,
                            const StepArrays& arrays, const OpenRows& open) {
  const Sequence& sequence = running.sequence;
  const SequenceSpec& spec = sequence.spec();
  const BlockRule rule = sequence.rule();
  const int32_t part = PartOf(sequence);
  for (size_t i = 0; i < open.asked.size(); ++i) {
    const RowAsk& ask = open.asked[i];
    const int32_t place = open.first_row + static_cast<int32_t>(i);
    const int32_t first = ask.shadow ? sequence.open_block_start() : segment.first_position;
    const int32_t offset = sequence.PredictorOf(ask.position) - first;
    CHECK(offset >= 0 && offset < (ask.shadow ? segment.shadow_rows : segment.rows));
    CandidateRequest request;
    request.row = head_rows_[part];
    arrays.head_rows[part][head_rows_[part]++] = (ask.shadow ? places.shadow_first_row : places.first_row) + offset;
    // Where the token itself stands: a row that is not in the batch has nobody to read it.
    const int32_t own = ask.position - segment.first_position;
    const bool present = !ask.shadow && own >= 0 && own < segment.rows;
    BlockRow row = {present ? places.first_row + own : -1, -1};
    if (places.guide_first_row >= 0) {
      request.guide_row = head_rows_[part];
      arrays.head_rows[part][head_rows_[part]++] = places.guide_first_row + offset;
      if (present) row.guide_id_row = places.guide_first_row + own;
      request.guidance = spec.decoding.guidance_scale;
    }
    request.temperature = rule.sampling.temperature;
    request.suppressed_id = spec.decoding.suppressed_id;
    request.place = sequence.PlaceOf(ask.position);
    request.asked_id = ask.asked_id;
    if (sequence.wants_history()) {
      request.history_slot = history_.SlotOf(running.id, ask.position - sequence.open_block_start());
      request.history_valid = sequence.block_forwards() > 0 ? 1 : 0;
    }
    if (arrays.condition_slots != nullptr) {
      arrays.condition_slots[place] = sequence.conditioned() ? arrays.slots[places.first_row + offset] : -1;
    }
    arrays.requests[place] = request;
    arrays.block_rows[place] = row;
    arrays.live[place] = static_cast<int32_t>(i);
    arrays.block_positions[place] = ask.position;
  }
}

void StepBatch::AddBiases(const Sequence& sequence, const OpenRows& open, const StepArrays& arrays) {
  const BlockBiases& all = BiasesOf(sequence);
  for (size_t i = 0; i < open.asked.size(); ++i) {
    CandidateRequest& request = arrays.requests[open.first_row + static_cast<int32_t>(i)];
    request.first_bias = biases_ + all.runs[i].first;
    request.bias_count = all.runs[i].count;
  }
  std::copy(all.biases.begin(), all.biases.end(), arrays.biases + biases_);
  biases_ += static_cast<int32_t>(all.biases.size());
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
  if (arrays.conditioning != nullptr) std::fill(arrays.conditioning + rows_, arrays.conditioning + shape.rows, -1);
  std::fill(arrays.segments + segments_, arrays.segments + shape.segments, AttentionSegment());
  CandidateRequest nothing;
  nothing.row = -1;
  for (int i = 0; i < 2; ++i) {
    std::fill(arrays.head_rows[i] + head_rows_[i], arrays.head_rows[i] + shape.head_rows[i], 0);
    const int32_t first = i == 0 ? 0 : shape.head_rows[0];
    std::fill(arrays.requests + first + requests_[i], arrays.requests + first + shape.head_rows[i], nothing);
    if (arrays.condition_slots != nullptr) {
      std::fill(arrays.condition_slots + first + requests_[i], arrays.condition_slots + first + shape.head_rows[i], -1);
    }
    std::fill(arrays.block_rows + first + requests_[i], arrays.block_rows + first + shape.head_rows[i], BlockRow());
    std::fill(arrays.live + first + requests_[i], arrays.live + first + shape.head_rows[i], 0);
    std::fill(arrays.block_positions + first + requests_[i], arrays.block_positions + first + shape.head_rows[i], 0);
  }
  std::fill(arrays.blocks + blocks_, arrays.blocks + shape.blocks, OpenBlock());
  std::fill(arrays.token_lists + list_tokens_, arrays.token_lists + shape.list_tokens, 0);
  std::fill(arrays.biases + biases_, arrays.biases + shape.biases, TokenBias());
}

}  // namespace quicksilver

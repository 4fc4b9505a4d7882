#include <algorithm>

#include "common/check.h"
#include "worker/decoding/sequence.h"

// The part of a sequence that says which rows it runs, and what is in the cache.

namespace quicksilver {

int32_t Sequence::rows_needed_max() const {
  const int32_t length = answer_end_max() + static_cast<int32_t>(spec_.suffix.size());
  const int32_t block = spec_.decoding.block_length;
  int32_t rows = length;
  if (spec_.grid == BlockGrid::kAbsolute) rows = std::min(length, 2 * block);
  if (spec_.grid == BlockGrid::kCanvas) rows = std::min(length, block);
  if (procedure_->wants_shadow()) rows += block;
  return guided() ? 2 * rows : rows;
}

int32_t Sequence::keys_needed_max() const {
  const int32_t shadow = procedure_->wants_shadow() ? spec_.decoding.block_length : 0;
  return answer_end_max() + static_cast<int32_t>(spec_.suffix.size()) + shadow;
}

int32_t Sequence::prefill_rows() const {
  if (spec_.grid == BlockGrid::kAfterPrompt || !prefilling_) return 0;
  return first_ - written_;
}

int32_t Sequence::prefill_unit() const { return spec_.grid == BlockGrid::kCanvas ? 1 : spec_.decoding.block_length; }

int32_t Sequence::cacheable_before() const {
  if (spec_.grid == BlockGrid::kAfterPrompt) return 0;
  // The block in front is run all the same: its last row predicts.
  return leads() ? first_ - spec_.decoding.block_length : first_;
}

void Sequence::TakeCached(int32_t positions) {
  CHECK(prefilling_ && written_ == 0);
  CHECK(positions % prefill_unit() == 0 && positions <= cacheable_before());
  written_ = positions;
}

bool Sequence::must_keep_kv() const {
  if (block_forwards_ == 0) return false;
  return spec_.decoding.cache != Cache::kNone || procedure_->wants_history() || procedure_->conditioned();
}

void Sequence::DropKv() {
  CHECK(!must_keep_kv());
  written_ = 0;
  prefilling_ = true;
}

// A cache holds nothing of the block yet: the first pass of a block behind the warm-up fills it.
bool Sequence::runs_canvas() const {
  const DecodingRule& decoding = spec_.decoding;
  if (decoding.cache == Cache::kNone || block_forwards_ == 0) return true;
  const int32_t filling = std::max(forwards_ - block_forwards_, decoding.vicinity_warmup);
  return decoding.cache == Cache::kVicinity && forwards_ <= filling;
}

Segment Sequence::DenoisingSegment() const {
  const DecodingRule& decoding = spec_.decoding;
  const int32_t length = static_cast<int32_t>(canvas_.size());
  Segment segment;
  segment.denoise = true;
  // What a device decides by itself must not change what it is asked.
  segment.repeats = !leads() && spec_.presence_penalty == 0.0f && spec_.frequency_penalty == 0.0f;
  if (procedure_->wants_shadow()) segment.shadow_rows = end_ - first_;
  if (spec_.grid != BlockGrid::kAfterPrompt) {
    segment.first_position = written_;
    segment.rows = (leads() ? first_ : end_) - written_;
    segment.keys = written_ + segment.rows;
    return segment;
  }
  segment.keys = segment.rows = length;
  if (decoding.cache == Cache::kNone) return segment;
  segment.repeats = segment.repeats && !runs_canvas();
  if (runs_canvas()) return segment;
  int32_t end = length;
  segment.first_position = first_;
  if (decoding.cache == Cache::kDual) end = end_;
  if (decoding.cache == Cache::kVicinity) {
    segment.first_position = std::max(0, first_ - decoding.vicinity_before);
    end = std::min(length, end_ + decoding.vicinity_after);
  }
  segment.rows = end - segment.first_position;
  return segment;
}

int32_t Sequence::denoise_rows() const {
  const Segment segment = DenoisingSegment();
  return (guided() ? 2 : 1) * segment.rows + segment.shadow_rows;
}

int32_t Sequence::denoise_keys() const { return DenoisingSegment().keys_held(); }

Segment Sequence::Next(int32_t rows) const {
  CHECK(!ended_);
  if (rows >= denoise_rows()) return DenoisingSegment();
  Segment segment;
  segment.first_position = written_;
  segment.rows = std::min(prefill_rows(), rows / prefill_unit() * prefill_unit());
  CHECK(segment.rows > 0);
  segment.keys = segment.first_position + segment.rows;
  return segment;
}

void Sequence::ApplyPrefill(const Segment& segment) {
  CHECK(!segment.denoise && segment.first_position == written_);
  written_ += segment.rows;
  CHECK(written_ <= first_);
}

// Sums over what stands in the answer, so that nothing depends on the order in which it was written.
void Sequence::AppendBiases(const RowAsk& ask, std::vector<TokenBias>& biases) const {
  const size_t first = biases.size();
  biases.insert(biases.end(), spec_.biases.begin(), spec_.biases.end());
  if (spec_.presence_penalty != 0.0f || spec_.frequency_penalty != 0.0f) AppendPenalties(ask, biases);
  procedure_->AppendBiases(ask.position, biases);
  const auto begin = biases.begin() + static_cast<ptrdiff_t>(first);
  std::stable_sort(begin, biases.end(), [](const TokenBias& a, const TokenBias& b) { return a.id < b.id; });
  size_t last = first;
  for (size_t i = first + 1; i < biases.size(); ++i) {
    if (biases[i].id == biases[last].id) {
      biases[last].bias += biases[i].bias;
    } else {
      biases[++last] = biases[i];
    }
  }
  if (biases.size() > first) biases.resize(last + 1);
}

void Sequence::AppendPenalties(const RowAsk& ask, std::vector<TokenBias>& biases) const {
  std::vector<TokenId> written;
  for (int32_t p = prompt_; p < std::min(tokens_end_, answer_end_); ++p) {
    const TokenId token = canvas_[static_cast<size_t>(p)];
    // What a row would replace does not speak against itself.
    if (token != spec_.mask_id && p != ask.position) written.push_back(token);
  }
  std::sort(written.begin(), written.end());
  for (size_t i = 0; i < written.size();) {
    size_t next = i;
    while (next < written.size() && written[next] == written[i]) ++next;
    const float times = static_cast<float>(next - i);
    biases.push_back({written[i], -spec_.presence_penalty - spec_.frequency_penalty * times});
    i = next;
  }
}

}  // namespace quicksilver

#include "kernels/cpu/candidate_kernel.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "common/check.h"
#include "common/status_macros.h"
#include "kernels/cpu/row_kernels.h"
#include "kernels/cpu/simd.h"

namespace quicksilver {
namespace {

using simd::Floats;
using simd::Ints;
using simd::kLanes;

constexpr float kInfinity = std::numeric_limits<float>::infinity();

/// No 1 - u of UniformDraw is smaller.
constexpr float kSmallestTail = 0x1p-53f;

int64_t RoundUp(int64_t count, int64_t unit) { return (count + unit - 1) / unit * unit; }

/// Larger logit first, then smaller id.
bool Precedes(const TopLogit& a, const TopLogit& b) { return a.logit > b.logit || (a.logit == b.logit && a.id < b.id); }

/// One panel of one request's logits.
struct PanelLogits {
  const CandidateRequest& request;
  const VocabularyShard& shard;
  int32_t first_id = 0;
  int64_t ids = 0;            // Real ids in the panel.
  float* values = nullptr;    // Padded to whole vectors with -inf.
  float* tempered = nullptr;  // e^((z - largest) / T), padded alike; only when T > 0.

  bool MayChoose(int64_t i) const { return first_id + i != shard.mask_id && first_id + i != request.suppressed_id; }
};

/// Writes the guided logits; false when one of them is NaN or +inf. unconditional may be nullptr.
QS_INLINE bool GuideLogits(const float* conditional, const float* unconditional, const PanelLogits& panel) {
  const Ints lane = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
  Ints bad = {};
  for (int64_t i = 0; i < panel.ids; i += kLanes) {
    const int64_t left = panel.ids - i;
    const bool whole = left >= kLanes;
    Floats z = whole ? simd::Load(conditional + i) : simd::LoadFirst(conditional + i, left);
    if (unconditional != nullptr) {
      const Floats u = whole ? simd::Load(unconditional + i) : simd::LoadFirst(unconditional + i, left);
      z = u + (panel.request.guidance + 1.0f) * (z - u);
    }
    if (!whole) z = lane < static_cast<int32_t>(left) ? z : simd::Splat(-kInfinity);
    bad |= ~(z < simd::Splat(kInfinity));
    simd::Store(panel.values + i, z);
  }
  return !simd::Any(bad);
}

bool IsFinite(const PanelLogits& panel) {
  for (int64_t i = 0; i < panel.ids; ++i) {
    const bool bad = !(panel.values[i] < kInfinity);
    if (bad && panel.first_id + i != panel.request.suppressed_id) return false;
  }
  return true;
}

/// Takes the logit of `id` out of the panel.
float TakeOut(const PanelLogits& panel, int32_t id) {
  const int64_t i = int64_t{id} - panel.first_id;
  if (i < 0 || i >= panel.ids) return -kInfinity;
  const float logit = panel.values[i];
  panel.values[i] = -kInfinity;
  return logit;
}

QS_INLINE float LargestLogit(const PanelLogits& panel) {
  Floats largest = simd::Splat(-kInfinity);
  for (int64_t i = 0; i < panel.ids; i += kLanes) largest = simd::Max(largest, simd::Load(panel.values + i));
  return simd::Largest(largest);
}

/// The first id that may be chosen and has this logit, as an index; panel.ids when there is none.
QS_INLINE int64_t FirstWith(const PanelLogits& panel, float logit) {
  for (int64_t i = 0; i < panel.ids; i += kLanes) {
    if (!simd::Any(simd::Load(panel.values + i) == simd::Splat(logit))) continue;
    for (int64_t k = i; k < std::min<int64_t>(panel.ids, i + kLanes); ++k) {
      if (panel.values[k] == logit && panel.MayChoose(k)) return k;
    }
  }
  return panel.ids;
}

/// `first`: an id with the largest logit. It is left out of the sums, where its 1 would swallow small terms.
QS_INLINE PanelSums SumLogits(const PanelLogits& panel, float largest, int64_t first) {
  if (largest == -kInfinity) return {.largest = largest};
  const bool tempered = panel.request.temperature > 0.0f;
  panel.values[first] = -kInfinity;
  Floats sum = {}, weighted_sum = {}, tempered_sum = {};
  for (int64_t i = 0; i < panel.ids; i += kLanes) {
    const Floats z = simd::Load(panel.values + i);
    const Floats e = simd::Exp(z - largest);
    sum += e;
    weighted_sum += e > Floats{} ? z * e : Floats{};  // -inf weighs nothing.
    if (tempered) {
      const Floats t = simd::Exp((z - largest) / panel.request.temperature);
      simd::Store(panel.tempered + i, t);
      tempered_sum += t;
    }
  }
  panel.values[first] = largest;
  if (tempered) panel.tempered[first] = 1.0f;
  return {largest, simd::Sum(sum), simd::Sum(weighted_sum), simd::Sum(tempered_sum)};
}

/// Lets one more logit into the list if it belongs there.
void PushTop(const TopLogit& next, int32_t top_count, LogitLeaders* leaders) {
  TopLogit* top = leaders->top;
  if (leaders->top_size == top_count) {
    if (!Precedes(next, top[0])) return;
    std::pop_heap(top, top + leaders->top_size--, Precedes);
  }
  top[leaders->top_size++] = next;
  std::push_heap(top, top + leaders->top_size, Precedes);
}

void MergeBest(const TopLogit& best, float second_logit, LogitLeaders* leaders) {
  if (leaders->best_id < 0 || Precedes(best, {leaders->best_logit, leaders->best_id})) {
    leaders->second_logit = std::max(second_logit, leaders->best_logit);
    leaders->best_logit = best.logit;
    leaders->best_id = best.id;
  } else {
    leaders->second_logit = std::max(leaders->second_logit, best.logit);
  }
}

void MergeSample(const TopLogit& sample, double score, LogitLeaders* leaders) {
  const bool better = leaders->sampled_id < 0 || score > leaders->sampled_score ||
                      (score == leaders->sampled_score && sample.id < leaders->sampled_id);
  if (!better) return;
  leaders->sampled_id = sample.id;
  leaders->sampled_logit = sample.logit;
  leaders->sampled_score = score;
}

QS_INLINE void UpdateBest(const PanelLogits& panel, float largest, int64_t first, LogitLeaders* leaders) {
  if (leaders->best_id >= 0 && largest < leaders->best_logit && largest <= leaders->second_logit) return;
  panel.values[first] = -kInfinity;
  const float second = LargestLogit(panel);
  panel.values[first] = largest;
  MergeBest({largest, panel.first_id + static_cast<int32_t>(first)}, second, leaders);
}

void UpdateTop(const PanelLogits& panel, float largest, int32_t top_count, LogitLeaders* leaders) {
  if (top_count == 0 || (leaders->top_size == top_count && largest < leaders->top[0].logit)) return;
  for (int64_t i = 0; i < panel.ids; ++i) {
    if (panel.MayChoose(i)) PushTop({panel.values[i], panel.first_id + static_cast<int32_t>(i)}, top_count, leaders);
  }
}

void TrySample(const PanelLogits& panel, int64_t i, LogitLeaders* leaders) {
  const int32_t id = panel.first_id + static_cast<int32_t>(i);
  const double score = static_cast<double>(panel.values[i]) / static_cast<double>(panel.request.temperature) +
                       GumbelDraw(panel.request.place, static_cast<uint32_t>(id));
  MergeSample({panel.values[i], id}, score, leaders);
}

QS_INLINE void MultiplyWide(uint32_t a, simd::Words b, simd::Words* low, simd::Words* high) {
  const simd::Longs product = __builtin_convertvector(b, simd::Longs) * uint64_t{a};
  *low = __builtin_convertvector(product, simd::Words);
  *high = __builtin_convertvector(product >> 32, simd::Words);
}

/// The upper 32 bits of the Gumbel draws of ids [id, id + kLanes).
QS_INLINE simd::Words HighWords(const DrawPlace& place, uint32_t id) {
  const simd::Words lane = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
  const simd::Words ids = lane + id;
  uint32_t k0 = static_cast<uint32_t>(place.seed), k1 = static_cast<uint32_t>(place.seed >> 32);
  simd::Words c0 = ids / 4, c1 = simd::Words{} + place.position, c2 = simd::Words{} + place.step;
  simd::Words c3 = simd::Words{} + ((place.choice << 8) | static_cast<uint32_t>(DrawPurpose::kGumbel));
  for (int round = 0; round < 10; ++round) {
    simd::Words low0, high0, low1, high1;
    MultiplyWide(0xD2511F53u, c0, &low0, &high0);
    MultiplyWide(0xCD9E8D57u, c2, &low1, &high1);
    c0 = high1 ^ c1 ^ k0;
    c2 = high0 ^ c3 ^ k1;
    c1 = low1;
    c3 = low0;
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
  const auto odd = (ids & 1) != 0, upper = (ids & 2) != 0;
  return upper ? (odd ? c3 : c2) : (odd ? c1 : c0);
}

/// 1 - u can only be at most this if the id is to beat the best score s so far: -ln u <= e^(z/T - s), and
/// 1 - u <= -ln u. To be multiplied by e^((z - largest)/T); the slack covers the floats.
float TailMax(const PanelLogits& panel, float largest, const LogitLeaders& leaders) {
  constexpr double kSlack = 1.001;
  return static_cast<float>(kSlack *
                            std::exp(largest / static_cast<double>(panel.request.temperature) - leaders.sampled_score));
}

// Two logarithms in double for every id would cost more than the LM head. The bound leaves a handful of ids to look at
// closely, and the upper 32 bits of the draw are enough to tell: 1 - u is at least the complement of them.
QS_INLINE void UpdateSample(const PanelLogits& panel, float largest, int64_t first, LogitLeaders* leaders) {
  TrySample(panel, first, leaders);
  if (largest == -kInfinity) return;
  float tail_max = TailMax(panel, largest, *leaders);
  for (int64_t i = 0; i < panel.ids; i += kLanes) {
    const Floats tails_max = simd::Load(panel.tempered + i) * tail_max;
    if (!simd::Any(tails_max >= simd::Splat(kSmallestTail))) continue;
    const simd::Words words = HighWords(panel.request.place, static_cast<uint32_t>(panel.first_id + i));
    const Floats tails_min = __builtin_convertvector(~words, Floats) * 0x1p-32f;
    if (!simd::Any(tails_min <= tails_max)) continue;
    for (int64_t k = i; k < std::min<int64_t>(panel.ids, i + kLanes); ++k) {
      if (tails_min[k - i] <= tails_max[k - i] && panel.MayChoose(k)) TrySample(panel, k, leaders);
    }
    tail_max = TailMax(panel, largest, *leaders);
  }
}

struct ReduceArguments {
  PanelLogits panel;
  const float* conditional;
  const float* unconditional;
  int32_t top_count;
  float* mask_logit;
};

QS_MULTIVERSIONED void ReducePanel(const ReduceArguments& arguments, LogitLeaders* leaders, PanelSums* sums) {
  const PanelLogits& panel = arguments.panel;
  if (!GuideLogits(arguments.conditional, arguments.unconditional, panel) && !IsFinite(panel)) {
    leaders->finite = false;
    return;
  }
  TakeOut(panel, panel.request.suppressed_id);
  const int64_t mask = int64_t{panel.shard.mask_id} - panel.first_id;
  if (mask >= 0 && mask < panel.ids) *arguments.mask_logit = TakeOut(panel, panel.shard.mask_id);
  const float largest = LargestLogit(panel);
  const int64_t first = FirstWith(panel, largest);
  if (first == panel.ids) return;  // Nothing to choose from here.
  *sums = SumLogits(panel, largest, first);
  UpdateBest(panel, largest, first, leaders);
  UpdateTop(panel, largest, arguments.top_count, leaders);
  if (panel.request.temperature > 0.0f) UpdateSample(panel, largest, first, leaders);
}

/// Adds all panels and the mask, in double, with the 1 of every largest logit.
void MergeSums(const PanelSums* sums, int64_t panels, float mask_logit, float temperature, Candidate* out) {
  double largest = mask_logit;
  for (int64_t p = 0; p < panels; ++p) largest = std::max<double>(largest, sums[p].largest);
  out->log_sum_exp = out->tempered_log_sum_exp = -kInfinity;
  if (largest == -kInfinity) return;
  const double divisor = temperature > 0.0f ? temperature : 1.0f;
  double sum = 0.0, weighted_sum = 0.0, tempered_sum = 0.0;
  const auto add = [&](const PanelSums& s) {
    if (s.largest == -kInfinity) return;
    const double factor = std::exp(s.largest - largest);
    sum += (1.0 + s.sum) * factor;
    weighted_sum += (double{s.largest} + s.weighted_sum) * factor;
    tempered_sum += (1.0 + s.tempered_sum) * std::exp((s.largest - largest) / divisor);
  };
  for (int64_t p = 0; p < panels; ++p) add(sums[p]);
  add({.largest = mask_logit});
  out->log_sum_exp = largest + std::log(sum);
  out->mean_logit = static_cast<float>(weighted_sum / sum);
  out->tempered_log_sum_exp = temperature > 0.0f ? largest / divisor + std::log(tempered_sum) : out->log_sum_exp;
}

}  // namespace

/// Gives every request a row of a tile, and its guide the next one of the same tile, so that both meet in a visit.
void CandidateReducer::PlaceRequests(const CandidateCall& call) {
  const int64_t tile_rows = gemm_.tile_rows();
  first_rows_.clear();
  tile_requests_.assign(1, 0);
  int64_t row = 0;
  for (int32_t r = 0; r < call.batch.count; ++r) {
    const CandidateRequest& request = call.batch.requests[r];
    CHECK(request.row >= -1 && request.row < call.hidden.rows && request.guide_row < call.hidden.rows);
    if (request.row < 0) {
      first_rows_.push_back(row);
      continue;
    }
    const int64_t needed = request.guide_row >= 0 ? 2 : 1;
    if (row % tile_rows + needed > tile_rows || (row > 0 && row % tile_rows == 0)) {
      row = RoundUp(row, tile_rows);
      tile_requests_.push_back(r);
    }
    first_rows_.push_back(row);
    row += needed;
  }
  tile_requests_.push_back(call.batch.count);

  const size_t row_bytes = static_cast<size_t>(call.hidden.cols) * ElementBytes(gemm_.compute_dtype());
  const size_t rows = static_cast<size_t>(RoundUp(row, tile_rows));
  char* packed = packed_rows_.Get(rows * row_bytes);
  std::memset(packed, 0, rows * row_bytes);
  tiles_.clear();
  for (size_t first = 0; first < rows; first += static_cast<size_t>(tile_rows)) {
    tiles_.push_back(packed + first * row_bytes);
  }
  const auto copy = [&](int32_t from, int64_t to) {
    const char* source = static_cast<const char*>(call.hidden.data) +
                         static_cast<size_t>(from * call.hidden.stride) * ElementBytes(call.hidden.dtype);
    ConvertRows(
        {source, 1, call.hidden.cols, call.hidden.stride, call.hidden.dtype},
        {packed + static_cast<size_t>(to) * row_bytes, 1, call.hidden.cols, call.hidden.cols, gemm_.compute_dtype()});
  };
  for (int32_t r = 0; r < call.batch.count; ++r) {
    if (call.batch.requests[r].row < 0) continue;
    copy(call.batch.requests[r].row, first_rows_[r]);
    if (call.batch.requests[r].guide_row >= 0) copy(call.batch.requests[r].guide_row, first_rows_[r] + 1);
  }
}

void CandidateReducer::ResetLeaders(const CandidateCall& call) {
  const size_t count = static_cast<size_t>(call.batch.count);
  const size_t lists = count * static_cast<size_t>(team_.threads());
  leaders_.assign(
      lists,
      {.best_logit = -kInfinity, .second_logit = -kInfinity, .sampled_logit = -kInfinity, .sampled_score = -kInfinity});
  TopLogit* top = top_lists_.Get(lists * static_cast<size_t>(call.top_count));
  for (size_t i = 0; i < lists; ++i) leaders_[i].top = top + i * static_cast<size_t>(call.top_count);
  sums_.assign(count * static_cast<size_t>(TiledGemm::Panels(call.weight)), {.largest = -kInfinity});
  mask_logits_.assign(count, -kInfinity);
}

void CandidateReducer::Visit(const CandidateCall& call, const TiledGemm::Product& product) {
  const int32_t first_id = call.shard.first_id + static_cast<int32_t>(product.first_col);
  const int64_t ids = std::min<int64_t>(product.cols, int64_t{call.shard.vocabulary} - first_id);
  if (ids <= 0) return;
  const int64_t padded = RoundUp(product.cols, kLanes);
  float* scratch = scratch_[product.thread].Get(static_cast<size_t>(2 * padded));
  for (int32_t r = tile_requests_[product.tile]; r < tile_requests_[product.tile + 1]; ++r) {
    const CandidateRequest& request = call.batch.requests[r];
    if (request.row < 0) continue;
    const float* row = product.products + first_rows_[r] % gemm_.tile_rows() * product.cols;
    const ReduceArguments arguments = {.panel = {.request = request,
                                                 .shard = call.shard,
                                                 .first_id = first_id,
                                                 .ids = ids,
                                                 .values = scratch,
                                                 .tempered = scratch + padded},
                                       .conditional = row,
                                       .unconditional = request.guide_row >= 0 ? row + product.cols : nullptr,
                                       .top_count = call.top_count,
                                       .mask_logit = &mask_logits_[r]};
    ReducePanel(arguments, &leaders_[static_cast<size_t>(product.thread) * call.batch.count + r],
                &sums_[static_cast<size_t>(r) * TiledGemm::Panels(call.weight) + product.panel]);
  }
}

void CandidateReducer::Finish(const CandidateCall& call, int32_t r) {
  LogitLeaders& all = leaders_[r];
  for (int32_t thread = 1; thread < team_.threads(); ++thread) {
    const LogitLeaders& one = leaders_[static_cast<size_t>(thread) * call.batch.count + r];
    all.finite = all.finite && one.finite;
    if (one.best_id >= 0) MergeBest({one.best_logit, one.best_id}, one.second_logit, &all);
    if (one.sampled_id >= 0) MergeSample({one.sampled_logit, one.sampled_id}, one.sampled_score, &all);
    for (int32_t i = 0; i < one.top_size; ++i) PushTop(one.top[i], call.top_count, &all);
  }
  Candidate& out = call.out[r];
  TopLogit* top = call.top + static_cast<int64_t>(r) * call.top_count;
  std::fill_n(top, call.top_count, TopLogit{-kInfinity, -1});
  out = {.best_logit = -kInfinity,
         .second_logit = -kInfinity,
         .sampled_logit = -kInfinity,
         .sampled_score = -kInfinity,
         .finite = all.finite ? 1 : 0};
  if (!all.finite) return;
  std::sort_heap(all.top, all.top + all.top_size, Precedes);
  std::copy_n(all.top, all.top_size, top);
  const float temperature = call.batch.requests[r].temperature;
  const int64_t panels = TiledGemm::Panels(call.weight);
  MergeSums(&sums_[static_cast<size_t>(r * panels)], panels, mask_logits_[r], temperature, &out);
  out.best_id = all.best_id;
  out.best_logit = all.best_logit;
  out.second_logit = all.second_logit;
  out.sampled_id = temperature > 0.0f ? all.sampled_id : all.best_id;
  out.sampled_logit = temperature > 0.0f ? all.sampled_logit : all.best_logit;
  out.sampled_score = temperature > 0.0f ? all.sampled_score : all.best_logit;
}

absl::Status CandidateReducer::Run(const CandidateCall& call) {
  if (call.batch.count == 0) return absl::OkStatus();
  PlaceRequests(call);
  ResetLeaders(call);
  RETURN_IF_ERROR(gemm_.Multiply(tiles_, call.weight, [&](const TiledGemm::Product& p) { Visit(call, p); }));
  for (int32_t r = 0; r < call.batch.count; ++r) Finish(call, r);
  return absl::OkStatus();
}

}  // namespace quicksilver

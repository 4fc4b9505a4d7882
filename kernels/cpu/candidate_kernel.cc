#include "kernels/cpu/candidate_kernel.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "absl/types/span.h"
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
  int64_t ids = 0;                    // Real ids in the panel.
  float* values = nullptr;            // Padded to whole vectors with -inf.
  float* tempered = nullptr;          // e^((z - largest) / T), padded alike; only when T > 0.
  const TokenBias* biases = nullptr;  // Those of the panel's ids.
  int64_t bias_count = 0;
  float* history = nullptr;  // [ids] of the request's slot, or nullptr.

  bool WeighsHistory() const { return history != nullptr && request.history_valid != 0; }
  bool IsForbidden(int64_t i) const {
    const auto id = static_cast<int32_t>(first_id + i);
    const TokenBias* const end = biases + bias_count;
    const TokenBias* const at =
        std::lower_bound(biases, end, id, [](const TokenBias& b, int32_t x) { return b.id < x; });
    return at != end && at->id == id && at->bias == -kInfinity;
  }
  bool MayChoose(int64_t i) const {
    if (first_id + i == shard.mask_id || first_id + i == request.suppressed_id) return false;
    return values[i] > -kInfinity || !IsForbidden(i);
  }
};

/// c tanh(z / c), or z when c is 0.
QS_INLINE Floats Cap(Floats z, float c) { return c > 0.0f ? c * simd::Tanh(z / c) : z; }

/// Writes the capped and guided logits; false when one of them is NaN or +inf. unconditional may be nullptr.
QS_INLINE bool GuideLogits(const float* conditional, const float* unconditional, const PanelLogits& panel) {
  const Ints lane = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
  Ints bad = {};
  for (int64_t i = 0; i < panel.ids; i += kLanes) {
    const int64_t left = panel.ids - i;
    const bool whole = left >= kLanes;
    Floats z = Cap(whole ? simd::Load(conditional + i) : simd::LoadFirst(conditional + i, left), panel.shard.soft_cap);
    if (unconditional != nullptr) {
      const Floats u =
          Cap(whole ? simd::Load(unconditional + i) : simd::LoadFirst(unconditional + i, left), panel.shard.soft_cap);
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
    if (bad && panel.first_id + i != panel.request.suppressed_id && !panel.IsForbidden(i)) return false;
  }
  return true;
}

/// False when a sum is NaN or +inf.
bool AddBiases(const PanelLogits& panel) {
  bool finite = true;
  for (const TokenBias* bias = panel.biases; bias != panel.biases + panel.bias_count; ++bias) {
    float& z = panel.values[bias->id - panel.first_id];
    z = bias->bias == -kInfinity ? -kInfinity : z + bias->bias;
    finite = finite && (z < kInfinity || bias->id == panel.request.suppressed_id);
  }
  return finite;
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
  const bool tempered = panel.request.temperature > 0.0f, history = panel.WeighsHistory();
  panel.values[first] = -kInfinity;
  Floats sum = {}, weighted_sum = {}, tempered_sum = {}, tempered_weighted_sum = {}, previous_sum = {};
  for (int64_t i = 0; i < panel.ids; i += kLanes) {
    const Floats below = simd::Load(panel.values + i) - largest;
    const Floats e = simd::Exp(below);
    sum += e;
    weighted_sum += e > Floats{} ? below * e : Floats{};  // -inf weighs nothing.
    if (tempered) {
      const Floats t = simd::Exp(below / panel.request.temperature);
      simd::Store(panel.tempered + i, t);
      tempered_sum += t;
      tempered_weighted_sum += t > Floats{} ? below * t : Floats{};
    }
    if (history) {
      const int64_t left = panel.ids - i;
      const Floats before = left >= kLanes ? simd::Load(panel.history + i) : simd::LoadFirst(panel.history + i, left);
      previous_sum += e > Floats{} ? (before - largest) * e : Floats{};
    }
  }
  panel.values[first] = largest;
  if (tempered) panel.tempered[first] = 1.0f;
  return {.largest = largest,
          .sum = simd::Sum(sum),
          .weighted_sum = simd::Sum(weighted_sum),
          .tempered_sum = simd::Sum(tempered_sum),
          .tempered_weighted_sum = simd::Sum(tempered_weighted_sum),
          .previous_sum = history ? simd::Sum(previous_sum) + (panel.history[first] - largest) : 0.0f};
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
  SingleLogits* singles;
};

/// Takes the mask's logit out of the panel, and looks at the one that is asked for.
void ReadSingles(const PanelLogits& panel, SingleLogits* singles) {
  const int64_t asked = int64_t{panel.request.asked_id} - panel.first_id;
  if (asked >= 0 && asked < panel.ids) singles->asked = panel.values[asked];
  const int64_t mask = int64_t{panel.shard.mask_id} - panel.first_id;
  if (mask < 0 || mask >= panel.ids) return;
  singles->mask = TakeOut(panel, panel.shard.mask_id);
  if (panel.WeighsHistory()) singles->mask_previous = panel.history[mask];
}

/// Keeps the panel's logits for the next step.
void KeepHistory(const PanelLogits& panel, const SingleLogits& singles) {
  if (panel.history == nullptr) return;
  std::copy_n(panel.values, panel.ids, panel.history);
  const int64_t mask = int64_t{panel.shard.mask_id} - panel.first_id;
  if (mask >= 0 && mask < panel.ids) panel.history[mask] = singles.mask;
}

QS_MULTIVERSIONED void ReducePanel(const ReduceArguments& arguments, LogitLeaders* leaders, PanelSums* sums) {
  const PanelLogits& panel = arguments.panel;
  const bool guided = GuideLogits(arguments.conditional, arguments.unconditional, panel) || IsFinite(panel);
  if (!guided || !AddBiases(panel)) {
    leaders->finite = false;
    return;
  }
  TakeOut(panel, panel.request.suppressed_id);
  ReadSingles(panel, arguments.singles);
  const float largest = LargestLogit(panel);
  const int64_t first = FirstWith(panel, largest);
  if (first < panel.ids) *sums = SumLogits(panel, largest, first);
  KeepHistory(panel, *arguments.singles);
  if (first == panel.ids) return;  // Nothing to choose from here.
  UpdateBest(panel, largest, first, leaders);
  UpdateTop(panel, largest, arguments.top_count, leaders);
  if (panel.request.temperature > 0.0f) UpdateSample(panel, largest, first, leaders);
}

/// Adds all panels and the mask, in double, with the 1 of every largest logit.
void MergeSums(const PanelSums* sums, int64_t panels, const SingleLogits& singles, const CandidateRequest& request,
               Candidate* out) {
  double largest = singles.mask;
  for (int64_t p = 0; p < panels; ++p) largest = std::max<double>(largest, sums[p].largest);
  out->log_sum_exp = out->tempered_log_sum_exp = -kInfinity;
  if (largest == -kInfinity) return;
  const bool tempered = request.temperature > 0.0f;
  double sum = 0.0, weighted_sum = 0.0, tempered_sum = 0.0, tempered_weighted_sum = 0.0, previous_sum = 0.0;
  const auto add = [&](const PanelSums& s) {
    if (s.largest == -kInfinity) return;
    const double below = s.largest - largest, factor = std::exp(below);
    sum += (1.0 + s.sum) * factor;
    weighted_sum += (s.weighted_sum + below * (1.0 + s.sum)) * factor;
    if (factor > 0.0) previous_sum += (s.previous_sum + below * (1.0 + s.sum)) * factor;
    if (!tempered) return;
    const double tempered_factor = std::exp(below / request.temperature);
    tempered_sum += (1.0 + s.tempered_sum) * tempered_factor;
    tempered_weighted_sum += (s.tempered_weighted_sum + below * (1.0 + s.tempered_sum)) * tempered_factor;
  };
  for (int64_t p = 0; p < panels; ++p) add(sums[p]);
  add({.largest = singles.mask, .previous_sum = singles.mask_previous - singles.mask});
  out->log_sum_exp = out->tempered_log_sum_exp = largest + std::log(sum);
  out->mean_logit = out->tempered_mean_logit = largest + weighted_sum / sum;
  if (request.history_slot >= 0 && request.history_valid != 0) out->mean_previous = largest + previous_sum / sum;
  if (!tempered) return;
  out->tempered_log_sum_exp = largest / request.temperature + std::log(tempered_sum);
  out->tempered_mean_logit = largest + tempered_weighted_sum / tempered_sum;
}

/// The request's biases of ids [first_id, first_id + ids).
absl::Span<const TokenBias> BiasesOf(const CandidateBatch& batch, const CandidateRequest& request, int64_t first_id,
                                     int64_t ids) {
  if (request.bias_count == 0) return {};
  const TokenBias* const first = batch.biases + request.first_bias;
  const TokenBias* const end = first + request.bias_count;
  const auto before = [](const TokenBias& bias, int64_t id) { return bias.id < id; };
  const TokenBias* const low = std::lower_bound(first, end, first_id, before);
  return {low, static_cast<size_t>(std::lower_bound(low, end, first_id + ids, before) - low)};
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
  singles_.assign(count, {});
}

void CandidateReducer::Visit(const CandidateCall& call, const TiledGemm::Product& product) {
  const int32_t first_id = call.shard.first_id + static_cast<int32_t>(product.first_col);
  const int64_t ids = std::min<int64_t>(product.cols, int64_t{call.shard.vocabulary} - first_id);
  if (ids <= 0) return;
  const int64_t padded = RoundUp(product.cols, kLanes);
  float* scratch = scratch_[product.thread].Get(0);
  for (int32_t r = tile_requests_[product.tile]; r < tile_requests_[product.tile + 1]; ++r) {
    const CandidateRequest& request = call.batch.requests[r];
    if (request.row < 0) continue;
    const float* row = product.products + first_rows_[r] % gemm_.tile_rows() * product.cols;
    const absl::Span<const TokenBias> biases = BiasesOf(call.batch, request, first_id, ids);
    float* const history =
        request.history_slot < 0
            ? nullptr
            : call.batch.history + request.history_slot * call.weight.out_features() + product.first_col;
    const ReduceArguments arguments = {.panel = {.request = request,
                                                 .shard = call.shard,
                                                 .first_id = first_id,
                                                 .ids = ids,
                                                 .values = scratch,
                                                 .tempered = scratch + padded,
                                                 .biases = biases.data(),
                                                 .bias_count = static_cast<int64_t>(biases.size()),
                                                 .history = history},
                                       .conditional = row,
                                       .unconditional = request.guide_row >= 0 ? row + product.cols : nullptr,
                                       .top_count = call.top_count,
                                       .singles = &singles_[r]};
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
         .asked_logit = singles_[r].asked,
         .finite = all.finite ? 1 : 0};
  if (!all.finite) return;
  std::sort_heap(all.top, all.top + all.top_size, Precedes);
  std::copy_n(all.top, all.top_size, top);
  const float temperature = call.batch.requests[r].temperature;
  const int64_t panels = TiledGemm::Panels(call.weight);
  MergeSums(&sums_[static_cast<size_t>(r * panels)], panels, singles_[r], call.batch.requests[r], &out);
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
  const int64_t padded = RoundUp(TiledGemm::PanelColumnsMax(call.weight), kLanes);
  for (Workspace<float>& scratch : scratch_) scratch.Get(static_cast<size_t>(2 * padded));
  RETURN_IF_ERROR(gemm_.Multiply(tiles_, call.weight, [&](const TiledGemm::Product& p) { Visit(call, p); }));
  for (int32_t r = 0; r < call.batch.count; ++r) Finish(call, r);
  return absl::OkStatus();
}

}  // namespace quicksilver

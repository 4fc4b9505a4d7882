#include "tests/kernels/cuda/candidates_run.h"

#include <cmath>
#include <cstring>
#include <memory>

#include "kernels/cpu/cpu_ops.h"

namespace quicksilver {

LogitsProduct CopyOfLogits(const float* logits, int64_t columns, cudaStream_t stream) {
  return [=](int64_t first, Matrix tile) {
    for (int64_t row = 0; row < tile.rows; ++row) {
      const cudaError_t error =
          cudaMemcpyAsync(static_cast<float*>(tile.data) + row * tile.stride, logits + row * columns + first,
                          static_cast<size_t>(tile.cols) * sizeof(float), cudaMemcpyDeviceToDevice, stream);
      if (error != cudaSuccess) return error;
    }
    return cudaSuccess;
  };
}

CandidatesOutput RunCandidatesOn(const CandidatesCase& c, size_t tile_bytes) {
  const size_t count = c.requests.size(), top_count = static_cast<size_t>(c.top_count);
  const DeviceCopy<float> logits(c.logits.values);
  const DeviceCopy<CandidateRequest> requests(c.requests);
  const DeviceCopy<Candidate> out{std::vector<Candidate>(count)};
  const DeviceCopy<TopLogit> top{std::vector<TopLogit>(count * top_count)};
  const DeviceCopy<TokenBias> biases(c.biases);
  const DeviceCopy<float> history(c.history);
  const CandidatesArguments arguments = {.rows = c.logits.rows,
                                         .columns = c.logits.cols,
                                         .shard = c.shard,
                                         .batch = {.requests = requests.data(),
                                                   .count = static_cast<int32_t>(count),
                                                   .biases = biases.data(),
                                                   .history = history.data()},
                                         .top_count = c.top_count,
                                         .out = out.data(),
                                         .top = top.data()};
  const size_t bytes = CandidatesWorkspaceBytes(arguments, tile_bytes);
  constexpr size_t kGuard = 4096;
  const DeviceCopy<uint8_t> workspace{std::vector<uint8_t>(bytes + kGuard, 0xA5)};
  EXPECT_EQ(RunCandidates(arguments, CopyOfLogits(logits.data(), c.logits.cols, nullptr), workspace.data(), nullptr,
                          tile_bytes),
            cudaSuccess);
  EXPECT_EQ(cudaStreamSynchronize(nullptr), cudaSuccess);
  const std::vector<uint8_t> after = workspace.Get();
  EXPECT_EQ(std::count(after.begin() + static_cast<int64_t>(bytes), after.end(), 0xA5), int64_t{kGuard});
  return {out.Get(), top.Get(), history.Get()};
}

CandidatesOutput CandidatesReference(const CandidatesCase& c) {
  const std::unique_ptr<Ops> ops = MakeReferenceOps(DType::kF32);
  CandidatesOutput results;
  results.top.resize(c.requests.size() * static_cast<size_t>(c.top_count));
  results.history = c.history;
  for (size_t r = 0; r < c.requests.size(); ++r) {
    CandidateRequest request = c.requests[r];
    std::vector<int32_t> rows;
    for (int32_t* row : {&request.row, &request.guide_row}) {
      if (*row < 0) continue;
      rows.push_back(*row);
      *row = static_cast<int32_t>(rows.size()) - 1;
    }
    const int64_t H = std::max<int64_t>(static_cast<int64_t>(rows.size()), 1);
    HostMatrix hidden(H, H), weight(c.logits.cols, H);
    for (int64_t h = 0; h < H; ++h) {
      hidden.at(h, h) = 1.0f;
      for (int64_t id = 0; id < c.logits.cols && !rows.empty(); ++id) weight.at(id, h) = c.logits.at(rows[h], id);
    }
    const auto prepared =
        ops->PrepareWeight({weight.values.data(), weight.rows, H, H, DType::kF32}, WeightRole::kLayer).value();
    ops->Candidates({hidden.values.data(), H, H, H, DType::kF32}, *prepared, c.shard,
                    {.requests = &request, .count = 1, .biases = c.biases.data(), .history = results.history.data()},
                    c.top_count, &results.candidates.emplace_back(),
                    results.top.data() + r * static_cast<size_t>(c.top_count));
  }
  return results;
}

std::vector<CandidateRequest> MixedRequests(int32_t count, int32_t rows, int32_t first_id, int32_t ids) {
  std::vector<CandidateRequest> requests;
  const float temperatures[] = {0.0f, 1.0f, 0.2f, 0.0f, 2.5f, 0.7f};
  for (int32_t r = 0; r < count; ++r) {
    requests.push_back({.row = r % 7 == 5 || rows == 0 ? -1 : (r * 5) % rows,
                        .guide_row = r % 3 == 1 && rows > 0 ? (r + 1) % rows : -1,
                        .guidance = 0.25f * static_cast<float>(r % 5),
                        .temperature = temperatures[r % 6],
                        .suppressed_id = r % 4 == 2 ? first_id + (r * 37) % ids : -1,
                        .place = {.seed = 0x123456789ABCDEFu,
                                  .choice = static_cast<uint32_t>(r % 2),
                                  .position = static_cast<uint32_t>(r),
                                  .step = 3}});
  }
  return requests;
}

void AddTables(CandidatesCase& c) {
  const int32_t ids = static_cast<int32_t>(c.logits.cols), first_id = c.shard.first_id;
  c.history = RandomMatrix(static_cast<int64_t>(c.requests.size()), ids, 77, 4.0f).values;
  for (size_t r = 0; r < c.requests.size(); ++r) {
    CandidateRequest& request = c.requests[r];
    const auto turn = static_cast<int32_t>(r);
    request.asked_id = first_id + turn * 101 % (ids + 1) - 1;
    if (turn % 4 != 1) {
      request.history_slot = turn;
      request.history_valid = turn % 3 != 0 ? 1 : 0;
    }
    if (turn % 5 == 2) continue;
    request.first_bias = static_cast<int32_t>(c.biases.size());
    for (int32_t id = first_id - 3 + turn % 3; id < first_id + ids + 5; id += 1 + turn * 29 % 71) {
      c.biases.push_back({id, id % 7 == 1 ? -INFINITY : static_cast<float>(id % 33 - 16) / 4.0f});
    }
    request.bias_count = static_cast<int32_t>(c.biases.size()) - request.first_bias;
  }
}

bool SameBits(const Candidate& a, const Candidate& b) {
  const auto same = [](auto x, auto y) { return std::memcmp(&x, &y, sizeof x) == 0; };
  return same(a.best_id, b.best_id) && same(a.best_logit, b.best_logit) && same(a.second_logit, b.second_logit) &&
         same(a.log_sum_exp, b.log_sum_exp) && same(a.mean_logit, b.mean_logit) && same(a.sampled_id, b.sampled_id) &&
         same(a.sampled_logit, b.sampled_logit) && same(a.tempered_log_sum_exp, b.tempered_log_sum_exp) &&
         same(a.sampled_score, b.sampled_score) && same(a.finite, b.finite) &&
         same(a.tempered_mean_logit, b.tempered_mean_logit) && same(a.mean_previous, b.mean_previous) &&
         same(a.asked_logit, b.asked_logit);
}

bool SameBits(const CandidatesOutput& a, const CandidatesOutput& b) {
  return std::equal(a.candidates.begin(), a.candidates.end(), b.candidates.begin(), b.candidates.end(),
                    [](const Candidate& x, const Candidate& y) { return SameBits(x, y); }) &&
         std::equal(a.top.begin(), a.top.end(), b.top.begin(), b.top.end(),
                    [](const TopLogit& x, const TopLogit& y) { return x.id == y.id && x.logit == y.logit; });
}

}  // namespace quicksilver

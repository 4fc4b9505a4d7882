#pragma once

#include <vector>

#include "tests/kernels/ops_fixture.h"

namespace quicksilver {

struct CandidateResults {
  std::vector<Candidate> candidates;
  std::vector<std::vector<TopLogit>> top;  ///< One list a request.
};

/// What requests point into.
struct CandidateTables {
  std::vector<TokenBias> biases;
  std::vector<float>* history = nullptr;  ///< [slots, V/tp], read and written.
};

inline CandidateResults RunCandidates(OpsTestBase& test, const HostMatrix& hidden, const GemmWeight& weight,
                                      const VocabularyShard& shard, const std::vector<CandidateRequest>& requests,
                                      int32_t top_count = 0, const CandidateTables& tables = {}) {
  const DeviceMatrix device_hidden = test.Put(hidden);
  const DeviceArray<CandidateRequest> device_requests = test.PutArray(requests);
  const DeviceArray<TokenBias> biases = test.PutArray(tables.biases);
  const DeviceArray<float> history = test.PutArray(tables.history != nullptr ? *tables.history : std::vector<float>());
  const DeviceArray<Candidate> out = test.PutArray(std::vector<Candidate>(requests.size()));
  const DeviceArray<TopLogit> top = test.PutArray(std::vector<TopLogit>(requests.size() * top_count));
  const CandidateBatch batch = {.requests = device_requests.data(),
                                .count = static_cast<int32_t>(requests.size()),
                                .biases = biases.data(),
                                .history = history.data()};
  test.ops().Candidates(device_hidden, weight, shard, batch, top_count, out.data(),
                        top_count > 0 ? top.data() : nullptr);
  CandidateResults results{test.GetArray(out), {}};
  const std::vector<TopLogit> all = test.GetArray(top);
  for (size_t r = 0; r < requests.size(); ++r) {
    results.top.emplace_back(all.begin() + r * top_count, all.begin() + (r + 1) * top_count);
  }
  if (tables.history != nullptr) *tables.history = test.GetArray(history);
  return results;
}

}  // namespace quicksilver

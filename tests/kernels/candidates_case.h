#pragma once

#include <vector>

#include "tests/kernels/ops_fixture.h"

namespace quicksilver {

struct CandidateResults {
  std::vector<Candidate> candidates;
  std::vector<std::vector<TopLogit>> top;  ///< One list a request.
};

inline CandidateResults RunCandidates(OpsTestBase& test, const HostMatrix& hidden, const GemmWeight& weight,
                                      const VocabularyShard& shard, const std::vector<CandidateRequest>& requests,
                                      int32_t top_count = 0) {
  const DeviceMatrix device_hidden = test.Put(hidden);
  const DeviceArray<CandidateRequest> device_requests = test.PutArray(requests);
  const DeviceArray<Candidate> out = test.PutArray(std::vector<Candidate>(requests.size()));
  const DeviceArray<TopLogit> top = test.PutArray(std::vector<TopLogit>(requests.size() * top_count));
  test.ops().Candidates(device_hidden, weight, shard,
                        {.requests = device_requests.data(), .count = static_cast<int32_t>(requests.size())}, top_count,
                        out.data(), top_count > 0 ? top.data() : nullptr);
  CandidateResults results{test.GetArray(out), {}};
  const std::vector<TopLogit> all = test.GetArray(top);
  for (size_t r = 0; r < requests.size(); ++r) {
    results.top.emplace_back(all.begin() + r * top_count, all.begin() + (r + 1) * top_count);
  }
  return results;
}

}  // namespace quicksilver

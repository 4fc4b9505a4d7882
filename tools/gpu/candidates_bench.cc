#include "tools/gpu/candidates_bench.h"

#include <memory>
#include <vector>

#include "common/status_macros.h"
#include "tools/gpu/bench_model.h"
#include "tools/gpu/device_timer.h"

namespace quicksilver {
namespace {

absl::StatusOr<std::unique_ptr<GemmWeight>> MakeHead(Ops& ops, const CandidatesCase& of) {
  ASSIGN_OR_RETURN(const std::vector<uint16_t> numbers, RandomNumbers(of.vocabulary, of.hidden));
  return ops.PrepareWeight({numbers.data(), of.vocabulary, of.hidden, of.hidden, DType::kBf16}, WeightRole::kHead);
}

}  // namespace

absl::StatusOr<CandidatesTimes> TimeCandidates(TimedOps& ops, const CandidatesCase& of, int rounds) {
  ASSIGN_OR_RETURN(const std::unique_ptr<GemmWeight> head, MakeHead(ops, of));
  ASSIGN_OR_RETURN(const std::vector<uint16_t> numbers, RandomNumbers(of.rows, of.hidden));
  std::vector<CandidateRequest> asked(static_cast<size_t>(of.rows));
  for (size_t i = 0; i < asked.size(); ++i) asked[i].row = static_cast<int32_t>(i);
  const auto rows = static_cast<size_t>(of.rows);
  ASSIGN_OR_RETURN(const DeviceBuffer hidden, ops.Allocate(numbers.size() * sizeof(uint16_t)));
  ASSIGN_OR_RETURN(const DeviceBuffer requests, ops.Allocate(rows * sizeof(CandidateRequest)));
  ASSIGN_OR_RETURN(const DeviceBuffer out, ops.Allocate(rows * sizeof(Candidate)));
  ASSIGN_OR_RETURN(const DeviceBuffer logits, ops.Allocate(rows * static_cast<size_t>(of.vocabulary) * sizeof(float)));
  ops.Upload(numbers.data(), hidden.data(), hidden.bytes());
  ops.Upload(asked.data(), requests.data(), requests.bytes());

  const ConstMatrix x(hidden.data(), of.rows, of.hidden, of.hidden, DType::kBf16);
  const Matrix all = {logits.data(), of.rows, of.vocabulary, of.vocabulary, DType::kF32};
  const VocabularyShard shard = {.first_id = 0, .vocabulary = static_cast<int32_t>(of.vocabulary)};
  const auto reduce = [&] {
    ops.Candidates(
        x, *head, shard,
        {.requests = static_cast<const CandidateRequest*>(requests.data()), .count = static_cast<int32_t>(of.rows)},
        /*top_count=*/0, static_cast<Candidate*>(out.data()), nullptr);
  };
  const auto multiply = [&] { ops.Gemm(x, *head, all); };
  reduce();  // Makes workspaces and tries out products, which cannot be recorded.
  multiply();
  RETURN_IF_ERROR(ops.Synchronize());
  ASSIGN_OR_RETURN(const std::unique_ptr<Program> reduction, ops.Record(reduce, nullptr));
  ASSIGN_OR_RETURN(const std::unique_ptr<Program> product, ops.Record(multiply, nullptr));
  std::vector<double> reduction_seconds, product_seconds;
  for (int i = 0; i < rounds; ++i) {
    for (const bool first : {true, false}) {
      ASSIGN_OR_RETURN(const std::vector<double> seconds, TimeOnDevice(ops.stream(), /*warm_up=*/1, 1, [&] {
                         (first ? reduction : product)->Launch();
                         return ops.status();
                       }));
      (first ? reduction_seconds : product_seconds).push_back(seconds[0]);
    }
  }
  RETURN_IF_ERROR(ops.Synchronize());
  return CandidatesTimes{Median(reduction_seconds), Median(product_seconds)};
}

}  // namespace quicksilver

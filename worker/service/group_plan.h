#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "kernels/tensor.h"
#include "quicksilver/v1/worker.pb.h"
#include "worker/checkpoint/checkpoint.h"
#include "worker/engine/engine.h"
#include "worker/model/model_spec.h"
#include "worker/model/sharding.h"
#include "worker/options.h"
#include "worker/service/machine.h"
#include "worker/service/memory_plan.h"

namespace quicksilver {

/// Everything that a rank decides before it forms its group: sizes from the options, the model and the machine.
struct GroupPlan {
  ModelSpec spec;
  Machine machine;
  Precision precision;
  int threads = 1;
  int32_t page_size = 0;
  int32_t pages = 0;
  int32_t model_length = 0;  ///< Positions of the longest sequence.
  EngineOptions engine;
  RankBudget budget;
  MemoryPlan memory;
  std::string model_digest;
  std::string tokenizer_digest;  ///< Hex SHA-256 of tokenizer.json; empty without one.
};

struct OpenModel {
  std::unique_ptr<Checkpoint> checkpoint;
  ModelSpec spec;
};

/// Reads and checks the headers of the checkpoint, not its data. NotFound; InvalidArgument naming file, tensor,
/// expected and found.
absl::StatusOr<OpenModel> OpenModelForServing(const WorkerOptions& options);

/// OutOfRange, naming flag, value and bound: a setting that does not fit the model or the machine. ResourceExhausted,
/// with the numbers: the memory of a device does not suffice. The digests are left out.
absl::StatusOr<GroupPlan> MakeGroupPlan(const WorkerOptions& options, const OpenModel& model, const Machine& machine);

/// Fills in the digests: reads tokenizer.json and, of checkpoints up to kWholeDigestBytesMax, all weights.
absl::Status ReadDigests(const OpenModel& model, GroupPlan& plan);

/// Larger checkpoints are told apart by their config, tensor headers and sizes: reading tens of gigabytes twice would
/// double the time to start.
inline constexpr size_t kWholeDigestBytesMax = size_t{1} << 30;

/// What every rank of a group must have equal, by name.
std::map<std::string, std::string> AgreementOf(const WorkerOptions& options, const GroupPlan& plan);

/// What the group tells coordinators. `kernels`: Ops::name().
v1::GroupInfo DescribeGroup(const WorkerOptions& options, const GroupPlan& plan, const std::string& kernels);

/// Logs what this rank is about to allocate.
void LogMemoryPlan(const WorkerOptions& options, const GroupPlan& plan);

}  // namespace quicksilver

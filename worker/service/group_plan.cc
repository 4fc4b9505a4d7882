#include "worker/service/group_plan.h"

#include <openssl/evp.h>

#include <algorithm>
#include <utility>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "common/check.h"
#include "common/log.h"
#include "common/options.h"
#include "common/status_macros.h"
#include "worker/checkpoint/file.h"
#include "worker/decoding/decoding_rule.h"
#include "worker/engine/decoding_wire.h"
#include "worker/model/load_spec.h"
#include "worker/model/tensor_plan.h"

namespace quicksilver {
namespace {

constexpr int64_t kDefaultKvBytesMax = int64_t{1} << 30;
constexpr int64_t kDefaultLengthMax = 4096;
constexpr int32_t kDefaultPageMin = 16;
constexpr int32_t kDefaultStepRows = 512;
constexpr int32_t kDefaultStepRowsCuda = 2048;
constexpr int32_t kDefaultStepsPerLaunchCuda = 8;
constexpr uint64_t kTokenizerBytesMax = 256 << 20;

std::string Sha256Hex(const std::string& text) {
  unsigned char digest[EVP_MAX_MD_SIZE];
  unsigned int length = 0;
  CHECK(EVP_Digest(text.data(), text.size(), digest, &length, EVP_sha256(), nullptr) == 1);
  return absl::BytesToHexString(absl::string_view(reinterpret_cast<const char*>(digest), length));
}

absl::StatusOr<std::string> TokenizerDigest(const std::string& directory) {
  const absl::StatusOr<std::string> text = ReadSmallFile(directory + "/tokenizer.json", kTokenizerBytesMax);
  if (absl::IsNotFound(text.status())) return std::string();
  RETURN_IF_ERROR(text.status());
  return Sha256Hex(*text);
}

size_t DataBytes(const Checkpoint& checkpoint) {
  size_t bytes = 0;
  for (const StoredTensor& tensor : checkpoint.tensors()) bytes += tensor.bytes;
  return bytes;
}

bool Bidirectional(const ModelSpec& spec) { return spec.grid == BlockGrid::kAfterPrompt; }

absl::StatusOr<int32_t> PageSize(const WorkerOptions& options, const ModelSpec& spec) {
  const int32_t block = spec.grid == BlockGrid::kAbsolute ? spec.block_length : 1;
  if (options.page_size == 0) return (kDefaultPageMin + block - 1) / block * block;
  if (options.page_size % block != 0) {
    return absl::OutOfRangeError(absl::StrCat("--page-size: ", options.page_size,
                                              " is not a multiple of the model's block length (", block, ")"));
  }
  return options.page_size;
}

// 0: what the device has left.
int64_t Pages(const WorkerOptions& options, const ModelSpec& spec, const RankBudget& budget, const Machine& machine,
              int32_t page_size) {
  if (options.kv_pages > 0) return options.kv_pages;
  if (options.planned_pages > 0) return options.planned_pages;
  int64_t positions = options.kv_tokens;
  if (positions == 0) {
    if (machine.cuda) return 0;
    positions = options.sequences_max * std::min(spec.positions_max, kDefaultLengthMax);
    positions = std::min(positions, kDefaultKvBytesMax / std::max<int64_t>(budget.kv_position_bytes, 1));
  }
  return std::max<int64_t>((positions + page_size - 1) / page_size, 1);
}

absl::StatusOr<Precision> ChoosePrecision(const WorkerOptions& options, const Machine& machine) {
  Precision precision;
  const bool narrow = options.dtype == "bf16" || (options.dtype == "auto" && machine.cuda);
  precision.activations = narrow ? DType::kBf16 : DType::kF32;
  precision.fp8_layers = options.quantization == "fp8";
  precision.int8_layers = options.quantization == "int8";
  precision.deterministic = options.deterministic == "on" || (options.deterministic == "auto" && !machine.cuda);
  if (!machine.cuda && precision.fp8_layers) {
    return absl::OutOfRangeError(
        "--quantization: fp8 needs a GPU, and the ranks compute on the processor; take int8 there");
  }
  if (machine.cuda && precision.int8_layers) {
    return absl::OutOfRangeError(absl::StrCat("--quantization: int8 is for processors, and the ranks compute on ",
                                              machine.device_name, "; take fp8 there"));
  }
  if (precision.int8_layers && !machine.int8_products) {
    return absl::OutOfRangeError(
        "--quantization: int8 needs a processor that adds up products of bytes exactly (AVX-512 VNNI or AVX-VNNI), "
        "which this one does not");
  }
  if (!machine.cuda && !precision.deterministic) {
    return absl::OutOfRangeError("--deterministic: off, but a processor has no other mode");
  }
  if (precision.fp8_layers && !narrow) return absl::OutOfRangeError("--dtype: f32 does not go with --quantization=fp8");
  return precision;
}

absl::StatusOr<int32_t> StepRows(const WorkerOptions& options, const ModelSpec& spec, const Machine& machine) {
  const int32_t usual = machine.cuda ? kDefaultStepRowsCuda : kDefaultStepRows;
  // A closed block is written by the forward that first denoises the next one (worker/decoding/sequence.h).
  const int32_t least = Bidirectional(spec) ? 1 : 2 * spec.block_length;
  if (options.step_rows_max == 0) {
    if (!Bidirectional(spec)) return std::max(usual, least);
    return static_cast<int32_t>(std::clamp<int64_t>(spec.positions_max, usual, kDefaultLengthMax));
  }
  if (options.step_rows_max < least) {
    return absl::OutOfRangeError(absl::StrCat("--step-rows-max: ", options.step_rows_max, " is less than ", least,
                                              ", two of the model's blocks"));
  }
  return options.step_rows_max;
}

const char* DTypeName(DType dtype) { return dtype == DType::kF32 ? "f32" : "bf16"; }

std::string Mebibytes(int64_t bytes) { return absl::StrFormat("%.1f MiB", static_cast<double>(bytes) / (1 << 20)); }

}  // namespace

absl::StatusOr<OpenModel> OpenModelForServing(const WorkerOptions& options) {
  OpenModel model;
  ASSIGN_OR_RETURN(model.checkpoint, Checkpoint::Open(options.model));
  ASSIGN_OR_RETURN(model.spec, LoadModelSpec(*model.checkpoint, {.block_length = options.block_length,
                                                                 .mask_id = options.mask_id,
                                                                 .expert_parallel = options.expert_parallel}));
  RETURN_IF_ERROR(CheckCheckpoint(model.spec, *model.checkpoint, options.tensor_parallel_size));
  return model;
}

absl::StatusOr<GroupPlan> MakeGroupPlan(const WorkerOptions& options, const OpenModel& model, const Machine& machine) {
  GroupPlan plan;
  plan.spec = model.spec;
  plan.machine = machine;
  ASSIGN_OR_RETURN(plan.precision, ChoosePrecision(options, machine));
  plan.threads = options.threads > 0 ? options.threads : std::max(1, machine.cores / options.tensor_parallel_size);
  ASSIGN_OR_RETURN(const Shard shard, MakeShard(plan.spec, std::max(options.rank, 0), options.tensor_parallel_size));
  plan.budget = BudgetOf(plan.spec, shard, plan.precision.activations);
  ASSIGN_OR_RETURN(plan.page_size, PageSize(options, plan.spec));
  ASSIGN_OR_RETURN(plan.engine.step_rows_max, StepRows(options, plan.spec, machine));
  plan.memory =
      PlanMemory(plan.spec, shard, plan.precision, machine, options.device_memory_fraction, plan.engine.step_rows_max,
                 plan.page_size, Pages(options, plan.spec, plan.budget, machine, plan.page_size));
  // Positions are counted in 32 bits.
  plan.memory.pages = std::min<int64_t>(plan.memory.pages, INT32_MAX / plan.page_size);
  plan.pages = static_cast<int32_t>(plan.memory.pages);
  // A rank of a launcher may share its device, of which it knows nothing; the launcher has checked.
  if (options.planned_pages == 0) RETURN_IF_ERROR(CheckMemory(plan.memory, machine, options.device_memory_fraction));
  int64_t length = std::min<int64_t>(plan.spec.positions_max, int64_t{plan.pages} * plan.page_size);
  if (Bidirectional(plan.spec)) length = std::min<int64_t>(length, plan.engine.step_rows_max);
  plan.model_length = static_cast<int32_t>(length);
  plan.engine.sequences_max = options.sequences_max;
  plan.engine.waiting_max = options.waiting_max;
  plan.engine.share_prefixes = options.prefix_cache == "on";
  plan.engine.step_time_target = absl::Milliseconds(options.step_time_target_ms);
  plan.engine.steps_per_launch_max = options.steps_per_launch > 0 ? options.steps_per_launch
                                     : machine.cuda               ? kDefaultStepsPerLaunchCuda
                                                                  : 1;
  plan.engine.peer_timeout = absl::Seconds(options.peer_timeout_seconds);
  // The leader's beat must come well before its followers give it up.
  plan.engine.idle_beat = std::min(absl::Seconds(1), plan.engine.peer_timeout / 3);
  return plan;
}

absl::Status ReadDigests(const OpenModel& model, GroupPlan& plan) {
  const Checkpoint& checkpoint = *model.checkpoint;
  ASSIGN_OR_RETURN(plan.model_digest, checkpoint.Digest(/*whole=*/DataBytes(checkpoint) <= kWholeDigestBytesMax));
  ASSIGN_OR_RETURN(plan.tokenizer_digest, TokenizerDigest(checkpoint.directory()));
  return absl::OkStatus();
}

std::map<std::string, std::string> AgreementOf(const WorkerOptions& options, const GroupPlan& plan) {
  return {{"model digest", plan.model_digest},
          {"tokenizer digest", plan.tokenizer_digest},
          {"build", VersionString()},
          {"served model name", options.served_model_name},
          {"tensor parallel size", absl::StrCat(options.tensor_parallel_size)},
          {"device", plan.machine.device_name},
          {"dtype", DTypeName(plan.precision.activations)},
          {"quantization", options.quantization},
          {"deterministic", plan.precision.deterministic ? "on" : "off"},
          {"collectives", options.collectives},
          {"steps per launch", absl::StrCat(plan.engine.steps_per_launch_max)},
          {"block length", absl::StrCat(plan.spec.block_length)},
          {"mask id", absl::StrCat(plan.spec.mask_id)},
          {"expert parallel", plan.spec.moe.expert_parallel ? "on" : "off"},
          {"page size", absl::StrCat(plan.page_size)},
          {"KV pages", absl::StrCat(plan.pages)},
          {"sequences max", absl::StrCat(plan.engine.sequences_max)},
          {"waiting max", absl::StrCat(plan.engine.waiting_max)},
          {"prefix cache", options.prefix_cache},
          {"step rows max", absl::StrCat(plan.engine.step_rows_max)}};
}

v1::GroupInfo DescribeGroup(const WorkerOptions& options, const GroupPlan& plan, const std::string& kernels) {
  v1::GroupInfo info;
  info.set_group(options.group_name);
  info.set_epoch(options.epoch);
  // Page counts and bounds change no byte of an answer and are left out. Threads do on a processor: they share the LM
  // head in panels whose sums are added panel by panel.
  info.set_fingerprint(Sha256Hex(
      absl::StrCat("model=", plan.model_digest, "\nbuild=", VersionString(), "\ntp=", options.tensor_parallel_size,
                   "\ndevice=", plan.machine.device_name, "\ndtype=", DTypeName(plan.precision.activations),
                   "\nquantization=", options.quantization, "\nkernels=", kernels,
                   "\nthreads=", plan.machine.cuda ? 0 : plan.threads, "\nblock=", plan.spec.block_length,
                   "\nmask=", plan.spec.mask_id, "\nexperts=", plan.spec.moe.expert_parallel ? "whole" : "columns",
                   "\ndeterministic=", plan.precision.deterministic ? 1 : 0, "\n")));
  info.set_model(options.served_model_name);
  info.set_architecture(plan.spec.architecture);
  info.set_tokenizer_digest(plan.tokenizer_digest);
  info.set_tensor_parallel_size(static_cast<uint32_t>(options.tensor_parallel_size));
  info.set_vocabulary(static_cast<uint32_t>(plan.spec.vocabulary));
  info.set_mask_id(plan.spec.mask_id);
  info.set_block_length(static_cast<uint32_t>(plan.spec.block_length));
  info.set_max_model_len(static_cast<uint32_t>(plan.model_length));
  info.set_sequences_max(static_cast<uint32_t>(plan.engine.sequences_max));
  info.set_pages_total(static_cast<uint64_t>(plan.pages));
  info.set_page_size(static_cast<uint32_t>(plan.page_size));
  for (const TokenId id : plan.spec.stop_ids) info.add_stop_ids(id);
  info.set_family(plan.spec.family);
  for (const Policy policy : AllowedPolicies(plan.spec)) info.add_policies(WireOf(policy));
  info.set_infill(Bidirectional(plan.spec));
  info.set_grid(plan.spec.grid == BlockGrid::kAbsolute      ? v1::GRID_ABSOLUTE
                : plan.spec.grid == BlockGrid::kAfterPrompt ? v1::GRID_AFTER_PROMPT
                                                            : v1::GRID_CANVAS);
  return info;
}

void LogMemoryPlan(const WorkerOptions& options, const GroupPlan& plan) {
  const MemoryPlan& memory = plan.memory;
  const int64_t positions = int64_t{plan.pages} * plan.page_size;
  LogInfo("memory plan", {{"rank", options.rank},
                          {"device", plan.machine.device_name},
                          {"weights", Mebibytes(memory.weights)},
                          {"kv_cache", Mebibytes(memory.kv())},
                          {"kv_pages", plan.pages},
                          {"page_size", plan.page_size},
                          {"workspace_at_most", Mebibytes(memory.workspace)},
                          {"budget", memory.budget == 0 ? "not bounded" : Mebibytes(memory.budget)},
                          {"threads", plan.threads},
                          {"model_length", plan.model_length},
                          {"maximum_concurrency",
                           absl::StrFormat("%.1f sequences of %d tokens",
                                           static_cast<double>(positions) / plan.model_length, plan.model_length)}});
}

}  // namespace quicksilver

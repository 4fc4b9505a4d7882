#include "tools/inspect.h"

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cstdio>
#include <nlohmann/json.hpp>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "common/exit_codes.h"
#include "common/status_macros.h"
#include "worker/checkpoint/checkpoint.h"
#include "worker/model/load_spec.h"
#include "worker/model/sharding.h"
#include "worker/model/tensor_plan.h"

namespace quicksilver {
namespace {

struct Options {
  std::string directory;
  int ranks = 1;
  int block = 0;
  int mask = -1;
  bool expert_parallel = false;
  int page_size = 0;
  int rows = 0;
  int context = 0;
  double bandwidth = 3.0;  // TB/s
  double peak = 800.0;     // TFLOP/s
  bool float_activations = false;
  bool digest = false;
  bool json = false;
};

/// Everything that is printed, in either form.
struct Report {
  ModelSpec spec;
  int64_t parameters = 0;
  int64_t tensors = 0;
  int64_t files_bytes = 0;
  std::string dtype;
  std::string digest;
  Shard shard;
  RankBudget rank;
  int64_t rows = 0;
  int64_t context = 0;
  int64_t page_size = 0;
  int64_t expert_bytes = 0;  // Of the experts that the step's rows choose on average.
  int64_t step_bytes = 0;    // Weights touched once and the KV cache of one sequence.
  double step_flops = 0.0;
  double floor_bytes_us = 0.0;
  double floor_flops_us = 0.0;
};

absl::StatusOr<Report> Inspect(const Options& options) {
  Report report;
  ASSIGN_OR_RETURN(const std::unique_ptr<Checkpoint> checkpoint, Checkpoint::Open(options.directory));
  ASSIGN_OR_RETURN(report.spec, LoadModelSpec(*checkpoint, {.block_length = options.block,
                                                            .mask_id = options.mask,
                                                            .expert_parallel = options.expert_parallel}));
  const ModelSpec& spec = report.spec;
  RETURN_IF_ERROR(CheckCheckpoint(spec, *checkpoint, options.ranks));
  ASSIGN_OR_RETURN(report.shard, MakeShard(spec, 0, options.ranks));
  report.rank = BudgetOf(spec, report.shard, options.float_activations ? DType::kF32 : DType::kBf16);
  for (const ExpectedTensor& tensor : ExpectedTensors(spec)) {
    const StoredTensor& stored = *checkpoint->Find(tensor.name);
    report.parameters += static_cast<int64_t>(stored.bytes / StoredBytes(stored.type));
    report.files_bytes += static_cast<int64_t>(stored.bytes);
    ++report.tensors;
    if (report.dtype.empty()) report.dtype = StoredTypeName(stored.type);
  }
  if (options.digest) {
    ASSIGN_OR_RETURN(report.digest, checkpoint->Digest(/*whole=*/true));
  }
  const bool block_causal = spec.grid == BlockGrid::kAbsolute;
  const int64_t block_pages = (64 + spec.block_length - 1) / spec.block_length;
  report.page_size = options.page_size > 0 ? options.page_size : block_causal ? block_pages * spec.block_length : 64;
  // Without an exact cache every position is a row of every step.
  report.context = options.context > 0 ? options.context : std::min<int64_t>(1024, spec.positions_max);
  report.rows = options.rows > 0 ? options.rows : block_causal ? spec.block_length : report.context;
  report.expert_bytes =
      static_cast<int64_t>(static_cast<double>(report.rank.expert_bytes) * ExpertsTouched(spec.moe, report.rows));
  report.step_bytes =
      report.rank.step_weight_bytes + report.expert_bytes + report.context * report.rank.kv_position_bytes;
  report.step_flops =
      static_cast<double>(report.rows) *
      (static_cast<double>(report.rank.row_flops) + static_cast<double>(report.context * report.rank.attention_flops));
  report.floor_bytes_us = static_cast<double>(report.step_bytes) / (options.bandwidth * 1e12) * 1e6;
  report.floor_flops_us = report.step_flops / (options.peak * 1e12) * 1e6;
  return report;
}

int64_t RotarySize(const ModelSpec& spec) { return spec.rotary_size > 0 ? spec.rotary_size : spec.head_size; }

const char* AttentionName(const ModelSpec& spec) {
  if (spec.grid == BlockGrid::kAfterPrompt) return "full";
  if (spec.grid == BlockGrid::kCanvas) return "canvas";
  return spec.block_length == 1 ? "causal" : "block_causal";
}

nlohmann::ordered_json ExpertsToJson(const Report& report) {
  const MoeSpec& moe = report.spec.moe;
  nlohmann::ordered_json json = {{"count", moe.experts},
                                 {"chosen", moe.routing.chosen},
                                 {"mlp", moe.mlp},
                                 {"shared_mlp", moe.shared_mlp},
                                 {"first_layer", moe.first_layer},
                                 {"score", moe.routing.score == RoutingRule::Score::kSigmoid ? "sigmoid" : "softmax"},
                                 {"bias", moe.expert_bias},
                                 {"stored", moe.stacked ? "stacked" : "singly"},
                                 {"rank_experts", report.shard.experts},
                                 {"rank_mlp", report.shard.expert_mlp},
                                 {"rank_bytes", report.rank.expert_bytes},
                                 {"step_bytes", report.expert_bytes}};
  if (moe.routing.groups > 0) {
    json["groups"] = moe.routing.groups;
    json["groups_kept"] = moe.routing.groups_kept;
  }
  if (moe.routing.pool_block > 0) json["pool_experts"] = moe.routing.pool_experts;
  return json;
}

nlohmann::ordered_json ToJson(const Report& report, const Options& options) {
  const ModelSpec& spec = report.spec;
  nlohmann::ordered_json json = {{"architecture", spec.architecture},
                                 {"family", spec.family},
                                 {"parameters", report.parameters},
                                 {"tensors", report.tensors},
                                 {"dtype", report.dtype},
                                 {"weight_bytes", report.files_bytes},
                                 {"hidden", spec.hidden},
                                 {"layers", spec.layers},
                                 {"heads", spec.heads},
                                 {"kv_heads", spec.kv_heads},
                                 {"head_size", spec.head_size},
                                 {"mlp", spec.mlp},
                                 {"vocabulary", spec.vocabulary},
                                 {"tokens", spec.tokens},
                                 {"tied", spec.tied},
                                 {"positions_max", spec.positions_max},
                                 {"qkv_bias", spec.qkv_bias},
                                 {"head_norms", spec.head_norms},
                                 {"rotary_size", RotarySize(spec)},
                                 {"attention", AttentionName(spec)},
                                 {"block_length", spec.block_length},
                                 {"shift", spec.shift},
                                 {"mask_id", spec.mask_id},
                                 {"stop_ids", spec.stop_ids},
                                 {"tensor_parallel_size", report.shard.ranks},
                                 {"rank",
                                  {{"heads", report.shard.heads},
                                   {"kv_heads", report.shard.kv_heads},
                                   {"mlp", report.shard.mlp},
                                   {"vocabulary_rows", report.shard.vocabulary_rows},
                                   {"embedding", report.shard.embedding_replicated ? "whole" : "sharded"},
                                   {"weight_bytes", report.rank.weight_bytes},
                                   {"kv_bytes_per_token", report.rank.kv_position_bytes},
                                   {"page_size", report.page_size},
                                   {"kv_bytes_per_page", report.rank.kv_position_bytes * report.page_size},
                                   {"activation_dtype", options.float_activations ? "f32" : "bf16"}}},
                                 {"step",
                                  {{"rows", report.rows},
                                   {"context", report.context},
                                   {"all_reduces", report.rank.all_reduces},
                                   {"all_reduce_bytes", report.rank.all_reduce_row_bytes * report.rows},
                                   {"bytes", report.step_bytes},
                                   {"flops", report.step_flops},
                                   {"memory_bandwidth_tb_per_s", options.bandwidth},
                                   {"peak_tflop_per_s", options.peak},
                                   {"floor_us", std::max(report.floor_bytes_us, report.floor_flops_us)}}}};
  if (spec.moe.experts > 0) json["experts"] = ExpertsToJson(report);
  if (spec.delete_id >= 0) json["delete_id"] = spec.delete_id;
  if (spec.insert_id >= 0) json["insert_id"] = spec.insert_id;
  if (!report.digest.empty()) json["digest"] = report.digest;
  return json;
}

/// E.g. "1.50 GB"; decimal units, as memory bandwidths are given.
std::string Bytes(int64_t bytes) {
  const char* units[] = {"B", "kB", "MB", "GB", "TB"};
  double value = static_cast<double>(bytes);
  size_t unit = 0;
  for (; value >= 1000.0 && unit + 1 < std::size(units); ++unit) value /= 1000.0;
  return unit == 0 ? absl::StrFormat("%d B", bytes) : absl::StrFormat("%.2f %s", value, units[unit]);
}

std::string AttentionText(const ModelSpec& spec) {
  switch (spec.grid) {
    case BlockGrid::kAbsolute:
      return spec.block_length == 1 ? "causal" : absl::StrFormat("block-causal, block %d", spec.block_length);
    case BlockGrid::kAfterPrompt:
      return absl::StrFormat("bidirectional, default block %d", spec.block_length);
    case BlockGrid::kCanvas:
      return absl::StrFormat("causal with a bidirectional canvas of %d", spec.block_length);
  }
  return "";
}

std::string ExpertsText(const MoeSpec& moe) {
  std::string text =
      absl::StrFormat("%d of width %d from layer %d on, %d a row by %s", moe.experts, moe.mlp, moe.first_layer,
                      moe.routing.chosen, moe.routing.score == RoutingRule::Score::kSigmoid ? "sigmoid" : "softmax");
  if (moe.expert_bias) absl::StrAppend(&text, " with bias");
  if (moe.routing.groups > 0) {
    absl::StrAppend(&text, ", from ", moe.routing.groups_kept, " of ", moe.routing.groups, " groups");
  }
  if (moe.routing.pool_block > 0) absl::StrAppend(&text, ", from ", moe.routing.pool_experts, " a block");
  if (moe.shared_mlp > 0) absl::StrAppend(&text, ", and a shared one of width ", moe.shared_mlp);
  return text + (moe.stacked ? ", stored in stacks" : "");
}

void PrintModel(const Report& report) {
  const ModelSpec& spec = report.spec;
  std::printf("model        %s (family %s), %s parameters in %d tensors, %s, %s\n", spec.architecture.c_str(),
              spec.family.c_str(), absl::StrFormat("%d", report.parameters).c_str(), static_cast<int>(report.tensors),
              report.dtype.c_str(), Bytes(report.files_bytes).c_str());
  std::printf("sizes        %s\n",
              absl::StrFormat("H %d, L %d, nh %d, nkv %d, hd %d, I %d, V %d (%d real), %s head, up to %d positions",
                              spec.hidden, spec.layers, spec.heads, spec.kv_heads, spec.head_size, spec.mlp,
                              spec.vocabulary, spec.tokens, spec.tied ? "tied" : "own", spec.positions_max)
                  .c_str());
  std::printf("attention    %s, %s prediction%s%s%s\n", AttentionText(spec).c_str(),
              spec.shift ? "next-position" : "same-position", spec.qkv_bias ? ", biased q, k and v" : "",
              spec.head_norms ? ", normed heads" : "",
              spec.rotary_size > 0 ? absl::StrFormat(", %d rotated dimensions", spec.rotary_size).c_str() : "");
  if (spec.moe.experts > 0) std::printf("experts      %s\n", ExpertsText(spec.moe).c_str());
  std::printf(
      "tokens       %s, stop %s%s\n", spec.mask_id < 0 ? "no mask" : absl::StrFormat("mask %d", spec.mask_id).c_str(),
      spec.stop_ids.empty() ? "none" : absl::StrJoin(spec.stop_ids, " ").c_str(),
      spec.delete_id < 0 ? "" : absl::StrFormat(", delete %d, insert %d", spec.delete_id, spec.insert_id).c_str());
  if (!report.digest.empty()) std::printf("digest       %s\n", report.digest.c_str());
}

void PrintRank(const Report& report, const Options& options) {
  const Shard& shard = report.shard;
  const RankBudget& rank = report.rank;
  std::printf("each rank    of %d: %d heads, %d KV heads%s, %d MLP columns, %d vocabulary rows, %s embedding\n",
              shard.ranks, static_cast<int>(shard.heads), static_cast<int>(shard.kv_heads),
              shard.ranks > report.spec.kv_heads ? " (shared with other ranks)" : "", static_cast<int>(shard.mlp),
              static_cast<int>(shard.vocabulary_rows), shard.embedding_replicated ? "whole" : "sharded");
  if (shard.experts > 0) {
    std::printf("  experts    %d with %d columns each, %s\n", static_cast<int>(shard.experts),
                static_cast<int>(shard.expert_mlp), Bytes(rank.expert_bytes).c_str());
  }
  std::printf("  weights    %s as stored\n", Bytes(rank.weight_bytes).c_str());
  std::printf("  KV cache   %s a token, %s a page of %d, in %s\n", Bytes(rank.kv_position_bytes).c_str(),
              Bytes(rank.kv_position_bytes * report.page_size).c_str(), static_cast<int>(report.page_size),
              options.float_activations ? "f32" : "bf16");
}

void PrintStep(const Report& report, const Options& options) {
  std::printf("a step       of %d rows that sees %d positions\n", static_cast<int>(report.rows),
              static_cast<int>(report.context));
  std::printf("  all-reduce %s in %d calls\n", Bytes(report.rank.all_reduce_row_bytes * report.rows).c_str(),
              static_cast<int>(report.rank.all_reduces));
  std::printf("  floor      max(bytes / bandwidth, flops / peak) = max(%s / %.2f TB/s, %.3g TFLOP / %.0f TFLOP/s)\n",
              Bytes(report.step_bytes).c_str(), options.bandwidth, report.step_flops / 1e12, options.peak);
  std::printf("             = max(%.1f us, %.1f us) = %.1f us; bytes are %s of weights and %s of KV cache\n",
              report.floor_bytes_us, report.floor_flops_us, std::max(report.floor_bytes_us, report.floor_flops_us),
              Bytes(report.rank.step_weight_bytes + report.expert_bytes).c_str(),
              Bytes(report.context * report.rank.kv_position_bytes).c_str());
}

void AddOptions(CLI::App& app, Options& options) {
  app.add_option("directory", options.directory, "Checkpoint directory")->required();
  app.add_option("--tensor-parallel-size", options.ranks, "Ranks that share the model")->capture_default_str();
  app.add_option("--block-length", options.block, "Block of the model, where config.json does not state it")
      ->check(CLI::Range(1, 256));
  app.add_option("--mask-id", options.mask, "The mask token, where the checkpoint does not state it")
      ->check(CLI::Range(0, (1 << 24) - 1));
  app.add_flag("--expert-parallel", options.expert_parallel, "Whole experts by rank instead of columns of all");
  app.add_option("--page-size", options.page_size, "Positions of a KV page")->check(CLI::Range(1, 1 << 16));
  app.add_option("--rows", options.rows, "Rows of the step (default: one block; bidirectional models: the context)")
      ->check(CLI::Range(1, 1 << 20));
  app.add_option("--context", options.context,
                 "Positions that the step sees (default: 1024, or all that the model has)")
      ->check(CLI::Range(1, 1 << 24));
  app.add_option("--memory-bandwidth", options.bandwidth, "TB/s (default: about what an H100 reaches)")
      ->check(CLI::Range(1e-6, 1e6))
      ->capture_default_str();
  app.add_option("--peak", options.peak, "TFLOP/s (default: about what an H100 reaches in bf16)")
      ->check(CLI::Range(1e-6, 1e9))
      ->capture_default_str();
  app.add_flag("--float", options.float_activations, "Activations and KV cache in f32");
  app.add_flag("--digest", options.digest, "Read all data and print its SHA-256");
  app.add_flag("--json", options.json, "Machine-readable");
}

}  // namespace

int RunInspect(const std::vector<std::string>& arguments) {
  Options options;
  CLI::App app("Shows what a checkpoint holds and needs, and whether it can be served.", "quicksilver inspect");
  AddOptions(app, options);
  try {
    app.parse(std::vector<std::string>(arguments.rbegin(), arguments.rend()));
  } catch (const CLI::ParseError& error) {
    return app.exit(error) == 0 ? kExitOk : kExitUsage;
  }
  const absl::StatusOr<Report> report = Inspect(options);
  if (!report.ok()) {
    std::fprintf(stderr, "quicksilver inspect: %s\n", std::string(report.status().message()).c_str());
    return kExitModel;
  }
  if (options.json) {
    std::printf("%s\n", ToJson(*report, options).dump(2).c_str());
    return kExitOk;
  }
  PrintModel(*report);
  PrintRank(*report, options);
  PrintStep(*report, options);
  return kExitOk;
}

}  // namespace quicksilver

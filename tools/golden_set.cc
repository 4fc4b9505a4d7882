#include "tools/golden_set.h"

#include <algorithm>
#include <map>
#include <nlohmann/json.hpp>
#include <set>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "common/status_macros.h"
#include "worker/checkpoint/file.h"

namespace quicksilver {
namespace {

using nlohmann::json;

constexpr uint64_t kFileBytesMax = 64 << 20;

absl::StatusOr<json> ReadJson(const std::string& path) {
  ASSIGN_OR_RETURN(const std::string text, ReadSmallFile(path, kFileBytesMax));
  json parsed = json::parse(text, nullptr, /*allow_exceptions=*/false);
  if (parsed.is_discarded()) return absl::InvalidArgumentError(absl::StrCat(path, ": not JSON"));
  return parsed;
}

/// The first key of `params` that is not among `known`; a value that switches its feature off does not count.
std::string UnknownParameter(const json& params, const std::set<std::string>& known) {
  for (const auto& [key, value] : params.items()) {
    const bool zero = (key == "temperature" || key == "alg_temp" || key == "cfg_scale") && value == 0;
    const bool off = value.is_null() || value == false || zero;
    if (!known.contains(key) && !off) return key;
  }
  return "";
}

/// Fills in what a kind says beyond its policy; takes note of the parameters that it has read.
class DecodingReader {
 public:
  DecodingReader(const json& params, v1::Submit& submit)
      : params_(params), submit_(submit), decoding_(*submit.mutable_decoding()) {}

  /// Why the kind cannot be run, or an empty string.
  std::string Read(const std::string& kind);

 private:
  bool Has(const char* key) {
    known_.insert(key);
    return params_.contains(key) && !params_[key].is_null();
  }
  float Number(const char* key, float missing) { return Has(key) ? params_[key].get<float>() : missing; }
  uint32_t Count(const char* key, uint32_t missing) { return Has(key) ? params_[key].get<uint32_t>() : missing; }
  bool Flag(const char* key) { return Has(key) && params_[key].get<bool>(); }
  std::string Text(const char* key) { return Has(key) ? params_[key].get<std::string>() : ""; }

  void ReadLengths();
  void ReadThreshold() {
    if (Has("threshold")) decoding_.set_threshold(Number("threshold", 0.0f));
  }
  void ReadSteps(const char* key) {
    if (Has(key)) decoding_.set_steps(Count(key, 0));
  }
  /// An eos_id alone does not end a decoding.
  void ReadEarlyStop() {
    if (Flag("early_stop")) submit_.add_stop_ids(params_.at("eos_id").get<int32_t>());
    known_.insert("eos_id");
  }
  void ReadStops() {
    if (!Has("stop")) return;
    for (const json& id : params_["stop"]) submit_.add_stop_ids(id.get<int32_t>());
  }
  std::string ReadFastDllm(v1::Cache cache);
  std::string ReadBlockwise();
  std::string ReadDream();
  std::string ReadDreamBlock();
  std::string ReadLlada2();
  std::string ReadLlada21();
  std::string ReadSdar();
  std::string ReadKind(const std::string& kind);

  const json& params_;
  v1::Submit& submit_;
  v1::Decoding& decoding_;
  std::set<std::string> known_;
};

std::string DecodingReader::Read(const std::string& kind) {
  decoding_.set_finish_blocks(true);
  if (const std::string why = ReadKind(kind); !why.empty()) return why;
  ReadLengths();
  const std::string unknown = UnknownParameter(params_, known_);
  return unknown.empty() ? "" : absl::StrCat("parameter ", unknown);
}

void DecodingReader::ReadLengths() {
  submit_.set_max_tokens(Count("gen_length", 0));
  if (Has("block_length")) decoding_.set_block_length(Count("block_length", 0));
}

std::string DecodingReader::ReadKind(const std::string& kind) {
  if (kind == "llada.generate") {
    decoding_.set_policy(v1::POLICY_STATIC);
    decoding_.set_guidance_scale(Number("cfg_scale", 0.0f));
    ReadSteps("steps");
    return "";
  }
  if (kind == "fastdllm.none") return ReadFastDllm(v1::CACHE_NONE);
  if (kind == "fastdllm.prefix") return ReadFastDllm(v1::CACHE_PREFIX);
  if (kind == "fastdllm.dual") return ReadFastDllm(v1::CACHE_DUAL);
  if (kind == "dinfer.blockwise") return ReadBlockwise();
  if (kind == "dinfer.block_diffusion") {
    decoding_.set_policy(v1::POLICY_THRESHOLD);
    ReadThreshold();
    ReadEarlyStop();
    return "";
  }
  if (kind == "dream.generate") return ReadDream();
  if (kind == "fastdllm.dream_threshold") {
    decoding_.set_policy(v1::POLICY_QUOTA_THRESHOLD);
    ReadSteps("steps");
    ReadThreshold();
    return "";
  }
  if (kind == "fastdllm.dream_block") return ReadDreamBlock();
  if (kind == "llada2.generate") return ReadLlada2();
  if (kind == "llada21.generate") return ReadLlada21();
  if (kind == "sdar.bd3") return ReadSdar();
  if (kind == "sdar.sequential") {
    decoding_.set_policy(v1::POLICY_SEQUENTIAL);
    ReadSteps("denoising_steps");
    ReadStops();
    return "";
  }
  return absl::StrCat("kind ", kind);
}

// With a threshold the schedule is without effect, and may not suit our checks.
std::string DecodingReader::ReadFastDllm(v1::Cache cache) {
  decoding_.set_cache(cache);
  const bool scheduled = !Has("threshold");
  decoding_.set_policy(scheduled ? v1::POLICY_STATIC : v1::POLICY_THRESHOLD);
  if (Has("steps") && scheduled) ReadSteps("steps");
  ReadThreshold();
  return "";
}

std::string DecodingReader::ReadBlockwise() {
  const std::string decoder = Text("decoder"), cache = Text("cache");
  if (decoder == "threshold") {
    decoding_.set_policy(v1::POLICY_THRESHOLD);
  } else if (decoder == "hierarchy") {
    decoding_.set_policy(v1::POLICY_HIERARCHICAL);
    if (Has("low_threshold")) decoding_.set_low_threshold(Number("low_threshold", 0.0f));
  } else if (decoder == "credit") {
    decoding_.set_policy(v1::POLICY_CREDIT);
  } else {
    return absl::StrCat("decoder ", decoder);
  }
  ReadThreshold();
  if (!cache.empty() && cache != "prefix" && cache != "dual") return absl::StrCat("cache ", cache);
  decoding_.set_cache(cache == "prefix" ? v1::CACHE_PREFIX : cache == "dual" ? v1::CACHE_DUAL : v1::CACHE_NONE);
  if (Has("vicinity")) {
    decoding_.set_cache(v1::CACHE_VICINITY);
    decoding_.set_vicinity_before(params_["vicinity"].at(0).get<uint32_t>());
    decoding_.set_vicinity_after(params_["vicinity"].at(1).get<uint32_t>());
    decoding_.set_vicinity_warmup(params_["vicinity"].at(2).get<uint32_t>());
  }
  ReadEarlyStop();
  return "";
}

std::string DecodingReader::ReadDream() {
  static const std::map<std::string, v1::Policy> algorithms = {{"maskgit_plus", v1::POLICY_MASKGIT_PLUS},
                                                               {"topk_margin", v1::POLICY_TOPK_MARGIN},
                                                               {"entropy", v1::POLICY_ENTROPY}};
  const auto found = algorithms.find(Text("alg"));
  if (found == algorithms.end()) return absl::StrCat("alg ", Text("alg"));
  decoding_.set_policy(found->second);
  decoding_.set_confidence_source(v1::CONFIDENCE_SOURCE_PROCESSED);
  ReadSteps("steps");
  submit_.mutable_sampling()->set_top_k(Count("top_k", 0));
  submit_.mutable_sampling()->set_top_p(Number("top_p", 1.0f));
  return "";
}

std::string DecodingReader::ReadDreamBlock() {
  const std::string algorithm = Text("alg");
  if (algorithm == "confidence_threshold") {
    decoding_.set_policy(v1::POLICY_THRESHOLD);
    ReadThreshold();
    known_.insert("steps");
  } else if (algorithm == "entropy") {
    decoding_.set_policy(v1::POLICY_ENTROPY);
    decoding_.set_confidence_source(v1::CONFIDENCE_SOURCE_PROCESSED);
    ReadSteps("steps");
  } else {
    return absl::StrCat("alg ", algorithm);
  }
  decoding_.set_cache(Flag("dual_cache") ? v1::CACHE_DUAL : v1::CACHE_PREFIX);
  return "";
}

// More steps than a block has positions are as many as it has: each commits at least one.
std::string DecodingReader::ReadLlada2() {
  decoding_.set_policy(v1::POLICY_DYNAMIC);
  const uint32_t block = Count("block_length", 32);
  uint32_t steps = Count("steps", block);
  steps = std::min(steps, Count("gen_length", 0) / std::max(1u, Count("minimal_topk", 1)));
  decoding_.set_steps(std::clamp(steps, 1u, block));
  ReadThreshold();
  if (Has("eos_id")) submit_.add_stop_ids(params_["eos_id"].get<int32_t>());
  decoding_.set_finish_blocks(!Flag("eos_early_stop"));
  return "";
}

std::string DecodingReader::ReadLlada21() {
  decoding_.set_policy(v1::POLICY_TOKEN_EDIT);
  decoding_.set_edit(Has("editing_threshold") ? v1::EDIT_THRESHOLD : v1::EDIT_OFF);
  if (Has("editing_threshold")) decoding_.set_edit_threshold(Number("editing_threshold", 0.0f));
  if (Has("max_post_steps")) decoding_.set_post_steps_max(Count("max_post_steps", 0));
  if (Has("num_to_transfer")) decoding_.set_commits_min(Count("num_to_transfer", 1));
  ReadThreshold();
  if (Has("eos_id")) submit_.add_stop_ids(params_["eos_id"].get<int32_t>());
  return "";
}

std::string DecodingReader::ReadSdar() {
  const bool dynamic = Number("threshold", 1.0f) < 1.0f;
  decoding_.set_policy(dynamic ? v1::POLICY_DYNAMIC : v1::POLICY_STATIC);
  if (dynamic) ReadThreshold();
  ReadSteps("denoising_steps");
  ReadStops();
  return "";
}

/// Families whose blocks are counted from position 0, so that a checkpoint serves one block length.
bool IsBlockCausal(const std::string& kind) {
  return kind == "dinfer.block_diffusion" || absl::StartsWith(kind, "llada2") || absl::StartsWith(kind, "sdar.");
}

/// Recorded steps of row `row`, whose prompt begins behind `padding` columns.
std::vector<std::vector<GoldenCommit>> ReadSteps(const json& steps, bool batched, int row, int32_t padding) {
  std::vector<std::vector<GoldenCommit>> read;
  for (const json& step : steps) {
    std::vector<GoldenCommit> commits;
    for (const json& decided : step.at("decided")) {
      const size_t first = batched ? 1 : 0;
      if (batched && decided.at(0) != row) continue;
      commits.push_back({decided.at(first).get<int32_t>() - padding, decided.at(first + 1).get<int32_t>(),
                         decided.at(first + 2).get<float>()});
    }
    if (commits.empty()) continue;
    std::sort(commits.begin(), commits.end(),
              [](const GoldenCommit& a, const GoldenCommit& b) { return a.position < b.position; });
    read.push_back(std::move(commits));
  }
  return read;
}

absl::StatusOr<GoldenTrace> ReadTrace(const std::string& directory, const json& entry) {
  GoldenTrace trace;
  const std::string file = entry.at("file").get<std::string>();
  trace.family = entry.at("family").get<std::string>();
  trace.kind = entry.at("kind").get<std::string>();
  trace.name = file;
  ASSIGN_OR_RETURN(const json recorded, ReadJson(absl::StrCat(directory, "/", file)));
  v1::Submit submit;
  submit.set_provisional(true);
  submit.mutable_sampling()->set_top_p(1.0f);
  const json& params = recorded.at("params");
  if (const std::string why = DecodingReader(params, submit).Read(trace.kind); !why.empty()) {
    trace.unsupported = absl::StrCat(why, " is not supported");
    return trace;
  }
  if (IsBlockCausal(trace.kind)) trace.grid_block = params.at("block_length").get<int32_t>();
  if (const auto mask = recorded.find("mask_id"); mask != recorded.end() && mask->is_number_integer()) {
    trace.mask_id = mask->get<int32_t>();
  }
  const json& prompts = recorded.at("prompts");
  size_t padded = 0;
  for (const json& prompt : prompts) padded = std::max(padded, prompt.size());
  for (size_t i = 0; i < prompts.size(); ++i) {
    GoldenRow& row = trace.rows.emplace_back();
    row.submit = submit;
    for (const json& id : prompts[i]) row.submit.add_prompt_ids(id.get<int32_t>());
    const int32_t padding = static_cast<int32_t>(padded - prompts[i].size());
    row.steps = ReadSteps(recorded.at("steps"), prompts.size() > 1, static_cast<int>(i), padding);
  }
  return trace;
}

absl::StatusOr<GoldenSet> ReadManifest(const std::string& directory, const json& manifest) {
  GoldenSet set;
  for (const json& entry : manifest.at("checkpoints")) {
    const std::string dir = entry.at("dir").get<std::string>();
    set.checkpoints.push_back(
        {absl::StrCat(directory, "/", dir), dir.substr(dir.rfind('/') + 1), entry.at("family").get<std::string>(), -1});
  }
  for (const json& entry : manifest.at("traces")) {
    ASSIGN_OR_RETURN(GoldenTrace trace, ReadTrace(directory, entry));
    for (GoldenCheckpoint& checkpoint : set.checkpoints) {
      if (checkpoint.family == trace.family && trace.mask_id >= 0) checkpoint.mask_id = trace.mask_id;
    }
    set.traces.push_back(std::move(trace));
  }
  return set;
}

}  // namespace

absl::StatusOr<GoldenSet> ReadGoldenSet(const std::string& directory) {
  const std::string path = absl::StrCat(directory, "/manifest.json");
  absl::StatusOr<json> manifest = ReadJson(path);
  if (!manifest.ok()) return manifest.status();
  try {
    return ReadManifest(directory, *manifest);
  } catch (const json::exception& wrong) {
    return absl::InvalidArgumentError(absl::StrCat(directory, ": not in the golden format: ", wrong.what()));
  }
}

}  // namespace quicksilver

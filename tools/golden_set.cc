#include "tools/golden_set.h"

#include <algorithm>
#include <nlohmann/json.hpp>
#include <set>

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
    const bool off = value.is_null() || value == false || (key == "temperature" && value == 0);
    if (!known.contains(key) && !off) return key;
  }
  return "";
}

v1::Policy ThresholdOr(const json& params, v1::Policy with, v1::Policy without) {
  return params.contains("threshold") && !params["threshold"].is_null() ? with : without;
}

/// Says how a trace is decoded; returns why it cannot be, or an empty string.
std::string FillDecoding(const std::string& kind, const json& params, v1::Submit& submit) {
  v1::Decoding& decoding = *submit.mutable_decoding();
  std::set<std::string> known = {"gen_length", "block_length"};
  if (kind == "llada.generate") {
    known.insert({"steps", "cfg_scale"});
    decoding.set_policy(v1::POLICY_STATIC);
    decoding.set_guidance_scale(params.value("cfg_scale", 0.0f));
  } else if (kind == "fastdllm.none") {
    known.insert({"steps", "threshold"});
    decoding.set_policy(ThresholdOr(params, v1::POLICY_THRESHOLD, v1::POLICY_STATIC));
  } else if (kind == "dinfer.blockwise") {
    known.insert({"threshold", "early_stop", "eos_id"});
    if (params.value("decoder", "") != "threshold") return absl::StrCat("decoder ", params.value("decoder", ""));
    if (params.contains("cache") && !params["cache"].is_null()) {
      return absl::StrCat("cache ", params["cache"].get<std::string>());
    }
    known.insert("decoder");
    decoding.set_policy(v1::POLICY_THRESHOLD);
    if (params.value("early_stop", false)) submit.add_stop_ids(params.at("eos_id").get<int32_t>());
  } else if (kind == "sdar.bd3") {
    known.insert({"denoising_steps", "threshold", "stop"});
    const bool dynamic = params.value("threshold", 1.0f) < 1.0f;
    decoding.set_policy(dynamic ? v1::POLICY_DYNAMIC : v1::POLICY_STATIC);
    for (const json& id : params.value("stop", json::array())) submit.add_stop_ids(id.get<int32_t>());
  } else if (kind == "sdar.sequential") {
    known.insert("denoising_steps");
    decoding.set_policy(v1::POLICY_SEQUENTIAL);
  } else {
    return absl::StrCat("kind ", kind);
  }
  if (const std::string unknown = UnknownParameter(params, known); !unknown.empty()) {
    return absl::StrCat("parameter ", unknown);
  }
  submit.set_max_tokens(params.at("gen_length").get<uint32_t>());
  decoding.set_block_length(params.at("block_length").get<uint32_t>());
  // Of a threshold rule the schedule is without effect, and may not suit our checks.
  const bool scheduled = decoding.policy() != v1::POLICY_THRESHOLD;
  if (scheduled && params.contains("steps")) decoding.set_steps(params["steps"].get<uint32_t>());
  if (params.contains("denoising_steps")) decoding.set_steps(params["denoising_steps"].get<uint32_t>());
  if (params.contains("threshold") && !params["threshold"].is_null()) {
    decoding.set_threshold(params["threshold"].get<float>());
  }
  return "";
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
  if (!IsGoldenFamily(trace.family)) {
    trace.unsupported = absl::StrCat("family ", trace.family, " is not supported");
    return trace;
  }
  ASSIGN_OR_RETURN(const json recorded, ReadJson(absl::StrCat(directory, "/", file)));
  v1::Submit submit;
  submit.set_provisional(true);
  submit.mutable_sampling()->set_top_p(1.0f);
  const json& params = recorded.at("params");
  if (const std::string why = FillDecoding(trace.kind, params, submit); !why.empty()) {
    trace.unsupported = absl::StrCat(why, " is not supported");
    return trace;
  }
  trace.block_length = params.at("block_length").get<int32_t>();
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
        {absl::StrCat(directory, "/", dir), dir.substr(dir.rfind('/') + 1), entry.at("family").get<std::string>()});
  }
  for (const json& entry : manifest.at("traces")) {
    ASSIGN_OR_RETURN(GoldenTrace trace, ReadTrace(directory, entry));
    set.traces.push_back(std::move(trace));
  }
  std::set<std::string> families;
  for (const json& entry : manifest.at("forward")) families.insert(entry.at("family").get<std::string>());
  set.forward_families.assign(families.begin(), families.end());
  return set;
}

}  // namespace

bool IsGoldenFamily(const std::string& family) { return family == "llada" || family == "sdar"; }

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

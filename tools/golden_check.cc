#include "tools/golden_check.h"

#include <algorithm>
#include <cmath>
#include <map>

#include "absl/strings/str_cat.h"
#include "common/status_macros.h"
#include "tests/support/engine_group.h"
#include "tests/support/golden.h"
#include "tests/support/model_group.h"

namespace quicksilver {
namespace {

constexpr int32_t kPageSize = 32;  // A multiple of every block length that is recorded.
constexpr int32_t kStepRows = 512;

std::string Show(const std::vector<GoldenCommit>& commits) {
  std::string text;
  for (const GoldenCommit& c : commits) absl::StrAppend(&text, " ", c.position, ":", c.token, "@", c.confidence);
  return text.empty() ? " nothing" : text;
}

std::vector<std::vector<GoldenCommit>> StepsOf(const Transcript& transcript) {
  std::vector<std::vector<GoldenCommit>> steps;
  for (const v1::SequenceUpdate& update : transcript.updates) {
    std::vector<GoldenCommit> commits;
    for (const v1::Commit& commit : update.commits()) {
      commits.push_back({static_cast<int32_t>(commit.position()), commit.token(), commit.confidence()});
    }
    if (!commits.empty()) steps.push_back(std::move(commits));
  }
  return steps;
}

bool Same(const std::vector<GoldenCommit>& a, const std::vector<GoldenCommit>& b, double error_max) {
  return std::equal(a.begin(), a.end(), b.begin(), b.end(), [=](const GoldenCommit& x, const GoldenCommit& y) {
    return x.position == y.position && x.token == y.token && std::abs(x.confidence - y.confidence) <= error_max;
  });
}

/// Empty when equal, else the first difference.
std::string FirstDifference(const std::vector<std::vector<GoldenCommit>>& expected,
                            const std::vector<std::vector<GoldenCommit>>& found, double error_max) {
  for (size_t step = 0; step < std::max(expected.size(), found.size()); ++step) {
    const std::vector<GoldenCommit> none;
    const std::vector<GoldenCommit>& want = step < expected.size() ? expected[step] : none;
    const std::vector<GoldenCommit>& have = step < found.size() ? found[step] : none;
    if (!Same(want, have, error_max))
      return absl::StrCat("step ", step, ": expected", Show(want), ", found", Show(have));
  }
  return "";
}

/// Compares all rows of one trace. `transcripts` ascend with the rows.
CaseResult Compare(const GoldenTrace& trace, const std::vector<absl::StatusOr<Transcript>>& transcripts,
                   double error_max) {
  CaseResult result;
  result.name = trace.name;
  size_t steps = 0;
  for (size_t row = 0; row < trace.rows.size(); ++row) {
    const absl::StatusOr<Transcript>& transcript = transcripts[row];
    std::string difference = transcript.ok() ? FirstDifference(trace.rows[row].steps, StepsOf(*transcript), error_max)
                                             : std::string(transcript.status().message());
    if (!difference.empty()) {
      result.detail = absl::StrCat("row ", row, ", ", difference);
      return result;
    }
    steps += trace.rows[row].steps.size();
  }
  result.verdict = Verdict::kPass;
  result.detail = absl::StrCat(steps, " steps");
  return result;
}

/// Traces of one block length, decoded together.
std::vector<CaseResult> CheckTogether(const std::vector<const GoldenTrace*>& traces,
                                      const EngineGroup::Options& options, double error_max) {
  std::vector<CaseResult> results;
  absl::StatusOr<std::unique_ptr<EngineGroup>> group = EngineGroup::Start(options);
  uint64_t next = 0;
  std::vector<std::vector<absl::StatusOr<Transcript>>> transcripts;
  std::vector<std::vector<absl::Status>> submitted;
  if (group.ok()) {
    for (const GoldenTrace* trace : traces) {
      std::vector<absl::Status>& statuses = submitted.emplace_back();
      for (const GoldenRow& row : trace->rows) {
        v1::Submit submit = row.submit;
        submit.set_sequence_id(next++);
        statuses.push_back((*group)->Submit(submit));
      }
    }
  }
  next = 0;
  for (size_t t = 0; t < traces.size(); ++t) {
    std::vector<absl::StatusOr<Transcript>> rows;
    for (size_t row = 0; row < traces[t]->rows.size(); ++row, ++next) {
      if (!group.ok()) {
        rows.push_back(group.status());
      } else if (!submitted[t][row].ok()) {
        rows.push_back(submitted[t][row]);
      } else {
        rows.push_back((*group)->Await(next));
      }
    }
    results.push_back(Compare(*traces[t], rows, error_max));
  }
  return results;
}

double MaxError(const HostRows& a, const HostRows& b) {
  if (a.values.size() != b.values.size()) return INFINITY;
  double error = 0.0;
  for (size_t i = 0; i < a.values.size(); ++i) {
    const double difference = std::abs(double{a.values[i]} - double{b.values[i]});
    if (!(difference <= error)) error = difference;  // NaN too.
  }
  return error;
}

std::vector<int32_t> Pages(size_t positions, int32_t first) {
  std::vector<int32_t> pages;
  for (size_t p = 0; p < positions; p += kPageSize) pages.push_back(first++);
  return pages;
}

CaseResult CheckForward(ModelGroup& group, const GoldenForward& forward) {
  std::map<std::string, HostRows> seen;
  const HostRows logits = group.Logits({{forward.ids, 0, Pages(forward.ids.size(), 0)}}, forward.block_length,
                                       [&](const std::string& name, const HostRows& rows) { seen[name] = rows; });
  CaseResult result;
  result.name = absl::StrCat("forward/", forward.family, "/", forward.name);
  double worst = MaxError(logits, forward.logits);
  std::string where = "logits";
  for (const auto& [name, recorded] : forward.hidden) {
    const double error = seen.contains(name) ? MaxError(seen[name], recorded) : INFINITY;
    if (!(error > worst)) continue;
    worst = error;
    where = name;
  }
  result.verdict = worst <= kGoldenErrorMax ? Verdict::kPass : Verdict::kFail;
  result.detail = absl::StrCat("largest error ", worst, " in ", where);
  return result;
}

/// All recorded passes of one mask in one ragged batch.
CaseResult CheckBatch(ModelGroup& group, const std::vector<GoldenForward>& forwards, int32_t block_length) {
  std::vector<TestSegment> segments;
  HostRows recorded;
  int32_t first_page = 0;
  for (const GoldenForward& forward : forwards) {
    if (forward.block_length != block_length) continue;
    segments.push_back({forward.ids, 0, Pages(forward.ids.size(), first_page)});
    first_page += static_cast<int32_t>(segments.back().pages.size());
    recorded.cols = forward.logits.cols;
    recorded.values.insert(recorded.values.end(), forward.logits.values.begin(), forward.logits.values.end());
  }
  CaseResult result;
  result.name = absl::StrCat("forward/", forwards[0].family, "/batch_of_", segments.size(),
                             block_length == kBidirectional ? "_full" : absl::StrCat("_block", block_length));
  const double worst = MaxError(group.Logits(segments, block_length), recorded);
  result.verdict = worst <= kGoldenErrorMax ? Verdict::kPass : Verdict::kFail;
  result.detail = absl::StrCat("largest error ", worst, " in logits");
  return result;
}

std::vector<CaseResult> Stamp(std::vector<CaseResult> results, const GoldenCheckpoint& checkpoint, int ranks) {
  for (CaseResult& result : results) {
    result.checkpoint = checkpoint.name;
    result.ranks = ranks;
  }
  return results;
}

}  // namespace

std::vector<CaseResult> CheckTraces(const GoldenSet& set, const GoldenCheckpoint& checkpoint, int ranks,
                                    const MakeOps& make_ops, double confidence_error_max) {
  std::map<std::pair<int32_t, int32_t>, std::vector<const GoldenTrace*>> by_group;
  for (const GoldenTrace& trace : set.traces) {
    if (trace.family != checkpoint.family || !trace.unsupported.empty()) continue;
    by_group[{trace.grid_block, trace.mask_id}].push_back(&trace);
  }
  std::vector<CaseResult> results;
  for (const auto& [group, traces] : by_group) {
    const auto& [block_length, mask_id] = group;
    EngineGroup::Options options;
    options.directory = checkpoint.directory;
    options.ranks = ranks;
    options.block_length = block_length;
    options.mask_id = mask_id;
    options.page_size = std::max(kPageSize, block_length);
    options.make_ops = make_ops;
    options.engine.step_rows_max = kStepRows;
    for (CaseResult& result : CheckTogether(traces, options, confidence_error_max))
      results.push_back(std::move(result));
  }
  return Stamp(std::move(results), checkpoint, ranks);
}

std::vector<CaseResult> CheckForwards(const std::string& directory, const GoldenCheckpoint& checkpoint, int ranks,
                                      const MakeOps& make_ops) {
  std::vector<CaseResult> results;
  const auto check = [&]() -> absl::Status {
    ASSIGN_OR_RETURN(const Golden golden, Golden::OpenAt(directory));
    const absl::StatusOr<std::vector<GoldenForward>> recorded = golden.Forwards(checkpoint.family);
    if (absl::IsNotFound(recorded.status())) return absl::OkStatus();  // Traces alone.
    RETURN_IF_ERROR(recorded.status());
    const std::vector<GoldenForward>& forwards = *recorded;
    ModelGroup::Sizes sizes;
    sizes.rows_max = kStepRows;
    sizes.page_size = kPageSize;
    ASSIGN_OR_RETURN(const std::unique_ptr<ModelGroup> group,
                     ModelGroup::Load(checkpoint.directory, ranks, make_ops, sizes, {.mask_id = checkpoint.mask_id}));
    std::vector<int32_t> blocks;
    for (const GoldenForward& forward : forwards) {
      results.push_back(CheckForward(*group, forward));
      if (std::find(blocks.begin(), blocks.end(), forward.block_length) == blocks.end()) {
        blocks.push_back(forward.block_length);
      }
    }
    for (const int32_t block : blocks) results.push_back(CheckBatch(*group, forwards, block));
    return absl::OkStatus();
  };
  if (const absl::Status status = check(); !status.ok()) {
    CaseResult failed;
    failed.name = absl::StrCat("forward/", checkpoint.family);
    failed.detail = std::string(status.message());
    results.push_back(failed);
  }
  return Stamp(std::move(results), checkpoint, ranks);
}

std::vector<CaseResult> ListSkipped(const GoldenSet& set) {
  std::vector<CaseResult> results;
  for (const GoldenTrace& trace : set.traces) {
    if (trace.unsupported.empty()) continue;
    results.push_back({trace.name, "", 0, Verdict::kSkipped, trace.unsupported});
  }
  return results;
}

}  // namespace quicksilver

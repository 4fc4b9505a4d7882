#include "tools/gpu/bench_cases.h"

#include "absl/strings/str_cat.h"

namespace quicksilver {
namespace {

constexpr int32_t kContext = 1024;

const TokensPerForward kStatic = {1.0, "a static schedule of one token a step, by definition"};
const TokensPerForward kDistilled = {9.91,
                                     "published: d3LLM-LLaDA (the same network) on GSM8K-CoT, cached approximately"};

void AddLlada(std::vector<BenchCase>& cases) {
  const StepCase one = {.sequences = 1, .context = kContext, .block_length = 32};
  const StepCase many = {.sequences = 64, .context = kContext, .block_length = 32};
  const StepCase canvas = {.sequences = 1, .context = kContext - 32, .block_length = 32, .whole_canvas = true};
  BenchCase base = {.model = "llada-8b", .tokens_per_forward = {kStatic, kDistilled}};

  BenchCase row = base;
  row.name = "llada8b_bf16_1x32";
  row.what = "LLaDA-8B bf16, one block of 32, 1k context, batch 1";
  row.step = one;
  row.aim = {.floor_ratio_max = 1.10, .host_gap_share_max = 0.02};
  cases.push_back(row);
  row.name = "llada8b_bf16_64x32";
  row.what = "LLaDA-8B bf16, 64 sequences x 32 rows, 1k context";
  row.step = many;
  row.aim = {.gemm_share_min = 0.75};
  cases.push_back(row);
  row.name = "llada8b_bf16_64x32_short";
  row.what = "LLaDA-8B bf16, 64 sequences x 32 rows, one block of context: hardly any keys to read";
  row.step.context = 32;
  cases.push_back(row);
  row.name = "llada8b_bf16_canvas1024";
  row.what = "LLaDA-8B bf16, full canvas of 1,024 rows, no cache, 32 of them decided";
  row.step = canvas;
  row.aim = {.gemm_share_min = 0.70};
  row.tokens_per_forward = {kStatic};
  cases.push_back(row);

  row = base;
  row.deterministic = false;
  row.name = "llada8b_bf16_fast_1x32";
  row.what = "LLaDA-8B bf16 as above, fastest products (not deterministic), batch 1";
  row.step = one;
  cases.push_back(row);
  row.name = "llada8b_bf16_fast_64x32";
  row.what = "LLaDA-8B bf16 as above, fastest products (not deterministic), 64 x 32";
  row.step = many;
  cases.push_back(row);

  row = base;
  row.fp8_layers = true;
  row.name = "llada8b_fp8_1x32";
  row.what = "LLaDA-8B FP8 layers, one block of 32, 1k context, batch 1";
  row.step = one;
  row.aim = {.floor_ratio_max = 1.15};
  cases.push_back(row);
  row.name = "llada8b_fp8_64x32";
  row.what = "LLaDA-8B FP8 layers, 64 sequences x 32 rows, 1k context";
  row.step = many;
  row.aim = {};
  cases.push_back(row);
}

void AddSdar(std::vector<BenchCase>& cases) {
  for (const char* size : {"1.7b", "8b"}) {
    for (const int32_t sequences : {1, 16, 128}) {
      for (const int32_t block : {4, 16, 32}) {
        BenchCase row;
        row.name = absl::StrCat("sdar", size, "_bf16_", sequences, "x", block);
        row.what = absl::StrCat("SDAR-", size, " bf16, ", sequences, " x blocks of ", block, ", 1k context");
        row.model = absl::StrCat("sdar-", size);
        row.step = {.sequences = sequences, .context = kContext, .block_length = block};
        if (sequences == 1) row.aim = {.floor_ratio_max = 1.25, .host_gap_share_max = 0.02};
        row.tokens_per_forward = {kStatic};
        cases.push_back(row);
      }
    }
  }
}

void AddCandidates(std::vector<BenchCase>& cases) {
  // LM heads of LLaDA-8B, SDAR-8B and DiffusionGemma.
  const CandidatesCase heads[] = {{0, 4096, 126464}, {0, 4096, 151936}, {0, 2816, 262144}};
  for (const CandidatesCase& head : heads) {
    for (const int64_t rows : {32, 1024}) {
      BenchCase row;
      row.name = absl::StrCat("candidates_", (head.vocabulary + 500) / 1000, "k_", rows);
      row.what = absl::StrCat("candidates over ", head.vocabulary, " ids, H ", head.hidden, ", ", rows, " rows");
      row.candidates = head;
      row.candidates.rows = rows;
      row.aim = {.product_ratio_max = 1.2};
      cases.push_back(row);
    }
  }
}

void AddExperts(std::vector<BenchCase>& cases) {
  const RoutingRule routing = {.score = RoutingRule::Score::kSigmoid,
                               .experts = 256,
                               .chosen = 8,
                               .groups = 8,
                               .groups_kept = 4,
                               .normalise = true,
                               .scale = 2.5f};
  for (const int64_t sequences : {1, 64}) {
    BenchCase row;
    row.name = absl::StrCat("experts_llada2mini_", sequences, "x32");
    row.what = absl::StrCat("routed experts of a layer of LLaDA2-mini, bf16, ", sequences, " x 32 rows");
    row.experts = {.rows = 32 * sequences, .hidden = 2048, .mlp = 512, .routing = routing};
    row.aim = {.floor_ratio_max = 1.25};
    cases.push_back(row);
  }
}

void AddPairs(std::vector<BenchCase>& cases) {
  BenchCase row = {.model = "llada-8b", .ranks = 2, .tokens_per_forward = {kStatic}};
  row.name = "llada8b_bf16_tp2_1x32";
  row.what = "LLaDA-8B bf16, tp 2 as two processes on one device, one block of 32, 1k context, batch 1";
  row.step = {.sequences = 1, .context = kContext, .block_length = 32};
  cases.push_back(row);
}

/// Sizes at which a step takes a thread-by-thread imitation of the device a moment.
void Shrink(std::vector<BenchCase>& cases) {
  for (BenchCase& row : cases) {
    if (!row.model.empty()) row.model = "toy";
    row.step.sequences = row.step.sequences > 1 ? 2 : 1;
    row.step.context = row.step.whole_canvas ? 12 : 32;
    row.step.block_length = row.step.whole_canvas ? 4 : row.step.block_length > 4 ? 8 : 4;
    row.candidates = {.rows = 4, .hidden = 64, .vocabulary = 2048};
    if (row.experts.rows > 0) row.experts = {.rows = 4, .hidden = 64, .mlp = 32, .routing = row.experts.routing};
  }
}

}  // namespace

StepWork WorkOf(const StepCase& of) {
  const int32_t keys = of.context + of.block_length;
  return WorkOf(of.sequences, of.whole_canvas ? keys : of.block_length, of.block_length, keys);
}

std::vector<BenchCase> BenchCases(bool toy) {
  std::vector<BenchCase> cases;
  AddLlada(cases);
  AddSdar(cases);
  AddCandidates(cases);
  AddExperts(cases);
  AddPairs(cases);
  if (toy) Shrink(cases);
  return cases;
}

}  // namespace quicksilver

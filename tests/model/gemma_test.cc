#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <numeric>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "tests/model/gemma_group.h"
#include "tests/support/gemma_decoding.h"
#include "tests/support/golden_ops.h"
#include "tests/support/temp_directory.h"
#include "tests/support/tiny_gemma.h"
#include "worker/decoding/procedures/renoise.h"
#include "worker/model/load_spec.h"
#include "worker/model/sharding.h"

namespace quicksilver {
namespace {

using testing::HasSubstr;
using Kind = GemmaSpan::Kind;

constexpr char kDecoder[] = "model.decoder.";
constexpr char kEncoder[] = "model.encoder.language_model.";

std::vector<TokenId> SomeIds(int32_t count, int32_t salt) {
  std::vector<TokenId> ids(static_cast<size_t>(count));
  for (int32_t i = 0; i < count; ++i) ids[static_cast<size_t>(i)] = (i * 17 + i * i * 5 + salt * 11 + 3) % 60;
  return ids;
}

std::vector<int32_t> Pages(int32_t first, int32_t count) {
  std::vector<int32_t> pages(static_cast<size_t>(count));
  std::iota(pages.begin(), pages.end(), first);
  return pages;
}

std::vector<TokenId> Part(const std::vector<TokenId>& ids, size_t first, size_t end) {
  return {ids.begin() + static_cast<ptrdiff_t>(first), ids.begin() + static_cast<ptrdiff_t>(end)};
}

class GemmaTest : public testing::TestWithParam<GoldenOps> {
 protected:
  void SetUp() override {
    if (!GetParam().missing.empty()) GTEST_SKIP() << GetParam().missing;
    model_.Write(directory_.path(), kDecoder);
  }

  static GemmaGroup::MakeOps Operations() {
    return [make = GetParam().make] { return make(DType::kF32); };
  }
  /// Sizes of groups to try.
  static std::vector<int> Ranks() {
    return GetParam().ranks_max >= 4 ? std::vector<int>{1, 2, 4} : std::vector<int>{1};
  }

  std::unique_ptr<GemmaGroup> Group(int ranks) {
    absl::StatusOr<std::unique_ptr<GemmaGroup>> group = GemmaGroup::Load(directory_.path(), ranks, Operations());
    EXPECT_TRUE(group.ok()) << group.status();
    return *std::move(group);
  }

  /// `rows` from `first` on are `expected`, which are capped.
  void ExpectLogits(const HostRows& rows, int64_t first, const Doubles& expected) const {
    const double cap = model_.soft_cap;
    double difference = 0.0;
    for (size_t n = 0; n < expected.size(); ++n) {
      for (size_t v = 0; v < expected[n].size(); ++v) {
        const double z = cap * std::tanh(double{rows.row(first + static_cast<int64_t>(n))[v]} / cap);
        difference = std::max(difference, std::abs(z - expected[n][v]));
      }
    }
    EXPECT_LT(difference, 2e-4);
  }

  TinyGemma model_{7};
  GemmaReference reference_{model_};
  TempDirectory directory_;
};

// 13 committed tokens in two chunks, more than twice the window, and three steps of a canvas behind them.
TEST_P(GemmaTest, LogitsAreThoseOfTheDefinitionAtAnyTensorParallelSize) {
  const std::vector<TokenId> prompt = SomeIds(13, 0);
  for (const int ranks : Ranks()) {
    SCOPED_TRACE(absl::StrCat(ranks, " ranks"));
    const auto group = Group(ranks);
    const std::vector<int32_t> pages = Pages(3, 6);
    const Doubles encoded = reference_.EncoderLogits(prompt);
    const HostRows first = group->Step({{Kind::kCommitted, Part(prompt, 0, 5), 0, pages}}).logits;
    ExpectLogits(first, 0, Doubles(encoded.begin(), encoded.begin() + 5));
    // The rest of the prompt rides in front of the first step.
    GemmaSpan canvas = {Kind::kFirstCanvas, SomeIds(8, 1), 13, pages, {.temperature = 0.7f, .seed = 9}};
    const HostRows second = group->Step({{Kind::kCommitted, Part(prompt, 5, 13), 5, pages}, canvas}).logits;
    ExpectLogits(second, 0, Doubles(encoded.begin() + 5, encoded.end()));
    Doubles soft;
    for (const float temperature : {0.7f, 0.5f, 0.8f}) {
      const Doubles expected = reference_.Logits(prompt, canvas.ids, soft);
      canvas.sampling.temperature = temperature;
      if (canvas.kind == Kind::kFirstCanvas) {
        ExpectLogits(second, 8, expected);
      } else {
        ExpectLogits(group->Step({canvas}).logits, 0, expected);
      }
      soft = reference_.SoftEmbedding(expected, temperature);
      canvas.ids = SomeIds(8, static_cast<int32_t>(temperature * 10.0f));
      canvas.kind = Kind::kCanvas;
    }
  }
}

TEST_P(GemmaTest, WhatTheLastStepExpectedChangesTheNext) {
  const std::vector<TokenId> prompt = SomeIds(9, 0), ids = SomeIds(8, 1);
  const Doubles first = reference_.Logits(prompt, ids, {});
  const Doubles second = reference_.Logits(prompt, ids, reference_.SoftEmbedding(first, 0.7));
  double difference = 0.0;
  for (size_t v = 0; v < 60; ++v) difference = std::max(difference, std::abs(first[0][v] - second[0][v]));
  EXPECT_GT(difference, 0.1);
}

TEST_P(GemmaTest, ASequenceHasTheSameBitsAloneAndBesideOthers) {
  const auto group = Group(Ranks().size() > 1 ? 2 : 1);
  const std::vector<TokenId> prompts[] = {SomeIds(11, 2), SomeIds(3, 3)};
  const auto canvas_of = [&](size_t s, Kind kind, int32_t salt) {
    return GemmaSpan{kind,
                     SomeIds(8, salt),
                     static_cast<int32_t>(prompts[s].size()),
                     Pages(s == 0 ? 1 : 12, 5),
                     {.temperature = 0.6f, .seed = s}};
  };
  const auto prompt_of = [&](size_t s) {
    return GemmaSpan{Kind::kCommitted, prompts[s], 0, Pages(s == 0 ? 1 : 12, 5)};
  };
  std::vector<float> alone[2][2];
  for (size_t s = 0; s < 2; ++s) {
    group->Step({prompt_of(s)});
    alone[s][0] = group->Step({canvas_of(s, Kind::kFirstCanvas, 4)}).logits.values;
    alone[s][1] = group->Step({canvas_of(s, Kind::kCanvas, 5)}).logits.values;
  }
  const HostRows mixed =
      group
          ->Step({prompt_of(1), canvas_of(1, Kind::kFirstCanvas, 4), prompt_of(0), canvas_of(0, Kind::kFirstCanvas, 4)})
          .logits;
  const HostRows later = group->Step({canvas_of(0, Kind::kCanvas, 5), canvas_of(1, Kind::kCanvas, 5)}).logits;
  const auto rows_of = [](const HostRows& rows, int64_t first) {
    return std::vector<float>(rows.row(first), rows.row(first) + 8 * rows.cols);
  };
  EXPECT_TRUE(rows_of(mixed, 3) == alone[1][0]);
  EXPECT_TRUE(rows_of(mixed, 3 + 8 + 11) == alone[0][0]);
  EXPECT_TRUE(rows_of(later, 0) == alone[0][1]);
  EXPECT_TRUE(rows_of(later, 8) == alone[1][1]);
}

/// The same with the model and the procedure that serve.
std::vector<DecodedStep> Decode(GemmaGroup& group, const std::vector<TokenId>& prompt, const Renoise::Settings& s,
                                int32_t blocks) {
  std::vector<DecodedStep> steps;
  Renoise procedure(s);
  const auto length = static_cast<int32_t>(prompt.size());
  std::vector<TokenId> tokens = prompt;
  tokens.resize(prompt.size() + static_cast<size_t>(8 * blocks), -1);
  const std::vector<uint8_t> fixed(tokens.size(), 0);
  CanvasView view = {.tokens = tokens, .fixed = fixed, .answer_first = length, .answer_end = length + 8 * blocks};
  int32_t written = 0;
  for (view.block = 0; view.block < blocks; ++view.block) {
    view.first = length + 8 * view.block;
    view.end = view.first + 8;
    view.block_forwards = 0;
    procedure.OpenBlock(view);
    for (bool open = true; open; ++view.forwards, ++view.block_forwards) {
      std::vector<GemmaSpan> spans;
      if (written < view.first) {
        const auto first = static_cast<size_t>(written);
        spans.push_back(
            {Kind::kCommitted, Part(tokens, first, static_cast<size_t>(view.first)), written, Pages(2, 12)});
      }
      written = view.first;
      GemmaSpan canvas = {view.block_forwards == 0 ? Kind::kFirstCanvas : Kind::kCanvas, {}, view.first, Pages(2, 12)};
      canvas.sampling = s.sampling;
      canvas.sampling.temperature = procedure.Temperature(view, 0.0f);
      canvas.forward = static_cast<uint32_t>(view.forwards);
      for (int32_t p = view.first; p < view.end; ++p) canvas.ids.push_back(procedure.Input(view, p));
      spans.push_back(canvas);
      const std::vector<RowChoice> choices = group.Step(spans).choices;
      DecodedStep& step = steps.emplace_back();
      step.input = canvas.ids;
      for (const RowChoice& choice : choices) step.best.push_back(choice.best);
      const Decision decision = procedure.Decide(view, {choices, {}});
      open = decision.writes.empty();
      for (const TokenWrite& write : decision.writes) tokens[static_cast<size_t>(write.position)] = write.token;
    }
  }
  return steps;
}

TEST_P(GemmaTest, AWholeAnswerIsDecodedStepByStepAsByTheDefinition) {
  const std::vector<TokenId> prompt = SomeIds(10, 6);
  for (const Renoise::Settings& settings : {NoisyRenoise(), SettlingRenoise()}) {
    const std::vector<DecodedStep> expected = DecodeByDefinition(model_, prompt, settings, 2).steps;
    EXPECT_EQ(expected.size() == 24u, settings.steps == 12) << "only one of them uses up its steps";
    EXPECT_GT(expected.size(), 4u);
    for (const int ranks : Ranks()) {
      const auto group = Group(ranks);
      EXPECT_TRUE(Decode(*group, prompt, settings, 2) == expected) << ranks << " ranks, steps " << settings.steps;
    }
  }
}

TEST_P(GemmaTest, TheTextModelMayStandUnderTheEncoderBesideImages) {
  const std::vector<GemmaSpan> step = {{Kind::kCommitted, SomeIds(6, 0), 0, Pages(0, 2)}};
  const std::vector<float> expected = Group(1)->Step(step).logits.values;
  model_.Write(directory_.path(), kEncoder,
               {"model.encoder.vision_tower.patch.weight", "model.encoder.embed_vision.embedding_projection.weight",
                "model.decoder.layers.0.layer_scalar"});
  EXPECT_TRUE(Group(1)->Step(step).logits.values == expected);
}

TEST_P(GemmaTest, ATensorOfNoPartOfTheModelIsRefused) {
  model_.Write(directory_.path(), kDecoder, {"model.decoder.layers.0.self_attn.sinks"});
  const auto group = GemmaGroup::Load(directory_.path(), 1, Operations());
  EXPECT_THAT(std::string(group.status().message()), HasSubstr("'model.decoder.layers.0.self_attn.sinks'"));
}

TEST_P(GemmaTest, WhatARankHoldsIsItsBudget) {
  for (const int ranks : Ranks()) {
    const auto group = Group(ranks);
    const Shard shard = *MakeShard(group->spec(), ranks - 1, ranks);
    const RankBudget budget = BudgetOf(group->spec(), shard, DType::kF32);
    EXPECT_EQ(group->model(ranks - 1).kv_bytes(), static_cast<size_t>(budget.kv_position_bytes) * 32 * 4);
    EXPECT_GE(static_cast<int64_t>(group->model(ranks - 1).weight_bytes()), budget.weight_bytes) << ranks;
  }
}

INSTANTIATE_TEST_SUITE_P(Every, GemmaTest, testing::ValuesIn(AllGoldenOps()),
                         [](const testing::TestParamInfo<GoldenOps>& of) { return std::string(of.param.name); });

}  // namespace
}  // namespace quicksilver

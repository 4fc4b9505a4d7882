#include "worker/decoding/procedures/variable_length.h"

#include <algorithm>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/decoding/procedures/procedure_run.h"

namespace quicksilver {
namespace {

using ::testing::ElementsAre;
using Canvases = std::vector<std::vector<TokenId>>;

constexpr TokenId kMask = FakeModel::kMask;
constexpr TokenId kEos = FakeModel::kEos;
constexpr int32_t kPrompt = 3;
constexpr int32_t kBlock = 8;

/// decoding.md §13 with the window and the insertions of the reference. Canvases come without those of forwards whose
/// numbers the reference throws away only to compute them again.
class PlainVariableLength {
 public:
  PlainVariableLength(const FakeModel& model, const VariableLength::Settings& settings, std::vector<TokenId> tokens)
      : model_(model), settings_(settings), tokens_(std::move(tokens)) {}

  Canvases Decode() {
    FindLength();
    size_t position = kPrompt;
    while (position < tokens_.size()) {
      const size_t end = std::min(position + kBlock, tokens_.size());
      if (std::count(Begin(position), Begin(end), kMask) == 0) {
        position += kBlock;
        continue;
      }
      DecodeWindow(position, end);
      canvases_.push_back(tokens_);
    }
    return canvases_;
  }

  int64_t insertions = 0;

 private:
  std::vector<TokenId>::iterator Begin(size_t p) { return tokens_.begin() + static_cast<ptrdiff_t>(p); }
  size_t LengthMax() const { return static_cast<size_t>(kPrompt + settings_.length_max); }

  double EosConfidence() const {
    std::vector<double> found;
    for (int32_t p = static_cast<int32_t>(tokens_.size()) - 1; p >= kPrompt; --p) {
      if (static_cast<int32_t>(found.size()) >= settings_.eos_window) break;
      const std::vector<float> logits = model_.Logits(tokens_, p);
      if (BestId(logits) == kEos) found.push_back(Softmax(logits)[kEos]);
    }
    double sum = 0.0;
    for (const double one : found) sum += one;
    return sum / settings_.eos_window;
  }

  void FindLength() {
    while (tokens_.size() < LengthMax() && EosConfidence() < static_cast<double>(settings_.eos_threshold)) {
      tokens_.resize(std::min(tokens_.size() + static_cast<size_t>(settings_.expansion), LengthMax()), kMask);
      canvases_.push_back(tokens_);
    }
    const size_t tail = static_cast<size_t>(settings_.eos_window / 2);
    const size_t before = tokens_.size();
    tokens_.resize(std::min(before + tail, LengthMax()), kEos);
    if (tokens_.size() > before) canvases_.push_back(tokens_);
  }

  void DecodeWindow(size_t first, size_t end) {
    const double eos = EosConfidence();
    const std::vector<TokenId> seen = tokens_;
    std::vector<std::pair<double, size_t>> masked;
    for (size_t p = first; p < end; ++p) {
      if (seen[p] != kMask) continue;
      const std::vector<float> logits = model_.Logits(seen, static_cast<int32_t>(p));
      masked.push_back({Softmax(logits)[static_cast<size_t>(BestId(logits))], p});
    }
    std::vector<size_t> filled;
    for (const auto& [confidence, p] : masked) {
      if (confidence > static_cast<double>(settings_.threshold)) filled.push_back(p);
    }
    const auto less = [](const auto& a, const auto& b) { return a.first < b.first; };
    if (filled.empty()) filled = {std::max_element(masked.begin(), masked.end(), less)->second};
    for (const size_t p : filled) {
      tokens_[p] = BestId(model_.Logits(seen, static_cast<int32_t>(p)));
    }
    std::erase_if(masked, [&](const auto& row) {
      return tokens_[row.second] != kMask || row.first >= static_cast<double>(settings_.low_threshold);
    });
    if (masked.empty() || eos >= static_cast<double>(settings_.expand_eos_threshold) || tokens_.size() >= LengthMax()) {
      return;
    }
    const size_t at = std::min_element(masked.begin(), masked.end(), less)->second;
    const size_t length = std::min(tokens_.size() + static_cast<size_t>(settings_.expansion) - 1, LengthMax());
    tokens_.insert(Begin(at), static_cast<size_t>(settings_.expansion) - 1, kMask);
    tokens_.resize(length);
    ++insertions;
  }

  const FakeModel model_;
  const VariableLength::Settings settings_;
  std::vector<TokenId> tokens_;
  Canvases canvases_;
};

VariableLength::Settings Settings() {
  VariableLength::Settings settings;
  settings.threshold = 0.4f;
  settings.low_threshold = 0.2f;
  settings.expansion = 4;
  settings.eos_threshold = 0.15f;
  settings.expand_eos_threshold = 0.5f;
  settings.eos_window = 6;
  settings.eos_id = kEos;
  settings.length_max = 60;
  return settings;
}

TEST(VariableLengthTest, DecidesAsTheReferenceDoes) {
  int64_t insertions = 0;
  std::vector<size_t> lengths;
  for (uint64_t seed = 1; seed <= 40; ++seed) {
    SCOPED_TRACE(seed);
    FakeModel model = {seed, 1.2f, 1.2f};
    model.eos_bias = 1.2f;
    const VariableLength::Settings settings = Settings();
    VariableLength procedure(settings);
    ProcedureRun run(procedure, {kPrompt, 12, kBlock, kPrompt}, NetworkOf(model));
    PlainVariableLength plain(model, settings, run.tokens());
    const Canvases canvases = run.RunToEnd();
    EXPECT_EQ(canvases, plain.Decode());
    insertions += plain.insertions;
    lengths.push_back(canvases.back().size());
  }
  EXPECT_GT(insertions, 40);
  std::sort(lengths.begin(), lengths.end());
  EXPECT_GT(lengths.back(), lengths.front() + 10) << "every answer had the same length";
}

// Tokens in the middle of the block, behind the row that grows, move into the blocks behind.
TEST(VariableLengthTest, AnInsertionMovesWhatStandsBehindIt) {
  VariableLength::Settings settings = Settings();
  settings.length_max = 15;
  const Network network = [](absl::Span<const TokenId> tokens, const RowAsk& row) {
    std::vector<float> logits(FakeModel::kVocabulary, 0.0f);
    if (row.position == 4 || row.position == 5) logits[static_cast<size_t>(row.position)] = 9.0f;
    if (row.position == 3) logits[7] = 0.5f;
    if (tokens.size() > 15) logits[8] = 9.0f;
    return logits;
  };
  VariableLength procedure(settings);
  ProcedureRun::Canvas canvas = {kPrompt, 12, 4, kPrompt};
  canvas.draft = {{6, 9}};
  ProcedureRun run(procedure, canvas, network);
  run.Step();
  EXPECT_EQ(run.decision().grown, 3);
  EXPECT_EQ(run.tokens().size(), 18u);
  const std::vector<TokenId> open(run.tokens().begin() + 3, run.tokens().begin() + 11);
  EXPECT_THAT(open, ElementsAre(kMask, kMask, kMask, kMask, 4, 5, 9, kMask));
  EXPECT_EQ(run.View().end, 7) << "the block keeps its length";
}

TEST(VariableLengthTest, TheAnswerNeverGetsLongerThanItMay) {
  VariableLength::Settings settings = Settings();
  settings.length_max = 21;
  settings.eos_threshold = settings.expand_eos_threshold = 1.0f;
  for (uint64_t seed = 1; seed <= 10; ++seed) {
    VariableLength procedure(settings);
    ProcedureRun run(procedure, {kPrompt, 12, kBlock, kPrompt}, NetworkOf({seed, 0.3f, 0.3f}));
    run.RunToEnd();
    EXPECT_EQ(run.tokens().size(), 24u);
  }
}

TEST(VariableLengthTest, NothingIsInsertedInFrontOfFixedTokens) {
  VariableLength::Settings settings = Settings();
  settings.eos_threshold = 0.0f;
  ProcedureRun::Canvas canvas = {kPrompt, 12, kBlock, kPrompt};
  canvas.fixed = {{14, 5}};
  VariableLength procedure(settings);
  ProcedureRun run(procedure, canvas, NetworkOf({2, 0.3f, 0.3f}));
  run.RunToEnd();
  EXPECT_EQ(run.tokens()[14], 5);
  EXPECT_EQ(run.tokens().size(), 18u) << "eos_window / 2 positions behind the last one";
}

// Nothing but the canvas tells it where it is: a new one goes on as the old one would.
TEST(VariableLengthTest, ANewProcedureGoesOnFromAnyCanvas) {
  const FakeModel model = {5, 1.2f, 1.2f};
  VariableLength procedure(Settings());
  ProcedureRun run(procedure, {kPrompt, 12, kBlock, kPrompt}, NetworkOf(model));
  while (!run.done()) {
    VariableLength fresh(Settings());
    const CanvasView view = run.View();
    fresh.OpenBlock(view);
    std::vector<RowAsk> rows;
    fresh.Ask(view, rows);
    std::vector<RowChoice> choices;
    for (const RowAsk& row : rows) {
      choices.push_back(ChoiceOf(model.Logits(run.tokens(), row.position), row.asked_id, {}, {}, {}));
    }
    const Decision decision = fresh.Decide(view, {choices, {}});
    run.Step();
    EXPECT_EQ(decision.grown, run.decision().grown);
    ASSERT_EQ(decision.writes.size(), run.decision().writes.size());
    for (size_t i = 0; i < decision.writes.size(); ++i) {
      EXPECT_EQ(decision.writes[i].position, run.decision().writes[i].position);
      EXPECT_EQ(decision.writes[i].token, run.decision().writes[i].token);
    }
  }
}

// Drawn tokens say nothing of what a row holds most likely.
TEST(VariableLengthTest, TheEosConfidenceIsOfTheArgMax) {
  VariableLength::Settings settings = Settings();
  settings.sampled = true;
  settings.eos_threshold = 0.9f;
  VariableLength procedure(settings);
  ProcedureRun::Canvas canvas = {kPrompt, 12, kBlock, kPrompt};
  canvas.sampling.temperature = 50.0f;
  const Network network = [](absl::Span<const TokenId>, const RowAsk&) {
    std::vector<float> logits(FakeModel::kVocabulary, 0.0f);
    logits[kEos] = 6.0f;
    return logits;
  };
  ProcedureRun run(procedure, canvas, network);
  run.Step();
  EXPECT_EQ(run.decision().writes.size(), 3u) << "long enough: eos_window / 2 eos tokens come behind it";
  EXPECT_EQ(run.decision().grown, 3);
}

}  // namespace
}  // namespace quicksilver

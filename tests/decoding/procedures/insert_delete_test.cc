#include "worker/decoding/procedures/insert_delete.h"

#include <algorithm>
#include <map>
#include <set>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/decoding/procedures/procedure_run.h"

namespace quicksilver {
namespace {

using ::testing::ElementsAre;
using Canvases = std::vector<std::vector<TokenId>>;

constexpr TokenId kMask = FakeModel::kMask;
constexpr TokenId kDelete = FakeModel::kDelete;
constexpr TokenId kInsert = FakeModel::kInsert;

InsertDelete::Settings SettingsOf(float threshold, float edit_threshold, int32_t post_steps_max) {
  return {threshold, edit_threshold, post_steps_max, kDelete, kInsert};
}

/// decoding.md §6 over one block [first, end) of a canvas whose prompt ends at or behind `first`.
class PlainInsertDelete {
 public:
  PlainInsertDelete(const FakeModel& model, const InsertDelete::Settings& settings, std::vector<TokenId> tokens)
      : model_(model), settings_(settings), tokens_(std::move(tokens)) {}

  void DecodeBlock(int32_t first, int32_t end, int32_t prompt, Canvases& canvases) {
    first_ = std::max(first, prompt);
    end_ = end;
    original_.clear();
    for (int32_t p = first_; p < end_; ++p) original_.push_back(At(p) == kMask);
    seen_.clear();
    tried_.clear();
    int32_t post = 0;
    for (int32_t update = 1;; ++update) {
      const bool resolved = OriginalMasks() == 0;
      if (resolved) ++post;
      const bool final =
          (resolved && post >= settings_.post_steps_max) || update > end - first + settings_.post_steps_max;
      const bool goes_on = Update(final);
      canvases.push_back(tokens_);
      if (!goes_on) return;
    }
  }

 private:
  TokenId& At(int32_t p) { return tokens_[static_cast<size_t>(p)]; }
  std::vector<bool>::reference Original(int32_t p) { return original_[static_cast<size_t>(p - first_)]; }
  int32_t OriginalMasks() {
    int32_t count = 0;
    for (int32_t p = first_; p < end_; ++p) count += At(p) == kMask && Original(p) ? 1 : 0;
    return count;
  }
  TokenId BestBut(int32_t p, const std::set<TokenId>& refused) {
    std::vector<float> logits = logits_[p];
    for (const TokenId id : refused) logits[static_cast<size_t>(id)] = -1e30f;
    return BestId(logits);
  }
  double ProbabilityOf(int32_t p, TokenId id) { return Softmax(logits_[p])[static_cast<size_t>(id)]; }

  // One update; false when the block is finished.
  bool Update(bool final) {
    std::map<int32_t, TokenId> x;
    std::vector<std::pair<double, int32_t>> masks;
    for (int32_t p = first_; p < end_; ++p) logits_[p] = model_.Logits(tokens_, p);
    for (int32_t p = first_; p < end_; ++p) {
      x[p] = BestId(logits_[p]);
      if (At(p) == kMask) masks.push_back({-ProbabilityOf(p, x[p]), p});
    }
    std::set<int32_t> written;
    const int32_t original = OriginalMasks();
    const size_t need = masks.size() - static_cast<size_t>(original) + 1;
    std::stable_sort(masks.begin(), masks.end(), [](const auto& a, const auto& b) { return a.first < b.first; });
    size_t above = 0;
    for (const auto& [minus, p] : masks) above += -minus > static_cast<double>(settings_.threshold) ? 1 : 0;
    const size_t take = final || original == 0 ? masks.size() : above >= need ? above : std::min(need, masks.size());
    for (size_t i = 0; i < take; ++i) written.insert(masks[i].second);
    if (settings_.post_steps_max == 0 && original > 0) {
      bool all = true;
      for (const auto& [minus, p] : masks) all = all && (!Original(p) || written.count(p) > 0);
      if (all) {
        final = true;
        for (const auto& [minus, p] : masks) written.insert(p);
      }
    }
    for (int32_t p = first_; p < end_; ++p) {
      const bool sure = ProbabilityOf(p, x[p]) > static_cast<double>(*settings_.edit_threshold);
      if (At(p) != kMask && sure && x[p] != At(p)) written.insert(p);
    }
    if (written.empty()) return false;
    const std::vector<TokenId> block(tokens_.begin() + first_, tokens_.begin() + end_);
    if (final) {
      for (const int32_t p : written) x[p] = BestBut(p, {kDelete, kInsert});
    } else if (seen_.count(block) > 0) {
      int32_t least = -1;
      for (const int32_t p : written) {
        if (x[p] == At(p)) continue;
        if (least < 0 || ProbabilityOf(p, x[p]) < ProbabilityOf(least, x[least])) least = p;
      }
      if (least >= 0) x[least] = BestBut(least, tried_[least]);
      ++loops_broken;
    }
    seen_.insert(block);
    Apply(written, x);
    return !final;
  }

  void Apply(const std::set<int32_t>& written, const std::map<int32_t, TokenId>& x) {
    std::vector<TokenId> tokens;
    std::vector<bool> original;
    const auto push = [&](TokenId token, bool was_original) {
      tokens.push_back(token);
      original.push_back(was_original);
    };
    for (int32_t p = first_; p < end_; ++p) {
      const TokenId token = written.count(p) > 0 ? x.at(p) : At(p);
      if (written.count(p) > 0) tried_[p].insert(token);
      moves += token == kDelete || token == kInsert ? 1 : 0;
      if (token == kDelete) continue;
      if (token == kInsert) push(kMask, false);
      push(token == kInsert ? At(p) : token, Original(p));
    }
    for (int32_t p = first_; p < end_; ++p) {
      const size_t i = static_cast<size_t>(p - first_);
      At(p) = i < tokens.size() ? tokens[i] : kMask;
      original_[i] = i < tokens.size() && original[i];
    }
  }

 public:
  int64_t moves = 0, loops_broken = 0;

 private:
  const FakeModel model_;
  const InsertDelete::Settings settings_;
  std::vector<TokenId> tokens_;
  int32_t first_ = 0, end_ = 0;
  std::vector<bool> original_;
  std::map<int32_t, std::vector<float>> logits_;
  std::set<std::vector<TokenId>> seen_;
  std::map<int32_t, std::set<TokenId>> tried_;
};

TEST(InsertDeleteTest, DecidesAsThePlainLoopDoes) {
  int64_t moves = 0, loops_broken = 0;
  for (uint64_t seed = 1; seed <= 60; ++seed) {
    SCOPED_TRACE(seed);
    FakeModel model = {seed, 2.0f, seed % 2 == 0 ? 0.4f : 1.5f};
    model.control_bias = 1.0f;
    const InsertDelete::Settings settings = SettingsOf(0.25f, seed % 3 == 0 ? 0.0f : 0.12f, seed % 5 == 0 ? 0 : 12);
    InsertDelete procedure(settings);
    ProcedureRun::Canvas canvas = {3, 21, 8, 0};
    ProcedureRun run(procedure, canvas, NetworkOf(model));
    PlainInsertDelete plain(model, settings, run.tokens());
    Canvases expected;
    for (int32_t first = 0; first < 24; first += 8) plain.DecodeBlock(first, first + 8, 3, expected);
    EXPECT_EQ(run.RunToEnd(), expected);
    moves += plain.moves;
    loops_broken += plain.loops_broken;
  }
  EXPECT_GT(moves, 200);
  EXPECT_GT(loops_broken, 50) << "no block was seen again, so nothing was compared";
}

/// One step over a block whose rows say what `said` says with certainty; the block after it.
std::vector<TokenId> After(InsertDelete& procedure, std::vector<TokenId> tokens, const std::vector<TokenId>& said) {
  const std::vector<uint8_t> fixed(tokens.size());
  CanvasView view;
  view.mask_id = kMask;
  view.end = view.answer_end = static_cast<int32_t>(tokens.size());
  view.tokens = tokens;
  view.fixed = fixed;
  procedure.OpenBlock(view);
  std::vector<RowChoice> choices;
  std::vector<TopLogit> tops;
  for (const TokenId token : said) {
    std::vector<float> logits(FakeModel::kVocabulary, 0.0f);
    logits[static_cast<size_t>(token)] = 9.0f;
    choices.push_back(ChoiceOf(logits, -1, {}, {}, {}));
    for (const TopLogit& top : TopsOf(logits)) tops.push_back(top);
  }
  std::vector<TokenId> after = tokens;
  for (const TokenWrite& write : procedure.Decide(view, {choices, tops}).writes) {
    after[static_cast<size_t>(write.position)] = write.token;
  }
  return after;
}

// decoding.md §21.7
TEST(InsertDeleteTest, DeletesAndInsertsFromLeftToRight) {
  InsertDelete procedure(SettingsOf(0.5f, 0.0f, 16));
  EXPECT_THAT(After(procedure, {1, 2, 3, 4}, {1, kDelete, 3, kInsert}), ElementsAre(1, 3, kMask, 4));
}

TEST(InsertDeleteTest, AnInsertionInAFullBlockDropsTheLastRow) {
  InsertDelete procedure(SettingsOf(0.5f, 0.0f, 16));
  EXPECT_THAT(After(procedure, {1, 2, 3, 4}, {1, kInsert, 3, 4}), ElementsAre(1, kMask, 2, 3));
}

TEST(InsertDeleteTest, ADeletionFillsTheBlockUpWithAMask) {
  InsertDelete procedure(SettingsOf(0.5f, 0.0f, 16));
  EXPECT_THAT(After(procedure, {1, 2, 3, 4}, {kDelete, 2, 3, 4}), ElementsAre(2, 3, 4, kMask));
}

TEST(InsertDeleteTest, TheLastStepWritesNoControlToken) {
  InsertDelete procedure(SettingsOf(0.5f, 0.0f, 1));
  EXPECT_THAT(After(procedure, {1, 2, 3, 4}, {1, kDelete, 3, kInsert}), ElementsAre(1, 0, 3, 0)) << "the next best id";
}

TEST(InsertDeleteTest, ABlockThatIsOpenedAgainWasNeverSeen) {
  InsertDelete procedure(SettingsOf(0.5f, 0.0f, 16));
  for (int i = 0; i < 2; ++i) EXPECT_THAT(After(procedure, {1, 2, 3, 4}, {1, 5, 3, 4}), ElementsAre(1, 5, 3, 4));
}

TEST(InsertDeleteTest, WhatMovesKeepsWhatItWasWrittenWith) {
  InsertDelete procedure(SettingsOf(0.5f, 0.9999f, 16));
  int32_t forward = 0;
  const Network network = [&forward](absl::Span<const TokenId> tokens, const RowAsk& row) {
    std::vector<float> logits(FakeModel::kVocabulary, 0.0f);
    logits[static_cast<size_t>(row.position + 1)] = 9.0f + static_cast<float>(row.position);
    if (forward == 1 && row.position == 0 && tokens[0] == 1) logits[kInsert] = 99.0f;
    return logits;
  };
  ProcedureRun run(procedure, {0, 4, 4, 0}, network);
  run.Step();
  ASSERT_EQ(run.decision().writes.size(), 4u);
  const TokenWrite third = run.decision().writes[2];
  ++forward;
  run.Step();
  EXPECT_THAT(run.tokens(), ElementsAre(kMask, 1, 2, 3));
  EXPECT_EQ(run.decision().writes[3].token, third.token);
  EXPECT_EQ(run.decision().writes[3].confidence, third.confidence);
  EXPECT_EQ(run.decision().writes[3].log_probability, third.log_probability);
}

TEST(InsertDeleteTest, NothingMovesInFrontOfAFixedToken) {
  ProcedureRun::Canvas canvas = {0, 6, 6, 0};
  canvas.fixed = {{2, 9}};
  for (uint64_t seed = 1; seed <= 20; ++seed) {
    FakeModel model = {seed};
    model.control_bias = 4.0f;
    InsertDelete procedure(SettingsOf(0.2f, 0.0f, 6));
    ProcedureRun run(procedure, canvas, NetworkOf(model));
    for (const std::vector<TokenId>& tokens : run.RunToEnd()) EXPECT_EQ(tokens[2], 9);
  }
}

TEST(InsertDeleteTest, NoControlTokenIsLeft) {
  for (uint64_t seed = 1; seed <= 20; ++seed) {
    FakeModel model = {seed};
    model.control_bias = 3.0f;
    InsertDelete procedure(SettingsOf(0.2f, 0.0f, 6));
    ProcedureRun run(procedure, ProcedureRun::Canvas(), NetworkOf(model));
    for (const std::vector<TokenId>& tokens : run.RunToEnd()) {
      EXPECT_EQ(std::count(tokens.begin(), tokens.end(), kDelete), 0);
      EXPECT_EQ(std::count(tokens.begin(), tokens.end(), kInsert), 0);
    }
  }
}

}  // namespace
}  // namespace quicksilver

#include "worker/decoding/procedures/multi_block.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/decoding/procedures/procedure_run.h"

namespace quicksilver {
namespace {

using ::testing::ElementsAre;
using Canvases = std::vector<std::vector<TokenId>>;

constexpr TokenId kMask = FakeModel::kMask;
constexpr int32_t kPrompt = 3;
constexpr int32_t kBlock = 8;

double EntropyOf(absl::Span<const float> logits) {
  double entropy = 0.0;
  for (const double p : Softmax(logits)) entropy -= p * std::log(p);
  return entropy;
}

/// decoding.md §14 with the states of its blocks, as the reference keeps them.
class PlainMultiBlock {
 public:
  PlainMultiBlock(const FakeModel& model, float threshold, double add, double full, std::vector<TokenId> tokens)
      : model_(model), threshold_(threshold), add_(add), full_(full), tokens_(std::move(tokens)) {}

  Canvases Decode(bool early_stop) {
    Canvases canvases;
    blocks_ = {{kPrompt, std::min(kPrompt + kBlock, Size()), true}};
    while (std::count(tokens_.begin(), tokens_.end(), kMask) > 0) {
      for (size_t b = 1; b < blocks_.size(); ++b) blocks_[b].full = blocks_[b].full || Written(b - 1) >= full_;
      if (Written(blocks_.size() - 1) >= add_ && blocks_.back().end < Size()) {
        const int32_t first = blocks_.back().end;
        blocks_.push_back({first, std::min(first + kBlock, Size()), Written(blocks_.size() - 1) >= full_});
      }
      Forward();
      if (early_stop) FillBehindEos();
      canvases.push_back(tokens_);
    }
    return canvases;
  }

 private:
  struct Block {
    int32_t first, end;
    bool full;
  };
  struct Candidate {
    double entropy;
    int32_t position;
    TokenId token;
  };

  int32_t Size() const { return static_cast<int32_t>(tokens_.size()); }
  int64_t Masks(const Block& block) const {
    return std::count(tokens_.begin() + block.first, tokens_.begin() + block.end, kMask);
  }
  double Written(size_t b) const {
    const double length = blocks_[b].end - blocks_[b].first;
    return 1.0 - static_cast<double>(Masks(blocks_[b])) / length;
  }

  void Forward() {
    const auto less = [](const Candidate& a, const Candidate& b) { return a.entropy < b.entropy; };
    std::vector<Candidate> all;
    for (int32_t p = kPrompt; p < blocks_.back().end; ++p) {
      if (tokens_[static_cast<size_t>(p)] != kMask) continue;
      const std::vector<float> logits = model_.Logits(tokens_, p);
      all.push_back({EntropyOf(logits), p, BestId(logits)});
    }
    std::vector<Candidate> chosen = {*std::min_element(all.begin(), all.end(), less)};
    for (const Candidate& one : all) {
      if (one.entropy <= static_cast<double>(threshold_)) chosen.push_back(one);
    }
    for (const Block& block : blocks_) {
      if (!block.full || Masks(block) == 0) continue;
      const auto in_block = [&](const Candidate& c) { return c.position >= block.first && c.position < block.end; };
      std::vector<Candidate> own;
      std::copy_if(all.begin(), all.end(), std::back_inserter(own), in_block);
      if (std::none_of(chosen.begin(), chosen.end(), in_block)) {
        chosen.push_back(*std::min_element(own.begin(), own.end(), less));
      }
      break;
    }
    for (const Candidate& one : chosen) tokens_[static_cast<size_t>(one.position)] = one.token;
  }

  void FillBehindEos() {
    const auto eos = std::find(tokens_.begin() + kPrompt, tokens_.end(), FakeModel::kEos);
    std::fill(eos, tokens_.end(), FakeModel::kEos);
  }

  const FakeModel model_;
  const float threshold_;
  const double add_, full_;
  std::vector<TokenId> tokens_;
  std::vector<Block> blocks_;
};

TEST(MultiBlockTest, DecidesAsTheReferencesBlockStatesDo) {
  int64_t ahead = 0;
  for (uint64_t seed = 1; seed <= 40; ++seed) {
    SCOPED_TRACE(seed);
    const FakeModel model = {seed, 2.0f, 2.0f};
    const float add = seed % 3 == 0 ? 0.5f : 0.125f;
    MultiBlock procedure({seed % 2 == 0 ? 1.6f : 1.1f, add, kBlock, {}});
    ProcedureRun::Canvas canvas = {kPrompt, 36, kBlock, kPrompt};
    ProcedureRun run(procedure, canvas, NetworkOf(model));
    PlainMultiBlock plain(model, seed % 2 == 0 ? 1.6f : 1.1f, static_cast<double>(add), 0.95, run.tokens());
    const Canvases canvases = run.RunToEnd();
    EXPECT_EQ(canvases, plain.Decode(/*early_stop=*/false));
    ahead += static_cast<int64_t>(36 - canvases.size());
  }
  EXPECT_GT(ahead, 40 * 5) << "blocks were decided one after the other";
}

TEST(MultiBlockTest, StopsEarlyAsTheReferenceDoes) {
  for (uint64_t seed = 1; seed <= 30; ++seed) {
    SCOPED_TRACE(seed);
    FakeModel model = {seed, 2.0f, 2.0f};
    model.eos_bias = 1.5f;
    MultiBlock procedure({1.4f, 0.125f, kBlock, {FakeModel::kEos}});
    ProcedureRun::Canvas canvas = {kPrompt, 36, kBlock, kPrompt};
    ProcedureRun run(procedure, canvas, NetworkOf(model));
    PlainMultiBlock plain(model, 1.4f, 0.125, 0.95, run.tokens());
    EXPECT_EQ(run.RunToEnd(), plain.Decode(/*early_stop=*/true));
  }
}

/// What one step writes; the rows' entropies by position. Blocks of two.
std::vector<int32_t> Written(std::vector<TokenId> tokens, const std::vector<float>& entropy, float add,
                             int32_t commits_min = 0) {
  const std::vector<uint8_t> fixed(tokens.size());
  CanvasView view;
  view.tokens = tokens;
  view.fixed = fixed;
  view.mask_id = kMask;
  view.end = 2;
  view.answer_end = static_cast<int32_t>(tokens.size());
  view.commits_min = commits_min;
  MultiBlock procedure({0.5f, add, 2, {}});
  std::vector<RowAsk> rows;
  procedure.Ask(view, rows);
  std::vector<RowChoice> choices;
  for (const RowAsk& row : rows) {
    choices.push_back({});
    choices.back().entropy = entropy[static_cast<size_t>(row.position)];
  }
  std::vector<int32_t> positions;
  for (const TokenWrite& write : procedure.Decide(view, {choices, {}}).writes) positions.push_back(write.position);
  return positions;
}

TEST(MultiBlockTest, ABlockExistsWhenEnoughOfTheOneBeforeIsWritten) {
  const std::vector<float> low(6, 0.1f);
  EXPECT_THAT(Written({kMask, kMask, kMask, kMask, kMask, kMask}, low, 0.5f), ElementsAre(0, 1));
  EXPECT_THAT(Written({1, kMask, kMask, kMask, kMask, kMask}, low, 0.5f), ElementsAre(1, 2, 3));
  EXPECT_THAT(Written({1, kMask, kMask, 1, kMask, kMask}, low, 0.5f), ElementsAre(1, 2, 4, 5));
  EXPECT_THAT(Written({1, kMask, kMask, kMask, kMask, kMask}, low, 1.0f), ElementsAre(1)) << "one block at a time";
}

TEST(MultiBlockTest, TheOpenBlockAlwaysGetsOn) {
  EXPECT_THAT(Written({1, kMask, kMask, kMask}, {0.0f, 3.0f, 0.4f, 2.0f}, 0.5f), ElementsAre(1, 2));
  EXPECT_THAT(Written({1, kMask, kMask, kMask}, {0.0f, 3.0f, 0.9f, 2.0f}, 0.5f), ElementsAre(1, 2))
      << "the best of all, and the open block's";
  EXPECT_THAT(Written({kMask, kMask, kMask, kMask}, {0.9f, 3.0f, 0.0f, 2.0f}, 0.5f), ElementsAre(0));
}

TEST(MultiBlockTest, AnEntropyAtTheThresholdIsWritten) {
  EXPECT_THAT(Written({kMask, kMask}, {0.5f, 0.1f}, 0.5f), ElementsAre(0, 1));
}

TEST(MultiBlockTest, APaceHoldsInTheOpenBlock) {
  EXPECT_THAT(Written({kMask, kMask, kMask, kMask}, {0.9f, 3.0f, 0.9f, 2.0f}, 0.0f, /*commits_min=*/2),
              ElementsAre(0, 1));
}

}  // namespace
}  // namespace quicksilver

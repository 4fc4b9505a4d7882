#include "worker/decoding/procedures/credit.h"

#include <algorithm>
#include <cmath>
#include <map>
#include <vector>

#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/decoding/procedures/procedure_run.h"

namespace quicksilver {
namespace {

using Matrix = std::map<int32_t, std::vector<double>>;  // By position: the credit of every id.

/// decoding.md §8.3 with a whole matrix of credit and all logits, one block of a canvas at a time.
class DenseCredit {
 public:
  DenseCredit(const FakeModel& model, const Credit::Settings& settings) : model_(model), settings_(settings) {}

  /// Decodes [first, end) of `tokens` and appends the canvas of each step.
  void DecodeBlock(int32_t first, int32_t end, std::vector<TokenId>& tokens,
                   std::vector<std::vector<TokenId>>& canvases) {
    Matrix credit;
    for (int32_t p = first; p < end; ++p) credit[p].assign(FakeModel::kVocabulary, 0.0);
    while (std::count(tokens.begin() + first, tokens.begin() + end, FakeModel::kMask) > 0) {
      const std::vector<TokenId> before = tokens;
      std::map<int32_t, double> confidence;
      std::map<int32_t, TokenId> choice;
      for (int32_t p = first; p < end; ++p) {
        for (double& one : credit[p]) one *= static_cast<double>(settings_.beta);
        if (before[static_cast<size_t>(p)] == FakeModel::kMask) Look(before, p, credit[p], choice[p], confidence[p]);
      }
      double best = 0.0;
      for (const auto& [p, c] : confidence) best = std::max(best, c);
      for (const auto& [p, c] : confidence) {
        if (c >= std::min(static_cast<double>(settings_.threshold), best)) tokens[static_cast<size_t>(p)] = choice[p];
      }
      canvases.push_back(tokens);
      ++forwards_;
    }
  }

 private:
  void Look(const std::vector<TokenId>& tokens, int32_t p, std::vector<double>& credit, TokenId& choice,
            double& confidence) const {
    std::vector<float> logits = model_.Logits(tokens, p);
    const TokenId top = BestId(logits);
    credit[static_cast<size_t>(top)] +=
        std::pow(Softmax(logits)[static_cast<size_t>(top)], static_cast<double>(settings_.gamma));
    for (size_t id = 0; id < logits.size(); ++id) {
      logits[id] += settings_.alpha * static_cast<float>(std::log(1.0 + credit[id]));
    }
    const DrawPlace place = {settings_.sampling.seed, settings_.sampling.choice, static_cast<uint32_t>(p),
                             static_cast<uint32_t>(forwards_)};
    choice = ChoiceOf(logits, -1, {}, settings_.sampling, place).token;
    confidence = Softmax(logits)[static_cast<size_t>(choice)];
  }

  const FakeModel model_;
  const Credit::Settings settings_;
  int32_t forwards_ = 0;
};

void ExpectAgreement(const FakeModel& model, const Credit::Settings& settings) {
  ProcedureRun::Canvas canvas;
  canvas.sampling = settings.sampling;
  canvas.answer = 20;
  Credit credit(settings);
  ProcedureRun run(credit, canvas, NetworkOf(model));
  std::vector<TokenId> tokens = run.tokens();
  std::vector<std::vector<TokenId>> expected;
  DenseCredit dense(model, settings);
  for (int32_t first = 3; first < 23; first += 8) dense.DecodeBlock(first, std::min(first + 8, 23), tokens, expected);
  EXPECT_EQ(run.RunToEnd(), expected);
}

TEST(CreditTest, DecidesAsTheWholeMatrixDoes) {
  for (uint64_t seed = 1; seed <= 40; ++seed) {
    SCOPED_TRACE(seed);
    FakeModel model = {seed};
    model.coupling = seed % 2 == 0 ? 0.7f : 1.5f;
    Credit::Settings settings;
    settings.threshold = 0.5f;
    if (seed % 4 == 0) settings.alpha = 2.0f;
    ExpectAgreement(model, settings);
  }
}

TEST(CreditTest, DrawsAsTheWholeMatrixDoes) {
  for (uint64_t seed = 1; seed <= 40; ++seed) {
    SCOPED_TRACE(seed);
    Credit::Settings settings;
    settings.threshold = 0.5f;
    settings.alpha = 2.0f;
    settings.sampling.temperature = 0.8f;
    settings.sampling.seed = seed;
    ExpectAgreement({seed, 2.0f, 1.0f}, settings);
  }
}

/// A network whose masked rows all have the same two tokens to choose from, `lead` apart.
Network TwoTokens(float lead) {
  return [lead](absl::Span<const TokenId>, const RowAsk&) {
    std::vector<float> logits(FakeModel::kVocabulary, -1000.0f);
    logits[4] = lead;
    logits[7] = 0.0f;
    return logits;
  };
}

// p = 0.6: C = 0.6^0.2 = 0.9029, its bonus 0.7 ln 1.9029 = 0.4503, so e^0.4503 * 0.6 / (e^0.4503 * 0.6 + 0.4) = 0.7018.
TEST(CreditTest, TheFirstStepCountsItsOwnCredit) {
  Credit credit({0.99f});
  ProcedureRun run(credit, ProcedureRun::Canvas(), TwoTokens(std::log(1.5f)));
  run.Step();
  ASSERT_EQ(run.decision().writes.size(), 1u) << "of rows that tie, the first";
  EXPECT_EQ(run.decision().writes[0].token, 4);
  EXPECT_NEAR(run.decision().writes[0].confidence, 0.7018f, 1e-4f);
  EXPECT_NEAR(run.decision().writes[0].log_probability, std::log(0.6f), 1e-5f) << "what the model says without credit";
}

// The network changes its mind by less than what the credit of two steps is worth: C = 0.8 * 0.9029 of token 4 against
// 0.9029 of token 7.
TEST(CreditTest, EarlierCreditDecays) {
  Credit::Settings settings;
  settings.threshold = 0.99f;
  Credit credit(settings);
  float lead = std::log(1.5f);
  const Network network = [&lead](absl::Span<const TokenId> tokens, const RowAsk& row) {
    std::vector<float> logits = TwoTokens(lead)(tokens, row);
    if (row.position == 3) logits[4] += 3.0f;  // One row is surer than all others.
    return logits;
  };
  ProcedureRun run(credit, ProcedureRun::Canvas(), network);
  run.Step();
  ASSERT_EQ(run.decision().writes.size(), 1u);
  std::vector<TokenBias> biases;
  credit.AppendBiases(5, biases);
  ASSERT_EQ(biases.size(), 1u);
  EXPECT_EQ(biases[0].id, 4);
  EXPECT_NEAR(biases[0].bias, 0.7 * std::log(1.0 + 0.8 * 0.90288), 1e-4);
  lead = -std::log(1.5f);
  run.Step();
  const double rival = 1.0 + 0.8 * 0.90288, now = 1.0 + 0.90288;
  const double odds = 1.5 * std::pow(now, 0.7) / std::pow(rival, 0.7);
  EXPECT_EQ(run.decision().writes[0].token, 7);
  EXPECT_NEAR(run.decision().writes[0].confidence, odds / (1.0 + odds), 1e-4);
}

TEST(CreditTest, ABlockBeginsWithoutCredit) {
  Credit credit({0.99f});
  ProcedureRun run(credit, ProcedureRun::Canvas(), TwoTokens(1.0f));
  run.Step();
  credit.OpenBlock(run.View());
  std::vector<TokenBias> biases;
  for (int32_t p = 0; p < 19; ++p) credit.AppendBiases(p, biases);
  EXPECT_TRUE(biases.empty());
}

}  // namespace
}  // namespace quicksilver

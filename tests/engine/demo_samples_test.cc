// The demo model's recorded answers: ids and denoising forwards of all held-out problems, at one token a forward and
// at a threshold of 0.9, decoded elsewhere in float32 from the bf16 weights.
#include <cstdlib>
#include <fstream>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "gtest/gtest.h"
#include "kernels/cpu/cpu_ops.h"
#include "tests/support/engine_group.h"

namespace quicksilver {
namespace {

constexpr uint32_t kTokensMax = 128;  // The recording's.

// At one token a forward the order of the commits counts, and this model is often so sure that two confidences differ
// by less than float32 resolves (6e-8): such an order, and with it the forward in which the stop token comes, may
// differ.
constexpr int kOrdersMayDiffer = 3;

struct Sample {
  v1::Submit submit;
  std::vector<TokenId> answer;  ///< With the stop token.
  uint32_t forwards = 0;
  bool by_order = false;  ///< One token a forward.
};

std::string DemoModel() {
  const char* golden = std::getenv("QUICKSILVER_GOLDEN");
  return std::string(golden != nullptr ? golden : QUICKSILVER_ROOT "/../shared/golden") + "/../demo_model";
}

std::vector<Sample> ReadSamples(const std::string& path) {
  std::vector<Sample> samples;
  std::ifstream lines(path);
  for (std::string line; std::getline(lines, line);) {
    const nlohmann::json recorded = nlohmann::json::parse(line);
    Sample& sample = samples.emplace_back();
    sample.submit =
        MakeSubmit(samples.size(), recorded["prompt_ids"].get<std::vector<TokenId>>(), kTokensMax, {1016, 1018});
    v1::Decoding& decoding = *sample.submit.mutable_decoding();
    sample.by_order = recorded["threshold"].is_null();
    if (sample.by_order) {
      decoding.set_policy(v1::POLICY_STATIC);
    } else {
      decoding.set_threshold(recorded["threshold"].get<float>());  // With the model's default policy, dynamic.
    }
    sample.answer = recorded["answer_ids"].get<std::vector<TokenId>>();
    sample.forwards = recorded["forwards"].get<uint32_t>();
  }
  return samples;
}

class DemoSamplesTest : public testing::TestWithParam<int> {};

TEST_P(DemoSamplesTest, AnswersAndForwardsEqualTheRecordedOnes) {
  const std::vector<Sample> samples = ReadSamples(DemoModel() + "/samples.jsonl");
  ASSERT_EQ(samples.size(), 328u) << DemoModel() << "/samples.jsonl: set QUICKSILVER_GOLDEN to ../golden beside it";
  EngineGroup::Options options;
  options.directory = DemoModel();
  options.ranks = GetParam();
  options.engine.waiting_max = 400;
  options.engine.sequences_max = 16;
  options.make_ops = [] { return MakeCpuOps(DType::kF32, CpuOpsOptions()); };
  const auto group = EngineGroup::Start(options);
  ASSERT_TRUE(group.ok()) << group.status();
  std::vector<v1::Submit> submits;
  for (const Sample& sample : samples) submits.push_back(sample.submit);
  const auto transcripts = (*group)->RunAll(submits);
  ASSERT_TRUE(transcripts.ok()) << transcripts.status();
  int orders_differ = 0;
  for (size_t i = 0; i < samples.size(); ++i) {
    const Transcript& transcript = (*transcripts)[i];
    std::vector<TokenId> expected = samples[i].answer;
    const bool stopped = expected.back() == 1018 || expected.back() == 1016;
    if (stopped) expected.pop_back();
    EXPECT_EQ(transcript.answer, expected) << "line " << i + 1;
    if (samples[i].by_order && transcript.end.forwards() != samples[i].forwards) {
      ++orders_differ;
    } else {
      EXPECT_EQ(transcript.end.forwards(), samples[i].forwards) << "line " << i + 1;
    }
    EXPECT_EQ(transcript.end.reason(), stopped ? v1::SequenceEnd::REASON_STOP : v1::SequenceEnd::REASON_LENGTH);
  }
}

INSTANTIATE_TEST_SUITE_P(Ranks, DemoSamplesTest, testing::Values(1, 2));

}  // namespace
}  // namespace quicksilver

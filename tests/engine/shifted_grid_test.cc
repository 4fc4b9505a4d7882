// Families whose row p - 1 predicts position p under a causal or block-causal mask, decoded by the engine and by a
// plain loop over a plain network, which knows neither caches nor batches.
#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "kernels/cpu/cpu_ops.h"
#include "tests/model/plain_network.h"
#include "tests/support/engine_group.h"
#include "tests/support/temp_directory.h"
#include "worker/decoding/decoding_rule.h"
#include "worker/engine/decoding_wire.h"

namespace quicksilver {
namespace {

constexpr int32_t kBlock = 8;
constexpr TokenId kMask = 39;

class ShiftedGridTest : public testing::Test {
 protected:
  void Write(const char* architecture, int64_t block) {
    PlainSizes sizes{.theta = 1e6, .qkv_bias = true, .tied = true, .block = block};
    network_ = MakePlainNetwork(sizes, /*seed=*/7);
    nlohmann::json config = {{"architectures", {architecture}},
                             {"hidden_size", sizes.hidden},
                             {"num_hidden_layers", sizes.layers},
                             {"num_attention_heads", sizes.heads},
                             {"num_key_value_heads", sizes.kv_heads},
                             {"intermediate_size", sizes.mlp},
                             {"vocab_size", sizes.vocabulary},
                             {"max_position_embeddings", 256},
                             {"hidden_act", "silu"},
                             {"rms_norm_eps", sizes.epsilon},
                             {"rope_theta", sizes.theta},
                             {"tie_word_embeddings", true},
                             {"torch_dtype", "float32"},
                             {"eos_token_id", 38}};
    if (block > 1) config["mask_token_id"] = kMask;
    if (block > 1) config["bd_size"] = block;
    directory_.Write("config.json", config.dump());
    directory_.Write("model.safetensors", PlainSafetensors(StoreNetwork(network_, PlainNames::kQwen)));
  }

  std::unique_ptr<EngineGroup> Start(int ranks) {
    EngineGroup::Options options;
    options.directory = directory_.path();
    options.ranks = ranks;
    options.make_ops = [] { return MakeCpuOps(DType::kF32, CpuOpsOptions()); };
    options.engine.step_rows_max = 48;  // So that prompts are cut.
    absl::StatusOr<std::unique_ptr<EngineGroup>> group = EngineGroup::Start(options);
    EXPECT_TRUE(group.ok()) << group.status();
    return *std::move(group);
  }

  /// Of the row that predicts `position` when `ids` is all there is.
  std::pair<TokenId, double> Predict(const std::vector<std::vector<double>>& logits, int32_t position) const {
    const std::vector<double>& row = logits[static_cast<size_t>(std::max(0, position - 1))];
    const size_t ids = network_.sizes.block > 1 ? row.size() - 1 : row.size();  // The mask is the last one.
    const auto best = std::max_element(row.begin(), row.begin() + static_cast<ptrdiff_t>(ids));
    double sum = 0.0;
    for (const double z : row) sum += std::exp(z - *best);
    return {static_cast<TokenId>(best - row.begin()), 1.0 / sum};
  }

  TempDirectory directory_;
  PlainNetwork network_;
};

std::vector<TokenId> Prompt(int32_t length) {
  std::vector<TokenId> prompt;
  for (int32_t i = 0; i < length; ++i) prompt.push_back((i * 7 + i * i * 3 + length) % 38);
  return prompt;
}

TEST_F(ShiftedGridTest, AnAutoregressiveModelWritesTheArgMaxBehindEachPrefix) {
  Write("Qwen2ForCausalLM", 1);
  for (const int ranks : {1, 2}) {
    const std::unique_ptr<EngineGroup> group = Start(ranks);
    EXPECT_THAT(AllowedPolicies(group->spec()), testing::ElementsAre(Policy::kAutoregressive));
    std::vector<v1::Submit> submits;
    for (const int32_t length : {1, 5, 16, 70}) submits.push_back(MakeSubmit(submits.size() + 1, Prompt(length), 9));
    // The same again, whose prompts are in the cache by then.
    for (size_t i = 0; i < 4; ++i) submits[i].set_cache_salt("salt");
    for (int round = 0; round < 2; ++round) {
      const absl::StatusOr<std::vector<Transcript>> transcripts = group->RunAll(submits);
      ASSERT_TRUE(transcripts.ok()) << transcripts.status();
      for (size_t i = 0; i < submits.size(); ++i) {
        std::vector<TokenId> ids(submits[i].prompt_ids().begin(), submits[i].prompt_ids().end());
        const size_t prompt = ids.size();
        while (ids.size() < prompt + 9) {
          ids.push_back(Predict(PlainLogits(network_, ids), static_cast<int32_t>(ids.size())).first);
        }
        EXPECT_EQ((*transcripts)[i].answer,
                  std::vector<TokenId>(ids.begin() + static_cast<ptrdiff_t>(prompt), ids.end()))
            << prompt << " tokens, round " << round;
        EXPECT_EQ((*transcripts)[i].end.forwards(), 9u);
        EXPECT_EQ((*transcripts)[i].end.cached_tokens() > 0, round == 1 && prompt > 16);
      }
      for (v1::Submit& submit : submits) submit.set_sequence_id(submit.sequence_id() + 10);
    }
  }
}

// The first position of a block comes from the last row of the clean block before it, the others from rows of the
// block.
TEST_F(ShiftedGridTest, SubBlocksAreDecidedAsAPlainLoopDecidesThem) {
  Write("Fast_dLLM_QwenForCausalLM", kBlock);
  constexpr float kThreshold = 0.2f;
  constexpr int32_t kTokens = 21, kPart = 4;
  for (const int ranks : {1, 2}) {
    const std::unique_ptr<EngineGroup> group = Start(ranks);
    for (const int32_t length : {1, 7, 8, 9, 40, 63, 64}) {
      SCOPED_TRACE(absl::StrCat("prompt of ", length, ", tp = ", ranks));
      v1::Submit submit = MakeSubmit(static_cast<uint64_t>(length), Prompt(length), kTokens);
      submit.mutable_decoding()->set_threshold(kThreshold);
      submit.mutable_decoding()->set_sub_block_length(kPart);
      const absl::StatusOr<std::vector<Transcript>> transcripts = group->RunAll({submit});
      ASSERT_TRUE(transcripts.ok()) << transcripts.status();
      std::vector<TokenId> ids = Prompt(length);
      uint32_t forwards = 0;
      while (static_cast<int32_t>(ids.size()) < length + kTokens) {
        const int32_t first = static_cast<int32_t>(ids.size()) / kBlock * kBlock;
        ids.resize(static_cast<size_t>(first + kBlock), kMask);
        while (true) {
          const auto mask = std::find(ids.begin(), ids.end(), kMask);
          if (mask == ids.end()) break;
          ++forwards;
          const std::vector<std::vector<double>> logits = PlainLogits(network_, ids);
          const int32_t begin = static_cast<int32_t>(mask - ids.begin());
          const int32_t end = begin == first ? begin + 1 : first + ((begin - first) / kPart + 1) * kPart;
          int32_t best = begin;
          for (int32_t p = begin; p < end; ++p) {
            if (ids[static_cast<size_t>(p)] != kMask) continue;
            if (Predict(logits, p).second > Predict(logits, best).second) best = p;
          }
          for (int32_t p = begin; p < end; ++p) {
            const auto [token, confidence] = Predict(logits, p);
            if (ids[static_cast<size_t>(p)] == kMask && (p == best || confidence > kThreshold)) {
              ids[static_cast<size_t>(p)] = token;
            }
          }
        }
      }
      ids.resize(static_cast<size_t>(length + kTokens));
      EXPECT_EQ((*transcripts)[0].answer, std::vector<TokenId>(ids.begin() + length, ids.end()));
      EXPECT_EQ((*transcripts)[0].end.forwards(), forwards);
    }
  }
}

TEST_F(ShiftedGridTest, OneBatchOfAllPoliciesGivesTheBytesThatEachGivesAlone) {
  Write("Fast_dLLM_QwenForCausalLM", kBlock);
  const std::unique_ptr<EngineGroup> alone = Start(1), together = Start(2), batch = Start(1);
  std::vector<v1::Submit> submits;
  for (const Policy policy : AllowedPolicies(alone->spec())) {
    for (const float temperature : {0.0f, 1.0f}) {
      v1::Submit submit = MakeSubmit(submits.size() + 1, Prompt(static_cast<int32_t>(5 + submits.size())), 19);
      submit.mutable_decoding()->set_policy(WireOf(policy));
      submit.mutable_sampling()->set_temperature(temperature);
      submits.push_back(submit);
    }
  }
  ASSERT_GE(submits.size(), 16u);
  const absl::StatusOr<std::vector<Transcript>> in_batch = batch->RunAll(submits), of_two = together->RunAll(submits);
  ASSERT_TRUE(in_batch.ok() && of_two.ok()) << in_batch.status() << of_two.status();
  for (size_t i = 0; i < submits.size(); ++i) {
    SCOPED_TRACE(submits[i].decoding().ShortDebugString());
    const Transcript whole = (*alone->RunAll({submits[i]}))[0];
    EXPECT_EQ(Bytes(whole), Bytes((*in_batch)[i]));
    EXPECT_EQ(whole.answer, (*of_two)[i].answer);
  }
}

}  // namespace
}  // namespace quicksilver

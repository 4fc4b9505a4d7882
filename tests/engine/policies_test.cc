// A request may carry any policy that its family allows: in one batch, and in parts on several groups, with the bytes
// that it gives alone.
#include <algorithm>
#include <functional>
#include <map>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/engine/cpu_engine.h"
#include "worker/decoding/decoding_rule.h"
#include "worker/engine/decoding_wire.h"

namespace quicksilver {
namespace {

using ::testing::Each;

constexpr TokenId kMask = 250;

struct Case {
  const char* family;
  int ranks;
};

EngineGroup::Options OptionsOf(const Case& of) {
  EngineGroup::Options options = CpuEngineOptions(of.family, of.ranks);
  options.mask_id = kMask;
  options.page_size = 32;
  return options;
}

std::unique_ptr<EngineGroup> Start(const EngineGroup::Options& options) {
  absl::StatusOr<std::unique_ptr<EngineGroup>> group = EngineGroup::Start(options);
  EXPECT_TRUE(group.ok()) << group.status();
  return *std::move(group);
}

using Change = std::function<void(v1::Submit& submit)>;

/// What a request can ask for beside its policy.
std::vector<std::pair<Policy, Change>> Variants(const ModelSpec& spec) {
  std::vector<std::pair<Policy, Change>> variants = {
      {Policy::kThreshold, [](v1::Submit& s) { s.mutable_sampling()->set_presence_penalty(0.7f); }},
      {Policy::kStatic,
       [](v1::Submit& s) {
         s.mutable_sampling()->set_top_log_probabilities(5);
         for (const int32_t id : {3, 40, 77}) {
           v1::TokenBias& bias = *s.mutable_sampling()->add_biases();
           bias.set_id(id);
           bias.set_bias(id == 40 ? -INFINITY : 2.0f);
         }
       }},
      {Policy::kStatic, [](v1::Submit& s) { s.mutable_decoding()->set_remasking(v1::REMASKING_RANDOM); }},
      {Policy::kStatic, [](v1::Submit& s) { s.mutable_decoding()->set_confidence(v1::CONFIDENCE_MARGIN); }}};
  if (spec.grid != BlockGrid::kAfterPrompt) return variants;
  for (const v1::Cache cache : {v1::CACHE_PREFIX, v1::CACHE_DUAL, v1::CACHE_VICINITY}) {
    if (cache == v1::CACHE_VICINITY && spec.shift) continue;
    variants.push_back({Policy::kThreshold, [cache](v1::Submit& s) { s.mutable_decoding()->set_cache(cache); }});
  }
  if (!spec.shift) {
    variants.push_back({Policy::kThreshold, [](v1::Submit& s) { s.mutable_decoding()->set_guidance_scale(0.5f); }});
  }
  if (!spec.shift) {
    variants.push_back({Policy::kVariableLength, [](v1::Submit& s) {  // It grows at once, and while it is decided.
                          s.mutable_decoding()->set_initial_length(10);
                          s.mutable_decoding()->set_expansion(3);
                          s.mutable_decoding()->set_eos_threshold(0.0f);
                          s.mutable_decoding()->set_expand_eos_threshold(1.0f);
                          s.mutable_decoding()->set_low_threshold(1.0f);
                          s.mutable_decoding()->set_eos_window(8);
                        }});
  }
  variants.push_back({Policy::kThreshold, [](v1::Submit& s) {
                        for (int32_t i = 0; i < 5; ++i) s.add_suffix_ids(60 + i);
                        for (const int32_t id : {-1, -1, 9, 8, -1, -1, 7}) s.add_fixed_ids(id);
                        for (const int32_t id : {-1, 5, -1, -1, 4}) s.add_draft_ids(id);
                      }});
  return variants;
}

/// Every policy of the family, greedy and sampled, and every variant.
std::vector<v1::Submit> Requests(const ModelSpec& spec) {
  std::vector<v1::Submit> submits;
  const auto add = [&](Policy policy, bool sampled, const Change& change) {
    const uint32_t n = static_cast<uint32_t>(submits.size());
    std::vector<TokenId> prompt;
    for (uint32_t p = 0; p < 3 + n % 11; ++p) prompt.push_back(static_cast<TokenId>(Philox(31, n, p, 0, 0).w[0] % 249));
    v1::Submit submit = MakeSubmit(n + 1, prompt, 20 + n % 5, {249});
    submit.mutable_decoding()->set_policy(WireOf(policy));
    if (spec.grid == BlockGrid::kAfterPrompt) submit.mutable_decoding()->set_block_length(8);
    if (sampled) submit.mutable_sampling()->set_temperature(0.8f);
    if (sampled && n % 2 == 0) submit.mutable_sampling()->set_top_p(0.9f);
    submit.mutable_sampling()->set_seed(n);
    if (change) change(submit);
    submits.push_back(std::move(submit));
  };
  for (const Policy policy : AllowedPolicies(spec)) {
    add(policy, false, nullptr);
    add(policy, true, nullptr);
  }
  for (const auto& [policy, change] : Variants(spec)) add(policy, submits.size() % 2 == 0, change);
  return submits;
}

class PoliciesTest : public testing::TestWithParam<Case> {};

TEST_P(PoliciesTest, OneBatchOfAllPoliciesGivesTheBytesThatEachGivesAlone) {
  const std::unique_ptr<EngineGroup> alone = Start(OptionsOf(GetParam()));
  const std::vector<v1::Submit> submits = Requests(alone->spec());
  ASSERT_GE(AllowedPolicies(alone->spec()).size(), 8u);
  std::vector<std::string> expected;
  for (const v1::Submit& submit : submits) {
    SCOPED_TRACE(submit.decoding().ShortDebugString());
    const absl::StatusOr<std::vector<Transcript>> transcripts = alone->RunAll({submit});
    ASSERT_TRUE(transcripts.ok()) << transcripts.status();
    const Transcript& transcript = (*transcripts)[0];
    EXPECT_NE(transcript.end.reason(), v1::SequenceEnd::REASON_ERROR) << transcript.end.error_message();
    expected.push_back(Bytes(transcript));
  }
  for (const int32_t steps : {1, 4}) {
    SCOPED_TRACE(absl::StrCat(steps, " steps a launch"));
    EngineGroup::Options options = OptionsOf(GetParam());
    options.engine.steps_per_launch_max = steps;
    const std::unique_ptr<EngineGroup> group = Start(options);
    const absl::StatusOr<std::vector<Transcript>> transcripts = group->RunAll(submits);
    ASSERT_TRUE(transcripts.ok()) << transcripts.status() << ::testing::PrintToString(group->Stop());
    for (size_t i = 0; i < submits.size(); ++i) {
      EXPECT_EQ(Bytes((*transcripts)[i]), expected[i]) << submits[i].decoding().ShortDebugString();
    }
    EXPECT_THAT(group->Stop(), Each(absl::OkStatus()));
  }
}

/// What a client of the worker knows after `updates`: where somebody else can go on.
v1::Checkpoint CheckpointAfter(const v1::Submit& submit, const std::vector<v1::SequenceUpdate>& updates) {
  std::map<uint32_t, int32_t> tokens;
  v1::Checkpoint checkpoint;
  for (const v1::SequenceUpdate& update : updates) {
    for (const v1::Commit& commit : update.commits()) tokens[commit.position()] = commit.token();
    if (update.canvas_length() > 0) checkpoint.set_canvas_length(update.canvas_length());
  }
  const v1::SequenceUpdate& last = updates.back();
  checkpoint.set_step(last.step() - (last.block_state() ? last.block_step() : 0));
  checkpoint.set_block_step(last.block_state() ? 0 : last.block_step());
  checkpoint.set_final_before(last.final_before());
  const uint32_t prompt = static_cast<uint32_t>(submit.prompt_ids_size());
  uint32_t end = last.final_before();
  if (!last.block_state() && !tokens.empty()) end = std::max(end, tokens.rbegin()->first + 1);
  for (uint32_t p = prompt; p < end; ++p) {
    const auto written = tokens.find(p);
    int32_t token = written == tokens.end() ? -1 : written->second;
    for (const auto* given : {&submit.draft_ids(), &submit.fixed_ids()}) {
      const int i = static_cast<int>(p - prompt);
      if (written == tokens.end() && i < given->size() && given->Get(i) >= 0) token = given->Get(i);
    }
    checkpoint.add_tokens(token);
  }
  return checkpoint;
}

// Whatever an update says is enough to go on elsewhere: at every step, or at the block's beginning where that has
// state.
TEST_P(PoliciesTest, AnAnswerThatIsResumedAfterAnyUpdateEndsWithTheSameBytes) {
  const std::unique_ptr<EngineGroup> first = Start(OptionsOf(GetParam()));
  const std::unique_ptr<EngineGroup> second = Start(OptionsOf(GetParam()));
  int stateful = 0, resumed = 0;
  for (const v1::Submit& submit : Requests(first->spec())) {
    SCOPED_TRACE(submit.decoding().ShortDebugString());
    const Transcript whole = (*first->RunAll({submit}))[0];
    std::vector<v1::Submit> rests;
    for (size_t n = 1; n < whole.updates.size(); ++n) {
      if (whole.updates[n - 1].has_end()) break;
      // Every third step, and wherever a block closes.
      if (whole.updates[n - 1].block_step() % 3 == 1) continue;
      v1::Submit rest = submit;
      rest.set_sequence_id(1000 * submit.sequence_id() + n);
      *rest.mutable_checkpoint() =
          CheckpointAfter(submit, {whole.updates.begin(), whole.updates.begin() + static_cast<ptrdiff_t>(n)});
      stateful += whole.updates[n - 1].block_state() ? 1 : 0;
      rests.push_back(std::move(rest));
    }
    const absl::StatusOr<std::vector<Transcript>> transcripts = second->RunAll(rests);
    ASSERT_TRUE(transcripts.ok()) << transcripts.status();
    for (const Transcript& rest : *transcripts) {
      ++resumed;
      EXPECT_EQ(rest.end.forwards(), whole.end.forwards());
      EXPECT_EQ(rest.end.reason(), whole.end.reason());
      ASSERT_LE(rest.updates.size(), whole.updates.size());
      for (size_t i = 1; i <= rest.updates.size(); ++i) {
        v1::SequenceUpdate have = rest.updates[rest.updates.size() - i], want = whole.updates[whole.updates.size() - i];
        for (v1::SequenceUpdate* update : {&have, &want}) {
          update->clear_end();
          update->clear_sequence_id();
        }
        EXPECT_EQ(have.SerializeAsString(), want.SerializeAsString()) << "update " << i << " from the end";
      }
    }
  }
  EXPECT_GT(resumed, 50);
  EXPECT_GT(stateful, 10);
}

// Without provisional tokens there is an update where a block closes, which tells as well what was written ahead.
TEST_P(PoliciesTest, AnAnswerOfFinalTokensIsResumedWhereverABlockClosesWithTheSameBytes) {
  const std::unique_ptr<EngineGroup> first = Start(OptionsOf(GetParam()));
  const std::unique_ptr<EngineGroup> second = Start(OptionsOf(GetParam()));
  int resumed = 0;
  std::map<v1::Policy, int> ahead;
  for (v1::Submit& submit : Requests(first->spec())) {
    SCOPED_TRACE(submit.decoding().ShortDebugString());
    const Transcript expected = (*first->RunAll({submit}))[0];
    submit.set_sequence_id(submit.sequence_id() + 500);
    submit.set_provisional(false);
    const Transcript whole = (*first->RunAll({submit}))[0];
    EXPECT_EQ(whole.answer, expected.answer);
    for (size_t n = 1; n < whole.updates.size(); ++n) {
      v1::Submit rest = submit;
      rest.set_sequence_id(1000 * submit.sequence_id() + n);
      *rest.mutable_checkpoint() =
          CheckpointAfter(submit, {whole.updates.begin(), whole.updates.begin() + static_cast<ptrdiff_t>(n)});
      for (const v1::Commit& commit : whole.updates[n - 1].commits()) {
        ahead[submit.decoding().policy()] += commit.position() >= whole.updates[n - 1].final_before() ? 1 : 0;
      }
      const absl::StatusOr<std::vector<Transcript>> transcripts = second->RunAll({rest});
      ASSERT_TRUE(transcripts.ok()) << transcripts.status();
      const Transcript& found = (*transcripts)[0];
      ++resumed;
      EXPECT_EQ(found.end.forwards(), whole.end.forwards());
      EXPECT_EQ(found.end.reason(), whole.end.reason());
      const size_t left = whole.updates.size() - n;
      ASSERT_EQ(found.updates.size(), left);
      for (size_t i = 0; i < left; ++i) {
        v1::SequenceUpdate have = found.updates[i], want = whole.updates[n + i];
        for (v1::SequenceUpdate* update : {&have, &want}) {
          update->clear_end();
          update->clear_sequence_id();
        }
        EXPECT_EQ(have.SerializeAsString(), want.SerializeAsString()) << "update " << i << " behind " << n;
      }
    }
  }
  EXPECT_GT(resumed, 4);
  const std::vector<Policy> policies = AllowedPolicies(first->spec());
  for (const Policy policy : {Policy::kMultiBlock, Policy::kVariableLength}) {
    if (std::find(policies.begin(), policies.end(), policy) == policies.end()) continue;
    EXPECT_GT(ahead[WireOf(policy)], 0) << v1::Policy_Name(WireOf(policy));
  }
}

INSTANTIATE_TEST_SUITE_P(Families, PoliciesTest,
                         testing::Values(Case{"llada", 1}, Case{"llada", 2}, Case{"dream", 1}, Case{"dream", 2},
                                         Case{"sdar", 1}, Case{"sdar", 2}, Case{"llada2", 1}, Case{"llada2", 2},
                                         Case{"lladamoe", 1}, Case{"lladamoe", 2}),
                         [](const testing::TestParamInfo<Case>& of) {
                           return absl::StrCat(of.param.family, "_tp", of.param.ranks);
                         });

}  // namespace
}  // namespace quicksilver

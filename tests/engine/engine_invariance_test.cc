// Same request, same bytes: whatever shares the batch or the cache, whatever is preempted, and wherever it was resumed.
#include <algorithm>
#include <latch>
#include <map>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/engine/cpu_engine.h"
#include "tests/support/engine_group.h"

namespace quicksilver {
namespace {

using ::testing::Each;

std::unique_ptr<EngineGroup> Start(const EngineGroup::Options& options) {
  absl::StatusOr<std::unique_ptr<EngineGroup>> group = EngineGroup::Start(options);
  EXPECT_TRUE(group.ok()) << group.status();
  return *std::move(group);
}

struct Setting {
  std::string model;
  int32_t steps_per_launch_max = 1;
  bool int8_layers = false;
};

std::string NameOf(const testing::TestParamInfo<Setting>& of) {
  return of.param.model + (of.param.steps_per_launch_max == 1 ? "" : "SeveralStepsALaunch") +
         (of.param.int8_layers ? "Int8" : "");
}

class InvarianceTest : public testing::TestWithParam<Setting> {
 protected:
  void SetUp() override {
    if (GetParam().int8_layers && !HasInt8Products()) {
      GTEST_SKIP() << "this processor does not add up products of bytes exactly";
    }
  }
  std::string model() const { return GetParam().model; }
  EngineGroup::Options OptionsOf(int ranks) const {
    EngineGroup::Options options = OneStepALaunch(ranks);
    options.engine.steps_per_launch_max = GetParam().steps_per_launch_max;
    return options;
  }
  EngineGroup::Options OneStepALaunch(int ranks) const {
    EngineGroup::Options options = CpuEngineOptions(model(), ranks);
    options.make_ops = [int8_layers = GetParam().int8_layers] {
      return MakeCpuOps(DType::kF32, {.int8_layers = int8_layers});
    };
    return options;
  }
  bool bidirectional() const { return model() == "llada"; }

  /// What each of `submits` gives when nothing else runs, one step a launch.
  std::vector<Transcript> Alone(const std::vector<v1::Submit>& submits, int ranks = 1) const {
    EngineGroup::Options options = OneStepALaunch(ranks);
    options.engine.share_prefixes = false;
    const std::unique_ptr<EngineGroup> group = Start(options);
    std::vector<Transcript> transcripts;
    for (const v1::Submit& submit : submits) {
      const absl::StatusOr<std::vector<Transcript>> of_one = group->RunAll({submit});
      EXPECT_TRUE(of_one.ok()) << of_one.status();
      transcripts.push_back((*of_one)[0]);
    }
    return transcripts;
  }

  /// Runs `submits` at once on `group` and compares.
  static void ExpectSame(EngineGroup& group, const std::vector<v1::Submit>& submits,
                         const std::vector<Transcript>& expected) {
    const absl::StatusOr<std::vector<Transcript>> found = group.RunAll(submits);
    ASSERT_TRUE(found.ok()) << found.status();
    for (size_t i = 0; i < submits.size(); ++i) {
      EXPECT_EQ(Bytes((*found)[i]), Bytes(expected[i])) << "sequence " << submits[i].sequence_id();
    }
  }
};

/// Of the families that prefill, and take pages as they go.
class BlockCausalInvarianceTest : public InvarianceTest {};

/// The same with other ids, salted.
std::vector<v1::Submit> Copies(const std::vector<v1::Submit>& submits, uint64_t first_id, const std::string& salt) {
  std::vector<v1::Submit> copies = submits;
  for (v1::Submit& copy : copies) {
    copy.set_sequence_id(first_id++);
    copy.set_cache_salt(salt);
  }
  return copies;
}

TEST_P(InvarianceTest, BatchesOfTwoToSixtyFourGiveTheBytesOfEachAlone) {
  const std::vector<v1::Submit> submits = VariedSubmits(bidirectional());
  const std::vector<Transcript> expected = Alone(submits);
  const std::unique_ptr<EngineGroup> group = Start(OptionsOf(1));
  uint64_t id = 1;
  for (const size_t batch : {size_t{2}, size_t{5}, size_t{16}, size_t{64}}) {
    SCOPED_TRACE(absl::StrCat("batch of ", batch));
    std::vector<v1::Submit> some;
    std::vector<Transcript> of_some;
    for (size_t i = 0; i < batch; ++i, ++id) {
      some.push_back(submits[(i * 3 + batch) % submits.size()]);
      of_some.push_back(expected[(i * 3 + batch) % submits.size()]);
      some.back().set_sequence_id(id);
    }
    ExpectSame(*group, some, of_some);
  }
  EXPECT_EQ(group->leader().Load().pages_free, group->leader().Load().pages_total);
}

// The pool holds the largest sequence and little more, so that the others lose their pages again and again.
TEST_P(BlockCausalInvarianceTest, PreemptedSequencesGiveTheirBytes) {
  std::vector<v1::Submit> submits = VariedSubmits(bidirectional());
  for (v1::Submit& submit : submits) submit.set_max_tokens(submit.max_tokens() + 30);
  const std::vector<Transcript> expected = Alone(submits);
  for (const bool share : {false, true}) {
    SCOPED_TRACE(share ? "sharing prefixes" : "sharing nothing");
    EngineGroup::Options options = OptionsOf(1);
    options.pages = 8;
    options.engine.share_prefixes = share;
    const std::unique_ptr<EngineGroup> group = Start(options);
    ExpectSame(*group, Copies(submits, 1, "salt"), expected);
    const EngineLoad load = group->leader().Load();
    EXPECT_GT(load.preemptions, 0u) << "the test has lost its point";
    EXPECT_EQ(load.pages_free, load.pages_total);
    EXPECT_EQ(load.preempted, 0u);
  }
}

TEST_P(InvarianceTest, SharedPrefixesChangeNoByteHitOrMiss) {
  std::vector<v1::Submit> submits = VariedSubmits(bidirectional());
  for (v1::Submit& submit : submits) {  // Half of them begin alike.
    if (submit.sequence_id() % 2 == 0 || bidirectional()) continue;
    const std::vector<int32_t> own(submit.prompt_ids().begin(), submit.prompt_ids().end());
    submit.clear_prompt_ids();
    for (int32_t i = 0; i < 70; ++i) submit.add_prompt_ids(i * 7 % 240);
    submit.mutable_prompt_ids()->Add(own.begin(), own.end());
  }
  const std::vector<Transcript> expected = Alone(submits);
  const std::unique_ptr<EngineGroup> group = Start(OptionsOf(1));
  ExpectSame(*group, Copies(submits, 100, "one"), expected);
  const uint64_t cold = group->leader().Load().prefix_hit_tokens;
  ExpectSame(*group, Copies(submits, 200, "one"), expected);
  const uint64_t warm = group->leader().Load().prefix_hit_tokens;
  ExpectSame(*group, Copies(submits, 300, "two"), expected);
  ExpectSame(*group, Copies(submits, 400, ""), expected);
  const EngineLoad load = group->leader().Load();
  EXPECT_EQ(load.pages_free, load.pages_total);
  if (bidirectional()) {
    EXPECT_EQ(load.prefix_hit_tokens + load.pages_cached, 0u) << "every step computes everything";
    return;
  }
  EXPECT_GT(warm - cold, 8u * 64) << "what ran before is found again";
  EXPECT_GT(load.pages_cached, 0u);
  const absl::StatusOr<Transcript> hit = group->Await(200), stranger = group->Await(400);
  ASSERT_TRUE(hit.ok() && stranger.ok());
  EXPECT_GE(hit->end.cached_tokens(), 64u);
  EXPECT_EQ(stranger->end.cached_tokens(), 0u) << "without a salt nothing is shared";
}

// The long prompt comes when the other sequence has made its first step, and is cut beside it.
TEST_P(BlockCausalInvarianceTest, HowPrefillIsCutChangesNoByte) {
  std::vector<v1::Submit> submits = {MakeSubmit(1, {1, 2, 3}, 40), MakeSubmit(2, std::vector<TokenId>(150, 7), 40)};
  for (v1::Submit& submit : submits) submit.mutable_decoding()->set_policy(v1::POLICY_SEQUENTIAL);
  const std::vector<Transcript> expected = Alone(submits);
  std::vector<uint64_t> steps;
  for (const absl::Duration target : {absl::Microseconds(1), absl::InfiniteDuration()}) {
    EngineGroup::Options options = OptionsOf(1);
    options.engine.step_time_target = target;
    EngineGroup* running = nullptr;
    std::latch started(1);
    options.on_report = [&, first = true](const v1::StepResult&) mutable {
      started.wait();
      if (!std::exchange(first, false)) return;
      EXPECT_TRUE(running->Submit(submits[1]).ok());
    };
    const std::unique_ptr<EngineGroup> group = Start(options);
    running = group.get();
    started.count_down();
    ASSERT_TRUE(group->Submit(submits[0]).ok());
    for (size_t i = 0; i < submits.size(); ++i) {
      const absl::StatusOr<Transcript> found = group->Await(submits[i].sequence_id());
      ASSERT_TRUE(found.ok()) << found.status();
      EXPECT_EQ(Bytes(*found), Bytes(expected[i]));
    }
    steps.push_back(group->leader().Load().steps);
  }
  EXPECT_GT(steps[0], steps[1] + 10) << "the test has lost its point";
}

/// What a coordinator that has seen the first `count` updates knows.
v1::Submit ResumeAfter(v1::Submit submit, const Transcript& transcript, size_t count) {
  std::map<uint32_t, TokenId> tokens;
  for (size_t i = 0; i < count; ++i) {
    for (const v1::Commit& commit : transcript.updates[i].commits()) tokens[commit.position()] = commit.token();
  }
  const uint32_t prompt = static_cast<uint32_t>(submit.prompt_ids_size());
  v1::Checkpoint& checkpoint = *submit.mutable_checkpoint();
  checkpoint.set_final_before(count == 0 ? prompt : transcript.updates[count - 1].final_before());
  if (count > 0) {
    checkpoint.set_step(transcript.updates[count - 1].step());
    checkpoint.set_block_step(transcript.updates[count - 1].block_step());
  }
  if (tokens.empty()) return submit;
  for (uint32_t p = prompt; p <= tokens.rbegin()->first; ++p) {
    checkpoint.add_tokens(tokens.contains(p) ? tokens[p] : -1);
  }
  return submit;
}

Transcript Rest(const Transcript& transcript, size_t count) {
  Transcript rest = transcript;
  rest.updates.erase(rest.updates.begin(), rest.updates.begin() + static_cast<ptrdiff_t>(count));
  return rest;
}

// In the middle of what others do, at every step and, where only whole blocks are reported, at every block.
TEST_P(InvarianceTest, ASequenceResumedAfterAnyUpdateGivesTheBytesThatWereToCome) {
  std::vector<v1::Submit> submits = VariedSubmits(bidirectional());
  for (v1::Submit& submit : submits) submit.set_provisional(submit.sequence_id() % 4 != 3);
  for (const int ranks : {1, 2}) {
    SCOPED_TRACE(absl::StrCat("tp = ", ranks));
    const std::vector<Transcript> whole = Alone(submits, ranks);
    const std::unique_ptr<EngineGroup> group = Start(OptionsOf(ranks));
    std::vector<v1::Submit> resumed;
    std::vector<Transcript> expected;
    for (size_t i = 0; i < submits.size(); ++i) {
      const size_t stride = submits[i].provisional() ? 2 : 1;
      for (size_t count = 0; count < whole[i].updates.size(); count += stride) {
        resumed.push_back(ResumeAfter(submits[i], whole[i], count));
        resumed.back().set_sequence_id(resumed.size());
        expected.push_back(Rest(whole[i], count));
      }
    }
    EXPECT_GT(resumed.size(), 30u);
    for (size_t first = 0; first < resumed.size(); first += 64) {
      const size_t end = std::min(first + 64, resumed.size());
      ExpectSame(*group,
                 {resumed.begin() + static_cast<ptrdiff_t>(first), resumed.begin() + static_cast<ptrdiff_t>(end)},
                 {expected.begin() + static_cast<ptrdiff_t>(first), expected.begin() + static_cast<ptrdiff_t>(end)});
    }
    EXPECT_THAT(group->Stop(), Each(absl::OkStatus()));
  }
}

INSTANTIATE_TEST_SUITE_P(Families, InvarianceTest,
                         testing::Values(Setting{"sdar"}, Setting{"sdar", 8}, Setting{"llada"}, Setting{"demo"},
                                         Setting{"demo", 1, /*int8_layers=*/true}),
                         NameOf);
INSTANTIATE_TEST_SUITE_P(Families, BlockCausalInvarianceTest,
                         testing::Values(Setting{"sdar"}, Setting{"sdar", 8}, Setting{"demo"},
                                         Setting{"demo", 1, /*int8_layers=*/true}),
                         NameOf);

}  // namespace
}  // namespace quicksilver

#include <algorithm>
#include <memory>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "gtest/gtest.h"
#include "tests/decoding/procedures/procedure_run.h"
#include "worker/decoding/procedures/autoregressive.h"
#include "worker/decoding/procedures/credit.h"
#include "worker/decoding/procedures/insert_delete.h"
#include "worker/decoding/procedures/klass.h"
#include "worker/decoding/procedures/multi_block.h"
#include "worker/decoding/procedures/remdm.h"
#include "worker/decoding/procedures/sub_block.h"
#include "worker/decoding/procedures/token_edit.h"
#include "worker/decoding/procedures/variable_length.h"
#include "worker/decoding/procedures/wino.h"

// Whatever a network says, every procedure ends within its bound, leaves no mask, writes no fixed position and nothing
// that it must not write. ProcedureRun holds every step to that.

namespace quicksilver {
namespace {

constexpr int32_t kLengthMax = 40;

struct Maker {
  const char* name;
  std::unique_ptr<Procedure> (*make)(const SamplingRule& sampling);
};

std::unique_ptr<Procedure> MakeCredit(const SamplingRule& sampling) {
  Credit::Settings settings;
  settings.threshold = 0.6f;
  settings.sampling = sampling;
  return std::make_unique<Credit>(settings);
}

std::unique_ptr<Procedure> MakeKlass(const SamplingRule&) {
  Klass::Settings settings;
  settings.threshold = 0.2f;
  settings.kl_threshold = 0.5f;
  settings.schedule = {16, 2};
  return std::make_unique<Klass>(settings);
}

std::unique_ptr<Procedure> MakeTokenEdit(const SamplingRule&) {
  TokenEdit::Settings settings;
  settings.threshold = 0.3f;
  settings.edit_threshold = 0.0f;
  settings.post_steps_max = 5;
  return std::make_unique<TokenEdit>(settings);
}

std::unique_ptr<Procedure> MakeUnedited(const SamplingRule&) {
  TokenEdit::Settings settings;
  settings.edit_threshold.reset();
  return std::make_unique<TokenEdit>(settings);
}

template <int32_t kPostSteps>
std::unique_ptr<Procedure> MakeInsertDelete(const SamplingRule&) {
  InsertDelete::Settings settings;
  settings.threshold = 0.3f;
  settings.post_steps_max = kPostSteps;
  settings.delete_id = FakeModel::kDelete;
  settings.insert_id = FakeModel::kInsert;
  return std::make_unique<InsertDelete>(settings);
}

std::unique_ptr<Procedure> MakeWino(const SamplingRule&) {
  Wino::Settings settings;
  settings.threshold = 0.15f;
  return std::make_unique<Wino>(settings);
}

template <Remdm::Schedule kSchedule>
std::unique_ptr<Procedure> MakeRemdm(const SamplingRule& sampling) {
  Remdm::Settings settings;
  settings.schedule = kSchedule;
  settings.eta = 0.3f;
  settings.steps = {50, 2};
  settings.sampling = sampling;
  return std::make_unique<Remdm>(settings);
}

std::unique_ptr<Procedure> MakeVariableLength(const SamplingRule& sampling) {
  VariableLength::Settings settings;
  settings.threshold = 0.5f;
  settings.low_threshold = 0.3f;
  settings.expansion = 4;
  settings.eos_window = 6;
  settings.eos_id = FakeModel::kEos;
  settings.length_max = kLengthMax;
  settings.sampled = sampling.temperature > 0.0f;
  return std::make_unique<VariableLength>(settings);
}

template <bool kEarlyStop>
std::unique_ptr<Procedure> MakeMultiBlock(const SamplingRule&) {
  MultiBlock::Settings settings;
  settings.threshold = 1.5f;
  settings.block_length = 8;
  if (kEarlyStop) settings.eos_ids = {FakeModel::kEos};
  return std::make_unique<MultiBlock>(settings);
}

std::unique_ptr<Procedure> MakeSubBlock(const SamplingRule&) {
  return std::make_unique<SubBlock>(SubBlock::Settings{3, 0.4f});
}

std::unique_ptr<Procedure> MakeAutoregressive(const SamplingRule&) { return std::make_unique<Autoregressive>(); }

constexpr Maker kMakers[] = {
    {"Credit", MakeCredit},
    {"Klass", MakeKlass},
    {"TokenEdit", MakeTokenEdit},
    {"TokenEditOff", MakeUnedited},
    {"InsertDelete", MakeInsertDelete<4>},
    {"InsertDeleteAtOnce", MakeInsertDelete<0>},
    {"Wino", MakeWino},
    {"RemdmCap", MakeRemdm<Remdm::Schedule::kCap>},
    {"RemdmRescale", MakeRemdm<Remdm::Schedule::kRescale>},
    {"RemdmConfidence", MakeRemdm<Remdm::Schedule::kConfidence>},
    {"RemdmLoop", MakeRemdm<Remdm::Schedule::kLoop>},
    {"VariableLength", MakeVariableLength},
    {"MultiBlock", MakeMultiBlock<false>},
    {"MultiBlockEarlyStop", MakeMultiBlock<true>},
    {"SubBlock", MakeSubBlock},
    {"Autoregressive", MakeAutoregressive},
};

std::vector<FakeModel> Models(uint64_t seed) {
  FakeModel calm = {seed}, flat = {seed}, wild = {seed}, masks = {seed}, controls = {seed}, eos = {seed};
  calm.scale = 4.0f;
  calm.coupling = 0.5f;
  flat.scale = flat.coupling = 0.0f;
  wild.scale = 0.0f;
  wild.coupling = 6.0f;
  masks.mask_bias = 8.0f;
  controls.control_bias = 5.0f;
  eos.eos_bias = 6.0f;
  return {calm, flat, wild, masks, controls, eos};
}

std::vector<ProcedureRun::Canvas> Canvases() {
  ProcedureRun::Canvas plain, tail, infill, warm, sampled;
  tail.origin = 0;
  tail.answer = 21;
  infill.fixed = {{5, 4}, {9, 5}, {14, 6}, {18, 7}};
  warm.draft = {{3, 2}, {4, 2}, {5, 3}, {6, 2}, {7, 2}, {8, 3}, {9, 2}, {10, 3}, {12, 3}};
  sampled.sampling.temperature = 1.0f;
  sampled.sampling.seed = 5;
  return {plain, tail, infill, warm, sampled};
}

class TerminationTest : public testing::TestWithParam<Maker> {};

TEST_P(TerminationTest, EveryCanvasIsFilledWithinTheBound) {
  for (uint64_t seed = 1; seed <= 6; ++seed) {
    int32_t shape = 0;
    for (ProcedureRun::Canvas canvas : Canvases()) {
      for (const FakeModel& model : Models(seed)) {
        for (const int32_t commits_min : {0, 3}) {
          SCOPED_TRACE(absl::StrCat("seed ", seed, " canvas ", shape, " scale ", model.scale, " coupling ",
                                    model.coupling, " commits_min ", commits_min));
          canvas.commits_min = commits_min;
          const std::unique_ptr<Procedure> procedure = GetParam().make(canvas.sampling);
          ProcedureRun run(*procedure, canvas, NetworkOf(model));
          run.RunToEnd();
          if (testing::Test::HasFailure()) return;
          EXPECT_LE(run.tokens().size(), static_cast<size_t>(canvas.prompt + kLengthMax));
          for (const auto& [position, token] : canvas.fixed) {
            EXPECT_EQ(run.tokens()[static_cast<size_t>(position)], token);
          }
        }
      }
      ++shape;
    }
  }
}

// What it learnt of one canvas must not show in another one's.
TEST_P(TerminationTest, OpeningABlockForgetsAllOfTheOneBefore) {
  for (uint64_t seed = 1; seed <= 10; ++seed) {
    for (const ProcedureRun::Canvas& canvas : Canvases()) {
      FakeModel model = {seed, 2.0f, 0.4f};
      model.control_bias = 1.0f;
      const std::unique_ptr<Procedure> fresh = GetParam().make(canvas.sampling),
                                       used = GetParam().make(canvas.sampling);
      ProcedureRun other(*used, canvas, NetworkOf({seed + 100}));
      for (int32_t step = 0; step < 7 && !other.done(); ++step) other.Step();
      ProcedureRun first(*fresh, canvas, NetworkOf(model)), second(*used, canvas, NetworkOf(model));
      EXPECT_EQ(second.RunToEnd(), first.RunToEnd());
    }
  }
}

// A copy goes on as the original would, and does not share anything with it.
TEST_P(TerminationTest, ACloneTakesTheSameDecisions) {
  const FakeModel model = {3};
  const ProcedureRun::Canvas canvas;
  std::unique_ptr<Procedure> procedure = GetParam().make(SamplingRule());
  ProcedureRun whole(*procedure, canvas, NetworkOf(model));
  const std::vector<std::vector<TokenId>> expected = whole.RunToEnd();

  std::unique_ptr<Procedure> again = GetParam().make(SamplingRule());
  ProcedureRun run(*again, canvas, NetworkOf(model));
  for (const std::vector<TokenId>& after : expected) {
    std::vector<RowAsk> rows, cloned;
    again->Ask(run.View(), rows);
    again->Clone()->Ask(run.View(), cloned);
    EXPECT_EQ(rows.size(), cloned.size());
    run.Step();
    EXPECT_EQ(run.tokens(), after);
  }
}

TEST_P(TerminationTest, APaceIsKept) {
  for (uint64_t seed = 1; seed <= 5; ++seed) {
    ProcedureRun::Canvas canvas;
    canvas.commits_min = 4;
    canvas.answer = 8;
    const std::unique_ptr<Procedure> procedure = GetParam().make(SamplingRule());
    ProcedureRun run(*procedure, canvas, NetworkOf({seed, 0.2f, 0.2f}));
    run.Step();
    const auto masks = std::count(run.tokens().begin(), run.tokens().end(), FakeModel::kMask);
    const std::string name = GetParam().name;
    if (name == "Autoregressive") {
      EXPECT_EQ(masks, 7);
    } else if (name == "SubBlock") {
      EXPECT_EQ(masks, 5) << "a part has three positions";
    } else {
      EXPECT_LE(masks, 4) << name;
    }
    EXPECT_EQ(run.decision().paced, name != "Autoregressive") << name;
  }
}

INSTANTIATE_TEST_SUITE_P(Procedures, TerminationTest, testing::ValuesIn(kMakers),
                         [](const auto& param) { return std::string(param.param.name); });

}  // namespace
}  // namespace quicksilver

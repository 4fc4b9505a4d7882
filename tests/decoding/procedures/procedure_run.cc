#include "tests/decoding/procedures/procedure_run.h"

#include <algorithm>

#include "gtest/gtest.h"

namespace quicksilver {

Network NetworkOf(const FakeModel& model) {
  return [model](absl::Span<const TokenId> tokens, const RowAsk& row) {
    return model.Logits(tokens, row.position, row.shadow);
  };
}

ProcedureRun::ProcedureRun(Procedure& procedure, const Canvas& canvas, Network network)
    : procedure_(procedure), canvas_(canvas), network_(std::move(network)) {
  tokens_.assign(static_cast<size_t>(canvas.prompt), 1);
  tokens_.resize(static_cast<size_t>(canvas.prompt + canvas.answer), FakeModel::kMask);
  fixed_.assign(tokens_.size(), 0);
  std::fill(fixed_.begin(), fixed_.begin() + canvas.prompt, uint8_t{1});
  for (const auto& [position, token] : canvas.draft) tokens_[static_cast<size_t>(position)] = token;
  for (const auto& [position, token] : canvas.fixed) {
    tokens_[static_cast<size_t>(position)] = token;
    fixed_[static_cast<size_t>(position)] = 1;
  }
  view_.mask_id = FakeModel::kMask;
  view_.answer_first = canvas.prompt;
  view_.answer_end = canvas.prompt + canvas.answer;
  view_.commits_min = canvas.commits_min;
  const int32_t block = (canvas.prompt - canvas.origin) / canvas.block_length;
  Open(block, canvas.origin + block * canvas.block_length);
  if (IsDecided()) CloseBlocks();
}

CanvasView ProcedureRun::View() const {
  CanvasView view = view_;
  view.tokens = tokens_;
  view.fixed = fixed_;
  return view;
}

bool ProcedureRun::IsClean() const {
  return std::find(tokens_.begin() + view_.first, tokens_.begin() + view_.end, FakeModel::kMask) ==
         tokens_.begin() + view_.end;
}

void ProcedureRun::Open(int32_t block, int32_t first) {
  view_.block = block;
  view_.first = first;
  view_.end = std::min(first + canvas_.block_length, view_.answer_end);
  view_.block_forwards = 0;
  history_.clear();
  procedure_.OpenBlock(View());
}

void ProcedureRun::CloseBlocks() {
  do {
    if (view_.end == view_.answer_end) {
      done_ = true;
      return;
    }
    Open(view_.block + 1, view_.end);
  } while (IsDecided());
}

// Nothing is to be decided in the open block, and nothing can be edited.
bool ProcedureRun::IsDecided() const {
  const auto begin = fixed_.begin() + std::max(view_.first, view_.answer_first), end = fixed_.begin() + view_.end;
  return IsClean() && (!procedure_.edits() || std::find(begin, end, uint8_t{0}) == end);
}

void ProcedureRun::Write() {
  ASSERT_GE(decision_.grown, 0);
  tokens_.resize(tokens_.size() + static_cast<size_t>(decision_.grown), FakeModel::kMask);
  fixed_.resize(tokens_.size(), 0);
  view_.answer_end += decision_.grown;
  view_.end = std::min(view_.first + canvas_.block_length, view_.answer_end);
  int32_t last = -1;
  for (const TokenWrite& write : decision_.writes) {
    ASSERT_GT(write.position, last) << "writes ascend, each position once";
    ASSERT_GE(write.position, std::max(view_.first, view_.answer_first)) << "what is closed is final";
    ASSERT_LT(write.position, procedure_.writes_ahead() ? view_.answer_end : view_.end);
    ASSERT_EQ(fixed_[static_cast<size_t>(write.position)], 0) << "a fixed token was written";
    ASSERT_TRUE(write.token >= 0 && write.token < FakeModel::kVocabulary);
    if (!procedure_.edits() && !procedure_.writes_ahead()) {
      ASSERT_NE(write.token, FakeModel::kMask);
      ASSERT_EQ(tokens_[static_cast<size_t>(write.position)], FakeModel::kMask);
    }
    tokens_[static_cast<size_t>(write.position)] = write.token;
    last = write.position;
  }
}

bool ProcedureRun::Step() {
  if (done_) return false;
  const CanvasView view = View();
  std::vector<RowAsk> rows;
  procedure_.Ask(view, rows);
  EXPECT_FALSE(rows.empty()) << "an open block asks for something";
  std::vector<RowChoice> choices;
  std::vector<TopLogit> tops;
  for (const RowAsk& row : rows) {
    std::vector<float> logits = network_(tokens_, row);
    std::vector<TokenBias> biases;
    procedure_.AppendBiases(row.position, biases);
    for (const TokenBias& bias : biases) logits[static_cast<size_t>(bias.id)] += bias.bias;
    const DrawPlace place = {canvas_.sampling.seed, canvas_.sampling.choice, static_cast<uint32_t>(row.position),
                             static_cast<uint32_t>(view.forwards)};
    const std::vector<float> previous = history_[row.position];
    choices.push_back(ChoiceOf(logits, row.asked_id, previous, canvas_.sampling, place));
    for (const TopLogit& top : TopsOf(logits)) tops.push_back(top);
    if (procedure_.wants_history()) history_[row.position] = logits;
  }
  StepNumbers numbers;
  numbers.choices = choices;
  if (procedure_.wants_tops()) numbers.tops = tops;
  const int64_t masks = std::count(tokens_.begin(), tokens_.end(), FakeModel::kMask);
  decision_ = procedure_.Decide(view, numbers);
  ++view_.forwards;
  ++view_.block_forwards;
  Write();
  if (testing::Test::HasFatalFailure()) return false;
  if (procedure_.writes_always()) {
    EXPECT_LT(std::count(tokens_.begin(), tokens_.end(), FakeModel::kMask), masks);
  }
  EXPECT_LE(view_.block_forwards, procedure_.steps_max(view_.end - view_.first));
  if (view_.block_forwards > procedure_.steps_max(view_.end - view_.first)) return false;
  if (IsClean() && !decision_.keep_open) CloseBlocks();
  return !done_;
}

std::vector<std::vector<TokenId>> ProcedureRun::RunToEnd() {
  std::vector<std::vector<TokenId>> canvases;
  for (bool more = !done_; more;) {
    more = Step();
    canvases.push_back(tokens_);
  }
  EXPECT_TRUE(done_);
  EXPECT_EQ(std::count(tokens_.begin(), tokens_.end(), FakeModel::kMask), 0);
  return canvases;
}

}  // namespace quicksilver

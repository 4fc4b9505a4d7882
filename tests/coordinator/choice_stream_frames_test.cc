// Whatever a worker commits in whatever order, a client that applies the frames it gets has the canvas, also when
// frames wait for it and are joined.
#include <gtest/gtest.h>

#include <algorithm>
#include <random>

#include "coordinator/frontend/client_canvas.h"
#include "coordinator/service/choice_stream.h"
#include "coordinator/text/text.h"

namespace quicksilver {
namespace {

constexpr uint32_t kPrompt = 13;
constexpr uint32_t kBlock = 8;
const std::string kMask = "\xE2\x96\x91";

// One sequence of a worker: commits random positions of the open block, changes some or masks them again, closes it,
// opens the next.
class RandomWorker {
 public:
  RandomWorker(std::mt19937& random, std::vector<int32_t> answer) : random_(random), answer_(std::move(answer)) {
    Open(kPrompt / kBlock);
  }

  v1::SequenceUpdate Step() {
    v1::SequenceUpdate update;
    update.set_step(++step_);
    update.set_block(block_);
    const size_t commits = std::min<size_t>(masked_.size(), 1 + random_() % 3);
    for (size_t i = 0; i < commits; ++i) {
      Write(masked_.back(), answer_[masked_.back() - kPrompt], update);
      masked_.pop_back();
    }
    if (!masked_.empty() && random_() % 3 == 0) TakeBack(update);
    if (masked_.empty()) {
      final_before_ = std::min(Answer(), (block_ + 1) * kBlock);
      if (final_before_ == Answer()) {
        update.mutable_end()->set_reason(v1::SequenceEnd::REASON_LENGTH);
        update.mutable_end()->set_completion_tokens(static_cast<uint32_t>(answer_.size()));
      } else {
        Open(block_ + 1);
      }
    }
    update.set_final_before(final_before_);
    return update;
  }

  const std::vector<int32_t>& canvas() const { return canvas_; }  // -1 where masked.

 private:
  void Write(uint32_t position, int32_t token, v1::SequenceUpdate& update) {
    v1::Commit& commit = *update.add_commits();
    commit.set_position(position);
    commit.set_token(token);
    canvas_[position - kPrompt] = token;
  }
  // A position of the open block becomes a mask again, or another token, to be mended later.
  void TakeBack(v1::SequenceUpdate& update) {
    const uint32_t first = std::max(block_ * kBlock, kPrompt);
    const uint32_t position = first + random_() % (std::min((block_ + 1) * kBlock, Answer()) - first);
    if (std::find(masked_.begin(), masked_.end(), position) != masked_.end()) return;
    for (const v1::Commit& commit : update.commits()) {
      if (commit.position() == position) return;  // A step writes a position once.
    }
    Write(position, random_() % 2 == 0 ? -1 : answer_[random_() % answer_.size()], update);
    masked_.insert(masked_.begin(), position);
  }
  uint32_t Answer() const { return kPrompt + static_cast<uint32_t>(answer_.size()); }
  void Open(uint32_t block) {
    block_ = block;
    for (uint32_t p = std::max(block * kBlock, kPrompt); p < std::min((block + 1) * kBlock, Answer()); ++p) {
      masked_.push_back(p);
    }
    std::shuffle(masked_.begin(), masked_.end(), random_);
  }

  std::mt19937& random_;
  const std::vector<int32_t> answer_;
  std::vector<int32_t> canvas_ = std::vector<int32_t>(answer_.size(), -1);
  std::vector<uint32_t> masked_;
  uint32_t step_ = 0, block_ = 0, final_before_ = kPrompt;
};

class FramesTest : public testing::Test {
 protected:
  // Runs of committed tokens as text, the others as masks.
  std::string Canvas(const std::vector<int32_t>& ids, uint32_t extent) const {
    std::string text;
    for (uint32_t i = 0; i < extent;) {
      if (ids[i] < 0) {
        text += kMask;
        ++i;
        continue;
      }
      Detokenizer detokenizer(*text_);
      for (; i < extent && ids[i] >= 0; ++i) text += detokenizer.Push(ids[i]);
      text += detokenizer.Finish();
    }
    return text;
  }

  void Run(uint32_t seed, const std::string& answer, const std::vector<std::string>& stops) {
    std::mt19937 random(seed);
    const std::vector<int32_t> ids = *text_->Encode(answer, 1000);
    ChoiceStream stream(*text_, {.prompt_tokens = kPrompt,
                                 .max_tokens = static_cast<uint32_t>(ids.size()),
                                 .block_length = kBlock,
                                 .positions_max = kPrompt + static_cast<uint32_t>(ids.size()) + kBlock,
                                 .stops = stops,
                                 .canvases = true,
                                 .canvas_interval = absl::Seconds(random() % 3)});
    RandomWorker worker(random, ids);
    FrameQueue queue;
    ClientCanvas prompt_client, slow_client;
    std::string deltas;
    for (absl::Duration now; !stream.finished(); now += absl::Seconds(1)) {
      if (random() % 10 == 0) stream.OnPlaced(/*resumes=*/true, now);
      std::vector<ChoiceEvent> events;
      ASSERT_TRUE(stream.Apply(worker.Step(), 1, now, events).ok());
      bool framed = false;
      for (const ChoiceEvent& event : events) {
        if (const auto* delta = std::get_if<DeltaEvent>(&event)) deltas += delta->text;
        const auto* frame = std::get_if<FrameEvent>(&event);
        if (frame == nullptr) continue;
        framed = true;
        ASSERT_GE(frame->committed, prompt_client.committed());
        prompt_client.Apply(*frame);
        queue.Add(*frame);
      }
      ASSERT_EQ(prompt_client.final_text(), deltas);
      if (framed && !stream.finished()) {
        ASSERT_EQ(prompt_client.Text(kMask), Canvas(worker.canvas(), prompt_client.extent()));
      }
      if (queue.empty() || random() % 3 != 0) continue;
      slow_client.Apply(queue.Take());
      ExpectEqual(slow_client, prompt_client);
    }
    if (!queue.empty()) slow_client.Apply(queue.Take());
    ExpectEqual(slow_client, prompt_client);
    EXPECT_EQ(prompt_client.Text(kMask), deltas) << "the last canvas is the answer";
    EXPECT_EQ(prompt_client.committed(), stream.completion_tokens());
    if (stops.empty()) {
      EXPECT_EQ(deltas, answer);
    }
  }

  void ExpectEqual(const ClientCanvas& a, const ClientCanvas& b) {
    EXPECT_EQ(a.final_text(), b.final_text());
    EXPECT_EQ(a.Text(kMask), b.Text(kMask));
    EXPECT_EQ(a.committed(), b.committed());
    EXPECT_EQ(a.extent(), b.extent());
  }

  std::shared_ptr<const TextModel> text_ = *TextModel::Load("models/demo");
};

const char* const kAnswers[] = {"def add(a, b):\n    return a + b\n", "مرحبا 🚀🚀 日本語 👩‍👧 é",
                                "🚀🚀🚀🚀🚀🚀🚀🚀", "x", "abcENabcENDabc"};

TEST_F(FramesTest, AClientHasTheExactCanvasAlsoWhenFramesAreLeftOut) {
  for (const char* answer : kAnswers) {
    for (uint32_t seed = 0; seed < 300 && !HasFatalFailure(); ++seed) {
      SCOPED_TRACE(testing::Message() << answer << ", seed " << seed);
      Run(seed, answer, {});
    }
  }
}

TEST_F(FramesTest, WhatMayBecomeAStopStringStaysOnTheCanvas) {
  for (const char* answer : kAnswers) {
    for (uint32_t seed = 0; seed < 300 && !HasFatalFailure(); ++seed) {
      SCOPED_TRACE(testing::Message() << answer << ", seed " << seed);
      Run(seed, answer, {"ENDING", "🚀🚀🚀x"});
    }
  }
}

TEST_F(FramesTest, AStopStringEndsTheCanvas) {
  for (uint32_t seed = 0; seed < 300 && !HasFatalFailure(); ++seed) {
    SCOPED_TRACE(testing::Message() << "seed " << seed);
    Run(seed, "abcENabcENDabc 🚀 and some more text behind it", {"END"});
  }
}

TEST_F(FramesTest, AQueueHoldsOneCanvasHoweverManyFramesWait) {
  FrameQueue queue;
  for (uint32_t i = 0; i < 1000; ++i) {
    FrameEvent frame{.step = i, .committed = i, .extent = i + 2};
    if (i > 0) frame.spans.push_back({SpanOp::kFinal, i - 1, 1, "f"});
    frame.spans.push_back({SpanOp::kCommit, i, 1, "p"});
    queue.Add(frame);
  }
  const FrameEvent joined = queue.Take();
  ASSERT_EQ(joined.spans.size(), 2u);
  EXPECT_EQ(joined.spans[0].op, SpanOp::kFinal);
  EXPECT_EQ(joined.spans[0].tokens, 999u);
  EXPECT_EQ(joined.spans[0].text, std::string(999, 'f'));
  EXPECT_EQ(joined.spans[1].op, SpanOp::kReplace);
  EXPECT_EQ(joined.step, 999u);
  EXPECT_TRUE(queue.empty());
}

}  // namespace
}  // namespace quicksilver

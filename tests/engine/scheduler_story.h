#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "common/philox.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "worker/engine/scheduler.h"

namespace quicksilver {

inline constexpr TokenId kMask = 99;
inline constexpr int32_t kBlock = 4;

/// A sequence of a block-causal model with blocks of kBlock that commits one token a step.
inline Sequence BlockCausal(std::vector<TokenId> prompt, int32_t tokens_max) {
  SequenceSpec spec;
  spec.mask_id = kMask;
  spec.positions_max = 100000;
  spec.prompt = std::move(prompt);
  spec.tokens_max = tokens_max;
  spec.decoding.block_length = spec.decoding.steps = kBlock;
  spec.decoding.policy = Policy::kStatic;
  return Sequence(spec);
}

inline Sequence BlockCausal(int32_t prompt, int32_t tokens_max) {
  return BlockCausal(std::vector<TokenId>(static_cast<size_t>(prompt), 1), tokens_max);
}

inline Sequence Bidirectional(int32_t prompt, int32_t tokens_max, float guidance_scale) {
  SequenceSpec spec = BlockCausal(prompt, tokens_max).spec();
  spec.grid = BlockGrid::kAfterPrompt;
  spec.decoding.block_length = spec.decoding.steps = tokens_max;
  spec.decoding.guidance_scale = guidance_scale;
  return Sequence(spec);
}

/// A model: what a row says depends on its position and on all tokens.
inline RowChoice Says(const Sequence& sequence, int32_t position) {
  uint64_t hash = static_cast<uint64_t>(position);
  for (const TokenId token : sequence.canvas()) hash = (hash ^ static_cast<uint64_t>(token)) * 0x100000001B3u;
  const PhiloxWords words = Philox(hash, 1, 2, 3, 4);
  return {.token = static_cast<TokenId>(words.w[0] % 60),
          .confidence = static_cast<float>(words.w[1] % 1000) / 1000.0f,
          .log_probability = -1.0f,
          .finite = true};
}

/// The keys of a block-causal model: each is known by the tokens that it depends on.
class KeyMemory {
 public:
  KeyMemory(int32_t pages, int32_t page_size)
      : page_size_(page_size), slots_(static_cast<size_t>(pages) * static_cast<size_t>(page_size), 0) {}

  /// Runs a step: every segment finds the clean keys of its own tokens, and nobody writes what another reads.
  void Run(const std::vector<PlannedSegment>& plan) {
    std::map<size_t, uint64_t> writers;
    for (const auto& [running, segment] : plan) {
      if (running->sequence.spec().grid != BlockGrid::kAbsolute) continue;
      for (int32_t p = segment.first_position; p < segment.first_position + segment.rows; ++p) {
        ASSERT_TRUE(writers.emplace(SlotOf(*running, p), running->id).second) << "two segments write a slot";
      }
    }
    for (const auto& [running, segment] : plan) {
      if (running->sequence.spec().grid != BlockGrid::kAbsolute) continue;
      const std::vector<uint64_t> keys = CleanKeys(running->sequence);
      for (int32_t p = 0; p < segment.first_position; ++p) {
        const size_t slot = SlotOf(*running, p);
        ASSERT_EQ(slots_[slot], keys[static_cast<size_t>(p)]) << "sequence " << running->id << ", position " << p;
        ASSERT_FALSE(writers.contains(slot)) << "a slot is read in the step that writes it";
      }
    }
    for (const auto& [running, segment] : plan) {
      if (running->sequence.spec().grid != BlockGrid::kAbsolute) continue;
      const std::vector<uint64_t> keys = CleanKeys(running->sequence);
      for (int32_t p = segment.first_position; p < segment.first_position + segment.rows; ++p) {
        const bool clean = p < running->sequence.open_block_start();
        slots_[SlotOf(*running, p)] = clean ? keys[static_cast<size_t>(p)] : ++unclean_;
      }
    }
  }

 private:
  size_t SlotOf(const RunningSequence& running, int32_t position) const {
    const int32_t page = running.pages[static_cast<size_t>(position / page_size_)];
    return static_cast<size_t>(page * page_size_ + position % page_size_);
  }

  // Of the positions before the open block: the hash of all tokens up to the end of its block, and of its place.
  static std::vector<uint64_t> CleanKeys(const Sequence& sequence) {
    std::vector<uint64_t> keys;
    uint64_t hash = 17;
    for (int32_t start = 0; start < sequence.open_block_start(); start += kBlock) {
      for (int32_t p = start; p < start + kBlock; ++p) {
        hash = (hash ^ static_cast<uint64_t>(sequence.canvas()[static_cast<size_t>(p)])) * 0x9E3779B97F4A7C15u;
      }
      for (int32_t i = 0; i < kBlock; ++i) keys.push_back(hash + static_cast<uint64_t>(i) + (uint64_t{1} << 40));
    }
    return keys;
  }

  const int32_t page_size_;
  std::vector<uint64_t> slots_;
  uint64_t unclean_ = 0;
};

/// Applies a step and returns the sequences that ended, with their canvases.
inline std::map<uint64_t, std::vector<TokenId>> Finish(Scheduler& scheduler, std::vector<PlannedSegment> plan) {
  std::map<uint64_t, std::vector<TokenId>> ended;
  for (const PlannedSegment& planned : plan) {
    Sequence& sequence = planned.running->sequence;
    if (!planned.segment.denoise) {
      sequence.ApplyPrefill(planned.segment);
      continue;
    }
    std::vector<RowChoice> choices;
    for (const RowAsk& ask : sequence.asked()) choices.push_back(Says(sequence, ask.position));
    if (sequence.ApplyDenoise(planned.segment, choices).end == SequenceEndReason::kNone) continue;
    const uint64_t id = planned.running->id;
    ended[id].assign(sequence.canvas().begin(), sequence.canvas().end());
    EXPECT_TRUE(scheduler.Remove(id));
  }
  return ended;
}

inline std::vector<uint64_t> Ids(const std::vector<PlannedSegment>& plan) {
  std::vector<uint64_t> ids;
  for (const PlannedSegment& planned : plan) ids.push_back(planned.running->id);
  return ids;
}

/// A guide's rows count.
inline int32_t Rows(const std::vector<PlannedSegment>& plan) {
  int32_t rows = 0;
  for (const PlannedSegment& planned : plan) {
    rows += planned.segment.rows * (planned.running->sequence.guided() ? 2 : 1);
  }
  return rows;
}

/// A scheduler with its model, its memory and a clock that moves 10 ms a step.
struct SchedulerStory {
  explicit SchedulerStory(const SchedulerLimits& limits, PageHash hash = HashPage)
      : scheduler(limits, hash), memory(limits.pages, limits.page_size), rows_max(limits.step_rows_max) {}

  uint64_t Add(Sequence sequence, SchedulingTerms terms = {}) {
    scheduler.Add(++last_id, std::move(sequence), std::move(terms), now);
    return last_id;
  }

  const std::vector<PlannedSegment>& Plan() { return scheduler.Plan(now, prefill_rows_max); }

  /// Plans, runs and applies a step; returns the ids that were planned.
  std::vector<uint64_t> Step() {
    const std::vector<PlannedSegment> plan = Plan();
    EXPECT_LE(Rows(plan), rows_max);
    memory.Run(plan);
    std::vector<uint64_t> ids = Ids(plan);
    for (auto& [id, canvas] : Finish(scheduler, plan)) ended[id] = std::move(canvas);
    scheduler.Check();
    now += absl::Milliseconds(10);
    return ids;
  }

  /// Steps until `id` has ended; returns how many steps that took.
  int StepUntilEnd(uint64_t id, int steps_max = 10000) {
    int steps = 0;
    for (; !ended.contains(id) && steps < steps_max; ++steps) Step();
    EXPECT_TRUE(ended.contains(id)) << "sequence " << id << " did not end in " << steps_max << " steps";
    return steps;
  }

  Scheduler scheduler;
  KeyMemory memory;
  absl::Duration now = absl::Seconds(1000);
  int32_t rows_max;
  int32_t prefill_rows_max = 1 << 20;
  uint64_t last_id = 0;
  std::map<uint64_t, std::vector<TokenId>> ended;
};

/// The canvas that a sequence ends with when nothing disturbs it.
inline std::vector<TokenId> CanvasAlone(Sequence sequence) {
  SchedulerStory alone({.sequences_max = 1, .step_rows_max = 1 << 16, .pages = 10000, .page_size = kBlock});
  const uint64_t id = alone.Add(std::move(sequence));
  alone.StepUntilEnd(id);
  return alone.ended[id];
}

}  // namespace quicksilver

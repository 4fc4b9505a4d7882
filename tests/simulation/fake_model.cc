#include "tests/simulation/fake_model.h"

#include <algorithm>
#include <cmath>

#include "absl/strings/str_cat.h"
#include "common/check.h"
#include "tests/simulation/answer.h"
#include "tests/simulation/random.h"
#include "worker/engine/submission.h"

namespace quicksilver::simulation {
namespace {

// One in so many tokens is a stop token.
constexpr uint64_t kStopEvery = 40;
constexpr TokenId kStop = 1;

// Of block after block: what a row of the last one can see.
uint64_t Extend(uint64_t context, absl::Span<const TokenId> block) {
  for (const TokenId token : block) context = Mix(context ^ static_cast<uint64_t>(token + 1));
  return Mix(context, block.size());
}

std::vector<TokenId> GuideTokens(const Sequence& sequence) {
  std::vector<TokenId> tokens;
  for (size_t p = 0; p < sequence.canvas().size(); ++p)
    tokens.push_back(sequence.GuideInputAt(static_cast<int32_t>(p)));
  return tokens;
}

// The context of an open block, from the canvas alone.
uint64_t ContextOf(const Sequence& sequence, const Segment& segment, int32_t block_length) {
  const absl::Span<const TokenId> canvas = sequence.canvas();
  if (sequence.spec().grid != BlockGrid::kAbsolute) {
    const uint64_t context = Extend(0, canvas);
    return sequence.guided() ? Mix(context, Extend(0, GuideTokens(sequence))) : context;
  }
  uint64_t context = 0;
  for (int32_t p = 0; p < segment.keys; p += block_length) {
    context = Extend(
        context, canvas.subspan(static_cast<size_t>(p), static_cast<size_t>(std::min(block_length, segment.keys - p))));
  }
  return context;
}

}  // namespace

RowChoice Choose(const DrawPlace& place, uint64_t context, uint64_t build) {
  const uint64_t bits = Mix(place.seed ^ build, place.choice, place.position, place.step, context);
  RowChoice choice;
  choice.token = bits % kStopEvery == 0 ? kStop : static_cast<TokenId>(10 + (bits >> 8) % 900);
  choice.confidence = static_cast<float>(UnitOf(Mix(bits)));
  choice.log_probability = -choice.confidence;
  choice.finite = true;
  return choice;
}

Answer RunAlone(const Plan& plan, const RequestPlan& request, int choice, const std::string& build) {
  absl::StatusOr<SequenceSpec> spec = MakeSequenceSpec(plan.model, SubmitOf(plan, request, choice));
  CHECK(spec.ok());
  Sequence sequence(*std::move(spec));
  SequenceEndReason end = SequenceEndReason::kNone;
  while (end == SequenceEndReason::kNone) {
    const Segment segment = sequence.Next(1 << 20);
    const uint64_t context = ContextOf(sequence, segment, sequence.spec().decoding.block_length);
    std::vector<RowChoice> choices;
    for (const RowAsk& ask : sequence.asked()) {
      choices.push_back(Choose(sequence.PlaceOf(ask.position), context, BuildOf(build)));
      choices.back().finite = sequence.forwards() != request.nan_at;
    }
    end = sequence.ApplyDenoise(segment, choices).end;
  }
  Answer answer;
  answer.tokens.assign(sequence.canvas().begin() + sequence.prompt_tokens(), sequence.canvas().end());
  answer.final_tokens = sequence.final_before() - sequence.prompt_tokens();
  answer.end = ChoiceEnd::kError;
  if (end == SequenceEndReason::kStop) answer.end = ChoiceEnd::kStop;
  if (end == SequenceEndReason::kLength) answer.end = ChoiceEnd::kLength;
  return answer;
}

FakeKv::FakeKv(int pages, int page_size, int block_length)
    : page_size_(page_size), block_length_(block_length), slots_(static_cast<size_t>(pages * page_size)) {}

FakeKv::Slot* FakeKv::Find(absl::Span<const int32_t> pages, int32_t position) {
  const size_t page = static_cast<size_t>(position / page_size_);
  if (page >= pages.size()) return nullptr;
  const size_t slot =
      static_cast<size_t>(pages[page]) * static_cast<size_t>(page_size_) + static_cast<size_t>(position % page_size_);
  return slot < slots_.size() ? &slots_[slot] : nullptr;
}

std::string FakeKv::Read(const Rows& rows, uint64_t& context) {
  const absl::Span<const TokenId> canvas = rows.state->canvas();
  context = 0;
  for (int32_t p = 0; p < rows.segment.first_position; ++p) {
    if (p % block_length_ == 0) {
      context = Extend(context, canvas.subspan(static_cast<size_t>(p), static_cast<size_t>(block_length_)));
    }
    const Slot* slot = Find(rows.pages, p);
    if (slot == nullptr) return absl::StrCat("sequence ", rows.sequence, " has no page for position ", p);
    const TokenId token = canvas[static_cast<size_t>(p)];
    if (slot->position != p || slot->token != token || slot->context != context || !slot->clean) {
      return absl::StrCat("sequence ", rows.sequence, " reads at position ", p, " of page ",
                          rows.pages[static_cast<size_t>(p / page_size_)], " what sequence ", slot->writer,
                          " wrote for token ", slot->token, " at position ", slot->position,
                          slot->clean ? "" : " with masks", ", instead of token ", token,
                          slot->token == token && slot->position == p ? ": what came before differs" : "");
    }
    if (slot->step == step_) return absl::StrCat("sequence ", rows.sequence, " reads what this step writes");
    const auto distrusted = distrusted_.find(slot->writer);
    if (distrusted != distrusted_.end() && !distrusted->second.contains(rows.sequence)) {
      return absl::StrCat("sequence ", rows.sequence, " shares a page of sequence ", slot->writer,
                          ", whose logits were not finite");
    }
    if (slot->writer != rows.sequence && (rows.salt.empty() || *slot->salt != rows.salt)) {
      return absl::StrCat("sequence ", rows.sequence, " of salt `", rows.salt, "` shares a page of salt `", *slot->salt,
                          "`");
    }
  }
  return "";
}

std::string FakeKv::Write(const Rows& rows, bool guide, uint64_t& context) {
  const Sequence& state = *rows.state;
  const bool absolute = state.spec().grid == BlockGrid::kAbsolute;
  const std::vector<TokenId> guide_tokens = guide ? GuideTokens(state) : std::vector<TokenId>();
  const absl::Span<const TokenId> canvas = guide ? absl::MakeConstSpan(guide_tokens) : state.canvas();
  const std::string* salt = &*salts_.insert(rows.salt).first;
  const int32_t end = rows.segment.first_position + rows.segment.rows;
  if (!absolute) context = Extend(0, canvas);
  for (int32_t p = rows.segment.first_position; p < end; ++p) {
    if (absolute && p % block_length_ == 0) {
      context = Extend(context,
                       canvas.subspan(static_cast<size_t>(p), static_cast<size_t>(std::min(block_length_, end - p))));
    }
    Slot* slot = Find(guide ? rows.guide_pages : rows.pages, p);
    if (slot == nullptr) return absl::StrCat("sequence ", rows.sequence, " has no page for position ", p);
    if (slot->step == step_) {
      return absl::StrCat("sequences ", slot->writer, " and ", rows.sequence, " write the same slot of position ", p,
                          " in one step");
    }
    const bool clean = absolute && p < state.open_block_start();
    *slot = {canvas[static_cast<size_t>(p)], p, context, step_, rows.sequence, salt, clean};
  }
  return "";
}

std::string FakeKv::Forward(std::vector<Rows>& segments) {
  ++step_;
  // All writes come first: whoever reads a slot that this step writes is seen.
  for (Rows& rows : segments) {
    const int32_t first = rows.segment.first_position;
    uint64_t context = 0;
    if (first > 0) {
      const Slot* slot = Find(rows.pages, first - 1);
      if (slot == nullptr) return absl::StrCat("sequence ", rows.sequence, " has no page for position ", first - 1);
      context = slot->context;
    }
    if (std::string wrong = Write(rows, /*guide=*/false, context); !wrong.empty()) return wrong;
    rows.context = context;
    if (rows.state->guided()) {
      uint64_t guide = 0;
      if (std::string wrong = Write(rows, /*guide=*/true, guide); !wrong.empty()) return wrong;
      rows.context = Mix(context, guide);
    }
  }
  for (Rows& rows : segments) {
    uint64_t context = 0;
    if (std::string wrong = Read(rows, context); !wrong.empty()) return wrong;
  }
  return "";
}

}  // namespace quicksilver::simulation

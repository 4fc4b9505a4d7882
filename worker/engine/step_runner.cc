#include "worker/engine/step_runner.h"

#include <algorithm>
#include <atomic>
#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/check.h"
#include "common/log.h"
#include "common/status_macros.h"
#include "worker/engine/submission.h"

namespace quicksilver {
namespace {

// The first record of a rank carries its seal in place of a candidate.
static_assert(sizeof(uint64_t) <= sizeof(Candidate));

// More biases than most steps have.
constexpr int32_t kBiasesAtFirst = 1 << 14;

// Of a rank's LM head.
size_t VocabularyRowsOf(const ModelSpec& spec, int ranks) {
  return static_cast<size_t>((spec.vocabulary + ranks - 1) / ranks);
}

// Programs that are kept; each holds some megabytes of the host's and the device's memory.
constexpr size_t kProgramsMax = 256;

// Where the results are in shared memory.
constexpr size_t kSealsOffset = 64;
constexpr size_t kChoicesOffset = kSealsOffset + kRanksMax * sizeof(uint64_t);

// `choices`: how many there is room for; the alternatives come behind them.
StepResults MapResults(void* base, size_t choices = 0) {
  char* const bytes = static_cast<char*>(base);
  StepResults results;
  results.published = reinterpret_cast<uint32_t*>(bytes);
  results.seals = reinterpret_cast<uint64_t*>(bytes + kSealsOffset);
  results.choices = reinterpret_cast<RowChoice*>(bytes + kChoicesOffset);
  results.tops = reinterpret_cast<TopLogit*>(bytes + kChoicesOffset + choices * sizeof(RowChoice));
  return results;
}

uint32_t Published(const DeviceBuffer& results) {
  return std::atomic_ref<uint32_t>(*MapResults(results.data()).published).load(std::memory_order_acquire);
}

absl::Status DeviceError(const absl::Status& status) {
  return absl::Status(status.code(), absl::StrCat("device: ", std::string(status.message())));
}

}  // namespace

StepRunner::StepRunner(Transformer& model, Ops& ops, Communicator& ranks, const Limits& limits)
    : model_(model),
      ops_(ops),
      ranks_(ranks),
      limits_(limits),
      loops_(!ops.prefers_programs()),
      history_rows_(HistoryRows(model.spec(), limits.rows_max)),
      history_slots_(history_rows_),
      batch_(model.page_size(), history_slots_) {
  CHECK(ranks.size() <= kRanksMax && limits.steps_per_launch_max >= 1);
}

StepRunner::~StepRunner() { ranks_.BeforeAbort(nullptr); }

StepShape StepRunner::ShapeMax() const {
  const int32_t lists = limits_.sequences_max * (kStopIdsMax + static_cast<int32_t>(model_.spec().stop_ids.size()));
  StepShape shape;
  shape.rows = limits_.rows_max;
  shape.segment_rows = limits_.rows_max;
  shape.segments = std::min(limits_.rows_max, kSegmentsEach * limits_.sequences_max);
  shape.blocks = std::min(limits_.rows_max, limits_.sequences_max);
  // Each part alone may take all rows, and each is rounded up for itself.
  shape.head_rows[0] = shape.head_rows[1] = limits_.rows_max;
  shape.list_tokens = 2 * lists;
  shape.biases = kBiasesAtFirst;
  shape.conditioned = model_.spec().gemma.present() ? 1 : 0;
  return shape;
}

// A page that sequences share is in the table once for each.
size_t StepRunner::PageTableMax() const {
  const int64_t pages = model_.pages(), page_size = model_.page_size();
  // A block's shadow stands behind the canvas, and is at most as long.
  const int64_t of_one = std::min(pages, (2 * model_.spec().positions_max + page_size - 1) / page_size);
  const int64_t lists = kSegmentsEach / 2;
  return static_cast<size_t>(lists * std::max(pages, of_one * std::min(limits_.sequences_max, limits_.rows_max)));
}

absl::Status StepRunner::Allocate() {
  const StepShape most = ShapeMax();
  const size_t ranks = static_cast<size_t>(ranks_.size()), requests = static_cast<size_t>(most.requests());
  RETURN_IF_ERROR(AllocateArrays(most));
  ASSIGN_OR_RETURN(scratch_, ops_.Allocate(requests * (sizeof(float) + sizeof(uint8_t))));
  const size_t steps = static_cast<size_t>(limits_.steps_per_launch_max);
  choices_max_ = requests * steps;
  const size_t tops = static_cast<size_t>(limits_.rows_max) * steps * kTopReportedMax * sizeof(TopLogit);
  ASSIGN_OR_RETURN(results_, ops_.AllocateShared(kChoicesOffset + choices_max_ * sizeof(RowChoice) + tops));
  const size_t history = static_cast<size_t>(history_rows_) * VocabularyRowsOf(model_.spec(), ranks_.size());
  if (history > 0) {
    ASSIGN_OR_RETURN(history_, ops_.Allocate(history * sizeof(float)));
  }
  const size_t candidates = (requests + 1) * sizeof(Candidate);
  const size_t top = static_cast<size_t>(limits_.rows_max) * kTopLogitsMax * sizeof(TopLogit);
  ASSIGN_OR_RETURN(candidates_, ops_.Allocate(candidates));
  ASSIGN_OR_RETURN(top_, ops_.Allocate(top));
  if (ranks > 1) {
    ASSIGN_OR_RETURN(gathered_candidates_, ops_.Allocate(candidates * ranks));
    ASSIGN_OR_RETURN(gathered_top_, ops_.Allocate(top * ranks));
  }
  // A loss is noticed, and this called, by the engine's thread alone, which then launches nothing any more.
  ranks_.BeforeAbort([this] { programs_.clear(); });
  if (!ops_.prefers_programs()) return absl::OkStatus();
  RETURN_IF_ERROR(AgreeOnLoops());
  return limits_.record_common_shapes ? RecordCommonShapes() : absl::OkStatus();
}

absl::Status StepRunner::AllocateArrays(const StepShape& shape) {
  const size_t bytes = MapStepArrays(nullptr, shape).bytes_before_pages + PageTableMax() * sizeof(int32_t);
  programs_.clear();
  ASSIGN_OR_RETURN(staging_, ops_.AllocateShared(bytes));
  ASSIGN_OR_RETURN(arrays_, ops_.Allocate(bytes));
  biases_max_ = shape.biases;
  return absl::OkStatus();
}

// Biases have no bound of their own; a step that has more than any before makes room for twice as many.
absl::Status StepRunner::MakeRoom(const StepShape& shape) {
  if (shape.biases <= biases_max_) return absl::OkStatus();
  StepShape most = ShapeMax();
  most.biases = 2 * shape.biases;
  RETURN_IF_ERROR(Finish());
  return AllocateArrays(most);
}

StepShape StepRunner::DenoisingShape(int32_t sequences, int32_t rows, int32_t masked) const {
  StepShape shape;
  shape.segment_rows = rows;
  shape.rows = sequences * rows;
  shape.segments = shape.blocks = sequences;
  shape.head_rows[0] = sequences * masked;
  return RoundUp(shape, limits_.rows_max, limits_.sequences_max);
}

// One that cannot record a loop makes all ranks do without: they have to run the same steps.
absl::Status StepRunner::AgreeOnLoops() {
  if (!ranks_.repeats() || limits_.steps_per_launch_max == 1) return absl::OkStatus();
  loops_ = true;
  const StepShape smallest = DenoisingShape(1, 1, 1);
  const absl::Status recorded = ProgramOf(smallest).status();
  RETURN_IF_ERROR(ops_.status());
  if (!recorded.ok()) {
    LogWarning("this device takes no loop: one step a launch", {{"reason", std::string(recorded.message())}});
  }
  uint64_t here = recorded.ok() ? 1 : 0;
  std::vector<uint64_t> everywhere(static_cast<size_t>(ranks_.size()), here);
  if (ranks_.size() > 1) {
    ops_.Upload(&here, candidates_.data(), sizeof here);
    ranks_.AllGather(candidates_.data(), gathered_candidates_.data(), sizeof here);
    ops_.Download(gathered_candidates_.data(), everywhere.data(), everywhere.size() * sizeof here);
    RETURN_IF_ERROR(Finish());
  }
  loops_ = std::all_of(everywhere.begin(), everywhere.end(), [](uint64_t able) { return able == 1; });
  if (!loops_) programs_.clear();
  return absl::OkStatus();
}

// Steps that denoise 1, 2, 4, … blocks, without and with the rows that close the blocks before, as they fill up. Where
// a step runs whole canvases of any length there is no shape that is met often enough.
absl::Status StepRunner::RecordCommonShapes() {
  const ModelSpec& spec = model_.spec();
  if (spec.grid != BlockGrid::kAbsolute) return absl::OkStatus();
  const int32_t block = spec.block_length;
  for (int32_t blocks = 1; blocks <= limits_.sequences_max && 2 * blocks * block <= limits_.rows_max; blocks *= 2) {
    for (const int32_t copies : {1, 2}) {
      for (const int32_t share : {2, 1}) {
        const int32_t masked = std::max(1, block / share);
        RETURN_IF_ERROR(ProgramOf(DenoisingShape(blocks, copies * block, masked)).status());
      }
    }
    LogInfo("steps recorded", {{"rows", 2 * blocks * block}, {"programs", programs_.size()}});
  }
  return absl::OkStatus();
}

// A shape runs once on padding alone before it is recorded: what libraries do at a first call is not recorded.
absl::StatusOr<Program*> StepRunner::ProgramOf(const StepShape& shape) {
  if (const auto known = programs_.find(shape); known != programs_.end()) {
    known->second.last_use = ++uses_;
    return known->second.program.get();
  }
  const StepArrays host = MapStepArrays(static_cast<char*>(staging_.data()), shape);
  batch_.LayOut({}, shape, host);
  *host.control = {};
  ops_.Upload(staging_.data(), arrays_.data(), host.bytes_before_pages);
  const StepLayout layout = LayoutOf(shape, shape.segment_rows, model_.pages() * model_.page_size());
  const std::function<void()> enqueue = [this, shape, layout] { Enqueue(shape, layout); };
  ops_.Rehearse(enqueue);
  RETURN_IF_ERROR(Finish());
  const StepArrays device = MapStepArrays(static_cast<char*>(arrays_.data()), shape);
  absl::StatusOr<std::unique_ptr<Program>> program = ops_.Record(enqueue, loops_ ? &device.control->proceed : nullptr);
  if (!program.ok()) return DeviceError(program.status());
  if (programs_.size() >= kProgramsMax) {
    programs_.erase(std::min_element(programs_.begin(), programs_.end(), [](const auto& a, const auto& b) {
      return a.second.last_use < b.second.last_use;
    }));
  }
  Recorded& recorded = programs_[shape];
  recorded = {*std::move(program), ++uses_};
  return recorded.program.get();
}

StepLayout StepRunner::LayoutOf(const StepShape& shape, int32_t rows_max, int32_t keys_max) const {
  const StepArrays arrays = MapStepArrays(static_cast<char*>(arrays_.data()), shape);
  StepLayout layout;
  layout.rows = shape.rows;
  layout.positions = arrays.positions;
  layout.slots = arrays.slots;
  layout.segments = arrays.segments;
  layout.segments_count = shape.segments;
  layout.page_table = arrays.page_table;
  layout.page_size = model_.page_size();
  layout.conditioning = arrays.conditioning;
  layout.rows_max = rows_max;
  layout.keys_max = keys_max;
  return layout;
}

absl::Status StepRunner::Prepare(absl::Span<const PlannedSegment> plan) {
  if (!ops_.prefers_programs()) return absl::OkStatus();
  const StepShape shape = RoundUp(StepBatch::ShapeOf(plan), limits_.rows_max, limits_.sequences_max);
  RETURN_IF_ERROR(MakeRoom(shape));
  return ProgramOf(shape).status();
}

absl::Status StepRunner::Launch(absl::Span<const PlannedSegment> plan, uint64_t seal, int32_t steps_max) {
  CHECK(!plan.empty() && !running_ && steps_max >= 1 && steps_max <= limits_.steps_per_launch_max);
  const StepShape exact = StepBatch::ShapeOf(plan);
  const bool programs = ops_.prefers_programs();
  shape_ = programs ? RoundUp(exact, limits_.rows_max, limits_.sequences_max) : exact;
  RETURN_IF_ERROR(MakeRoom(shape_));
  Program* program = nullptr;
  if (programs) {
    ASSIGN_OR_RETURN(program, ProgramOf(shape_));
  }
  const StepArrays host = MapStepArrays(static_cast<char*>(staging_.data()), shape_);
  const size_t bytes = host.bytes_before_pages + static_cast<size_t>(batch_.PagesOf(plan)) * sizeof(int32_t);
  CHECK(exact.rows <= limits_.rows_max && bytes <= staging_.bytes());
  batch_.LayOut(plan, shape_, host);
  *host.control = {};
  host.control->steps_max = loops_ ? steps_max : 1;
  seal_ = seal;
  steps_read_ = 0;
  *MapResults(results_.data()).published = 0;
  running_ = true;
  ops_.Upload(staging_.data(), arrays_.data(), bytes);
  ops_.Upload(&seal_, candidates_.data(), sizeof seal_);
  if (program != nullptr) {
    program->Launch();
    return absl::OkStatus();
  }
  int32_t keys_max = 0;
  for (const PlannedSegment& planned : plan) keys_max = std::max(keys_max, planned.segment.keys_held());
  layout_ = LayoutOf(shape_, shape_.segment_rows, keys_max);
  if (unrecorded_ == nullptr) {
    // The control comes first in the arrays, whatever the shape.
    const StepArrays device = MapStepArrays(static_cast<char*>(arrays_.data()), shape_);
    ASSIGN_OR_RETURN(unrecorded_,
                     ops_.Record([this] { Enqueue(shape_, layout_); }, loops_ ? &device.control->proceed : nullptr));
  }
  unrecorded_->Launch();
  return absl::OkStatus();
}

void StepRunner::Enqueue(const StepShape& shape, const StepLayout& layout) {
  const StepArrays arrays = MapStepArrays(static_cast<char*>(arrays_.data()), shape);
  model_.Forward(arrays.ids, layout);
  RunCandidates(shape, arrays);
  Gather(shape);
  if (shape.conditioned != 0) Condition(shape, arrays);
  ops_.AdvanceBlocks(BlockStepOf(shape, arrays));
}

void StepRunner::RunCandidates(const StepShape& shape, const StepArrays& arrays) {
  Candidate* const records = static_cast<Candidate*>(candidates_.data()) + 1;
  for (int i = 0; i < 2; ++i) {
    if (shape.head_rows[i] == 0) continue;
    const int32_t first = i == 0 ? 0 : shape.head_rows[0];
    const CandidateBatch batch = {.requests = arrays.requests + first,
                                  .count = shape.head_rows[i],
                                  .biases = shape.biases > 0 ? arrays.biases : nullptr,
                                  .history = static_cast<float*>(history_.data())};
    model_.Candidates(arrays.head_rows[i], shape.head_rows[i], batch, i == 0 ? 0 : kTopLogitsMax, records + first,
                      i == 0 ? nullptr : static_cast<TopLogit*>(top_.data()));
  }
}

void StepRunner::Gather(const StepShape& shape) {
  if (ranks_.size() == 1) return;
  // A rank whose device failed must not hand its numbers to the others, who would decide on them.
  if (!ops_.status().ok()) ranks_.Abort();
  const size_t records = static_cast<size_t>(shape.requests()) + 1;
  ranks_.AllGather(candidates_.data(), gathered_candidates_.data(), records * sizeof(Candidate));
  if (shape.head_rows[1] == 0) return;
  const size_t top = static_cast<size_t>(shape.head_rows[1]) * kTopLogitsMax;
  ranks_.AllGather(top_.data(), gathered_top_.data(), top * sizeof(TopLogit));
}

// After the gathering, because a probability is relative to what all ranks hold.
void StepRunner::Condition(const StepShape& shape, const StepArrays& arrays) {
  const DeviceBuffer& records = ranks_.size() == 1 ? candidates_ : gathered_candidates_;
  for (int i = 0; i < 2; ++i) {
    const int32_t first = i == 0 ? 0 : shape.head_rows[0];
    const SoftEmbedBatch batch = {.requests = arrays.requests + first,
                                  .count = shape.head_rows[i],
                                  .records = static_cast<const Candidate*>(records.data()) + 1 + first,
                                  .records_stride = int64_t{shape.requests()} + 1,
                                  .ranks = ranks_.size()};
    model_.Condition(arrays.head_rows[i], shape.head_rows[i], batch, arrays.condition_slots + first);
  }
}

BlockStep StepRunner::BlockStepOf(const StepShape& shape, const StepArrays& arrays) const {
  const bool alone = ranks_.size() == 1;
  BlockStep step;
  step.candidates = static_cast<const Candidate*>((alone ? candidates_ : gathered_candidates_).data());
  step.top = static_cast<const TopLogit*>((alone ? top_ : gathered_top_).data());
  step.first_top_row = shape.head_rows[0];
  step.ranks = ranks_.size();
  step.blocks = arrays.blocks;
  step.blocks_count = shape.blocks;
  step.rows = arrays.block_rows;
  step.rows_count = shape.requests();
  step.requests = arrays.requests;
  step.live = arrays.live;
  step.positions = arrays.block_positions;
  step.ranking = static_cast<float*>(scratch_.data());
  step.selected = reinterpret_cast<uint8_t*>(step.ranking + shape.requests());
  step.token_lists = arrays.token_lists;
  step.ids = arrays.ids;
  step.control = arrays.control;
  step.results = MapResults(results_.data(), choices_max_);
  return step;
}

absl::StatusOr<bool> StepRunner::Next() {
  CHECK(running_);
  const uint32_t wanted = steps_read_ + 1;
  RETURN_IF_ERROR(AwaitStep(wanted));
  if (Published(results_) < wanted) {
    running_ = false;
    if (steps_read_ == 0) return absl::InternalError("device: a launch ended without a step");
    return false;
  }
  // A step may have been decided on what a failed collective or device left behind.
  RETURN_IF_ERROR(ranks_.status());
  if (const absl::Status device = ops_.status(); !device.ok()) return DeviceError(device);
  if (steps_read_ == 0) RETURN_IF_ERROR(CheckSeals());
  ++steps_read_;
  return true;
}

// Until the step is there, or the launch has ended.
absl::Status StepRunner::AwaitStep(uint32_t wanted) {
  constexpr int32_t kRoundMilliseconds = 50;
  constexpr int32_t kRoundsMax = 400;
  for (int32_t round = 0; round < kRoundsMax && Published(results_) < wanted; ++round) {
    const absl::Status awaited = ops_.Await(MapResults(results_.data()).published, wanted, kRoundMilliseconds);
    RETURN_IF_ERROR(ranks_.status());
    if (!absl::IsDeadlineExceeded(awaited)) break;
  }
  if (Published(results_) >= wanted) return absl::OkStatus();
  // It has ended, and its last step may have been published in between; or it takes so long that the communicator,
  // which knows how long is too long, is to say what to do.
  return Finish();
}

absl::Status StepRunner::Finish() {
  RETURN_IF_ERROR(ranks_.Synchronize());
  if (const absl::Status device = ops_.Synchronize(); !device.ok()) return DeviceError(device);
  return absl::OkStatus();
}

absl::Span<RowChoice> StepRunner::Choices(size_t index, const Sequence& sequence) {
  const OpenRows& open = batch_.open_rows(index);
  const RowChoice* const of_step =
      MapResults(results_.data()).choices + int64_t{steps_read_ - 1} * shape_.requests() + open.first_row;
  choices_.clear();
  tops_.clear();
  if (open.asked.empty()) return absl::MakeSpan(choices_);
  const TopLogit* const tops_of_step =
      MapResults(results_.data(), choices_max_).tops +
      (int64_t{steps_read_ - 1} * shape_.head_rows[1] + open.first_row - shape_.head_rows[0]) * kTopReportedMax;
  size_t i = 0;
  for (const RowAsk& ask : sequence.asked()) {
    while (open.asked[i].position != ask.position || open.asked[i].shadow != ask.shadow) {
      CHECK(++i < open.asked.size());
    }
    choices_.push_back(of_step[i]);
    if (!sequence.wants_tops()) continue;
    const TopLogit* const tops = tops_of_step + static_cast<int64_t>(i) * kTopReportedMax;
    tops_.insert(tops_.end(), tops, tops + kTopReportedMax);
  }
  return absl::MakeSpan(choices_);
}

absl::Status StepRunner::CheckSeals() const {
  const uint64_t* const seals = MapResults(results_.data()).seals;
  for (int32_t rank = 0; rank < ranks_.size(); ++rank) {
    if (seals[rank] == seal_) continue;
    return absl::InternalError(absl::StrCat("ranks disagree: the decisions of rank ", rank, " hash to ", seals[rank],
                                            ", those of rank ", ranks_.rank(), " to ", seal_));
  }
  return absl::OkStatus();
}

}  // namespace quicksilver

#include "tests/support/model_group.h"

#include <algorithm>
#include <thread>
#include <utility>

#include "common/status_macros.h"
#include "kernels/host_float.h"
#include "worker/model/load_spec.h"

namespace quicksilver {
namespace {

template <typename T>
DeviceBuffer ToDevice(Ops& ops, const std::vector<T>& values) {
  absl::StatusOr<DeviceBuffer> buffer = ops.Allocate(std::max<size_t>(1, values.size() * sizeof(T)));
  CHECK(buffer.ok());
  ops.Upload(values.data(), buffer->data(), values.size() * sizeof(T));
  CHECK(ops.Synchronize().ok());
  return std::move(buffer).value();
}

}  // namespace

TestStep::TestStep(Ops& ops, const std::vector<TestSegment>& segments, int32_t page_size, int32_t block_length) {
  std::vector<int32_t> ids, positions, slots, page_table;
  std::vector<AttentionSegment> spans;
  for (const TestSegment& segment : segments) {
    const auto rows = static_cast<int32_t>(segment.ids.size());
    const int32_t keys = segment.first_position + rows;
    spans.push_back({.first_row = static_cast<int32_t>(ids.size()),
                     .rows = rows,
                     .first_position = segment.first_position,
                     .keys = keys,
                     .first_page = static_cast<int32_t>(page_table.size()),
                     .block_length = block_length});
    for (int32_t i = 0; i < rows; ++i) {
      const int32_t position = segment.first_position + i;
      ids.push_back(segment.ids[i]);
      positions.push_back(position);
      slots.push_back(segment.pages.at(position / page_size) * page_size + position % page_size);
    }
    page_table.insert(page_table.end(), segment.pages.begin(), segment.pages.end());
    layout_.rows_max = std::max(layout_.rows_max, rows);
    layout_.keys_max = std::max(layout_.keys_max, keys);
  }
  ids_ = ToDevice(ops, ids);
  positions_ = ToDevice(ops, positions);
  slots_ = ToDevice(ops, slots);
  segments_ = ToDevice(ops, spans);
  page_table_ = ToDevice(ops, page_table);
  layout_.rows = static_cast<int32_t>(ids.size());
  layout_.positions = static_cast<const int32_t*>(positions_.data());
  layout_.slots = static_cast<const int32_t*>(slots_.data());
  layout_.segments = static_cast<const AttentionSegment*>(segments_.data());
  layout_.segments_count = static_cast<int32_t>(spans.size());
  layout_.page_table = static_cast<const int32_t*>(page_table_.data());
  layout_.page_size = page_size;
}

HostRows ToHost(Ops& ops, ConstMatrix matrix) {
  CHECK(matrix.stride == matrix.cols);
  HostRows rows{matrix.cols, std::vector<float>(matrix.rows * matrix.cols)};
  if (matrix.dtype == DType::kF32) {
    ops.Download(matrix.data, rows.values.data(), rows.values.size() * sizeof(float));
    CHECK(ops.Synchronize().ok());
    return rows;
  }
  std::vector<uint16_t> narrow(rows.values.size());
  ops.Download(matrix.data, narrow.data(), narrow.size() * sizeof(uint16_t));
  CHECK(ops.Synchronize().ok());
  std::transform(narrow.begin(), narrow.end(), rows.values.begin(), Bf16ToFloat);
  return rows;
}

void ModelGroup::ForEachRank(const std::function<void(int rank)>& run) {
  std::vector<std::thread> threads;
  for (int rank = 1; rank < static_cast<int>(members_.size()); ++rank) threads.emplace_back(run, rank);
  run(0);
  for (std::thread& thread : threads) thread.join();
}

absl::StatusOr<std::unique_ptr<ModelGroup>> ModelGroup::Load(const std::string& directory, int ranks,
                                                             const MakeOps& make_ops, const Sizes& sizes,
                                                             const SpecOptions& options) {
  ASSIGN_OR_RETURN(const std::unique_ptr<Checkpoint> checkpoint, Checkpoint::Open(directory));
  ASSIGN_OR_RETURN(const ModelSpec spec, LoadModelSpec(*checkpoint, options));
  std::unique_ptr<ModelGroup> group(new ModelGroup(ranks));
  for (int rank = 0; rank < ranks; ++rank) {
    Member& member = group->members_[rank];
    member.ops = make_ops();
    member.communicator = group->group_.Join(rank);
    ASSIGN_OR_RETURN(member.model, Transformer::Load(spec, *checkpoint, *member.ops, *member.communicator,
                                                     sizes.rows_max, sizes.pages, sizes.page_size));
  }
  return group;
}

HostRows ModelGroup::Logits(const std::vector<TestSegment>& segments, int32_t block_length,
                            const std::function<void(const std::string&, const HostRows&)>& observer) {
  std::vector<HostRows> shards(members_.size());
  ForEachRank([&](int rank) {
    Member& member = members_[rank];
    if (observer && rank == 0) {
      member.model->SetObserver(
          [&](const std::string& name, ConstMatrix hidden) { observer(name, ToHost(*member.ops, hidden)); });
    }
    const TestStep step(*member.ops, segments, member.model->page_size(), block_length);
    member.model->Forward(step.ids(), step.layout());
    member.model->SetObserver(nullptr);
    const int32_t rows = step.layout().rows;
    std::vector<int32_t> all(rows);
    for (int32_t i = 0; i < rows; ++i) all[i] = i;
    const DeviceBuffer wanted = ToDevice(*member.ops, all);
    const int64_t cols = (spec().vocabulary + members_.size() - 1) / members_.size();
    const DType dtype = member.ops->activation_dtype();
    const DeviceBuffer memory = ToDevice(*member.ops, std::vector<char>(rows * cols * ElementBytes(dtype)));
    const Matrix logits{memory.data(), rows, cols, cols, dtype};
    member.model->Logits(static_cast<const int32_t*>(wanted.data()), rows, logits);
    shards[rank] = ToHost(*member.ops, logits);
  });
  CHECK(members_[0].communicator->Synchronize().ok());
  HostRows merged{spec().vocabulary, {}};
  for (int64_t row = 0; row < shards[0].rows(); ++row) {
    for (int64_t id = 0; id < merged.cols; ++id) {
      merged.values.push_back(shards[id / shards[0].cols].row(row)[id % shards[0].cols]);
    }
  }
  return merged;
}

}  // namespace quicksilver

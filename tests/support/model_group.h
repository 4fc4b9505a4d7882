#pragma once

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "kernels/ops.h"
#include "tests/support/threaded_communicator.h"
#include "worker/checkpoint/checkpoint.h"
#include "worker/model/load_spec.h"
#include "worker/model/transformer.h"

namespace quicksilver {

/// What one sequence does in a step of a test.
struct TestSegment {
  std::vector<TokenId> ids;    ///< Of the rows.
  int32_t first_position = 0;  ///< Of the first row.
  std::vector<int32_t> pages;  ///< Page numbers from position 0 on; at least up to the last row.
};

/// The device arrays of one step.
class TestStep {
 public:
  TestStep(Ops& ops, const std::vector<TestSegment>& segments, int32_t page_size, int32_t block_length);
  const int32_t* ids() const { return static_cast<const int32_t*>(ids_.data()); }
  const StepLayout& layout() const { return layout_; }

 private:
  DeviceBuffer ids_, positions_, slots_, segments_, page_table_;
  StepLayout layout_;
};

/// Rows of floats, dense.
struct HostRows {
  int64_t cols = 0;
  std::vector<float> values;
  const float* row(int64_t i) const { return values.data() + i * cols; }
  int64_t rows() const { return cols == 0 ? 0 : static_cast<int64_t>(values.size()) / cols; }
};

/// Copies a dense device matrix to the host, as floats.
HostRows ToHost(Ops& ops, ConstMatrix matrix);

/// The ranks of one model in one process, each on its own thread while it runs. Host devices only.
class ModelGroup {
 public:
  using MakeOps = std::function<std::unique_ptr<Ops>()>;
  struct Sizes {
    int32_t rows_max = 128;
    int32_t pages = 64;
    int32_t page_size = 8;
  };

  /// InvalidArgument and so on as Transformer::Load.
  static absl::StatusOr<std::unique_ptr<ModelGroup>> Load(const std::string& directory, int ranks,
                                                          const MakeOps& make_ops, const Sizes& sizes,
                                                          const SpecOptions& options = {});

  const ModelSpec& spec() const { return members_[0].model->spec(); }
  const Transformer& model(int rank) const { return *members_[rank].model; }

  /// Runs one step on all ranks and returns the logits of all its rows: [N, V]. `observer` sees what rank 0 observes.
  HostRows Logits(const std::vector<TestSegment>& segments, int32_t block_length,
                  const std::function<void(const std::string&, const HostRows&)>& observer = nullptr);

 private:
  struct Member {
    std::unique_ptr<Ops> ops;
    std::unique_ptr<Communicator> communicator;
    std::unique_ptr<Transformer> model;
  };
  void ForEachRank(const std::function<void(int rank)>& run);

  explicit ModelGroup(int ranks) : group_(ranks), members_(ranks) {}

  ThreadedGroup group_;
  std::vector<Member> members_;
};

}  // namespace quicksilver

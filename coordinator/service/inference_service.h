#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/time/time.h"
#include "coordinator/cluster/cluster.h"
#include "coordinator/core/dispatcher.h"
#include "coordinator/metrics.h"
#include "coordinator/service/inference.h"
#include "coordinator/service/prepare.h"
#include "coordinator/text/text.h"

namespace quicksilver {

struct InferenceOptions {
  DispatcherOptions dispatcher;
  ClusterOptions cluster;
  std::string served_model_name;           ///< Groups that serve another are refused. Empty: any.
  std::vector<std::string> model_aliases;  ///< Names that mean the served model, too.
  SamplingDefaults sampling;
  int tokenizer_threads = 2;
  size_t tokenizer_queue_max = 1024;
  size_t tokenizer_queue_bytes_max = 256 << 20;
  absl::Duration canvas_interval;  ///< Least time between canvases while no block closes: every step has one.
};

/// The coordinator itself, without its front ends. Outlives every Call that it gave out.
class InferenceService : public Inference {
 public:
  /// Dials the groups at once. `metrics` outlives the service.
  static std::unique_ptr<InferenceService> Create(InferenceOptions options, std::shared_ptr<const TextModel> text,
                                                  Metrics& metrics);

  /// NotReady() says so from now on; requests are still accepted, for those who have not heard yet.
  virtual void BeginLameDuck() = 0;
  /// New requests are refused; what runs goes on.
  virtual void BeginDrain() = 0;
  /// True when no request is left; false after `timeout`.
  virtual bool WaitIdle(absl::Duration timeout) = 0;
};

}  // namespace quicksilver

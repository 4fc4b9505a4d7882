#pragma once

#include <string>
#include <vector>

#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "common/mutex.h"
#include "coordinator/service/inference.h"

namespace quicksilver {

/// Keeps what a request's sink hears, and counts what it should never hear.
class RecordingSink : public ResponseSink {
 public:
  explicit RecordingSink(uint32_t choices = 1) : unfinished_(choices), texts_(choices) {}

  void OnStarted(const StartedEvent& event) override {
    MutexLock lock(mu_);
    Heard("started");
    started_.push_back(event);
  }
  void OnDelta(const DeltaEvent& event) override {
    MutexLock lock(mu_);
    Heard("delta " + event.text);
    texts_.at(event.choice) += event.text;
  }
  void OnFrame(const FrameEvent& event) override {
    MutexLock lock(mu_);
    Heard("frame");
    frames_.push_back(event);
  }
  void OnFinished(const FinishedEvent& event) override {
    MutexLock lock(mu_);
    Heard("finished");
    finished_.push_back(event);
    over_ = --unfinished_ == 0;
  }
  void OnError(const ApiError& error) override {
    MutexLock lock(mu_);
    Heard("error " + error.code);
    errors_.push_back(error);
    over_ = true;
  }

  /// Whether `condition` of this came to hold within ten seconds.
  template <typename Condition>
  bool WaitFor(Condition condition) {
    MutexLock lock(mu_);
    const absl::Time end = absl::Now() + absl::Seconds(10);
    while (!condition(*this) && absl::Now() < end) changed_.WaitFor(mu_, absl::Milliseconds(20));
    return condition(*this);
  }
  bool WaitUntilOver() {
    return WaitFor([](const RecordingSink& sink) { return sink.over_; });
  }

  // To be read when it is over, or in WaitFor.
  std::vector<StartedEvent> started_;
  std::vector<FrameEvent> frames_;
  std::vector<FinishedEvent> finished_;
  std::vector<ApiError> errors_;
  std::vector<std::string> events_;
  uint32_t unfinished_;
  std::vector<std::string> texts_;
  bool over_ = false;
  int after_the_end_ = 0;

 private:
  void Heard(std::string event) {
    if (over_) ++after_the_end_;
    events_.push_back(std::move(event));
    changed_.NotifyAll();
  }

  Mutex mu_;
  CondVar changed_;
};

}  // namespace quicksilver

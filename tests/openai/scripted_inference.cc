#include "tests/openai/scripted_inference.h"

#include <thread>
#include <utility>

#include "absl/time/clock.h"

namespace quicksilver {

std::string LastText(const GenerateRequest& request) {
  if (const auto* messages = std::get_if<std::vector<ChatMessage>>(&request.input)) return messages->back().content;
  if (const auto* text = std::get_if<std::string>(&request.input)) return *text;
  return "";
}

StartedEvent Started(uint32_t prompt_tokens) { return {"m", "fp_0123456789", 1795430400, prompt_tokens}; }

DeltaEvent Delta(std::string text, uint32_t choice, uint32_t step) { return {choice, std::move(text), 0, step}; }

FinishedEvent Finished(uint32_t tokens, uint32_t choice, FinishReason reason) {
  return {choice, reason, tokens, /*forwards=*/2, 0.1, 0.2};
}

class ScriptedCall : public Call {
 public:
  ScriptedCall(ScriptedInference& owner, Script script, std::shared_ptr<ResponseSink> sink) : owner_(owner) {
    ++owner_.running_;
    thread_ = std::thread([this, script = std::move(script), sink = std::move(sink)] {
      Play(script, *sink);
      --owner_.running_;
    });
  }
  ~ScriptedCall() override { Cancel(); }

  void Cancel() override {
    {
      MutexLock lock(mutex_);
      if (!played_ && !cancelled_) ++owner_.cancelled_;
      cancelled_ = true;
      changed_.NotifyAll();
    }
    if (thread_.joinable()) thread_.join();
  }

 private:
  // False when cancelled.
  bool Pause(absl::Duration duration) EXCLUDES_LOCK(mutex_) {
    const absl::Time deadline = absl::Now() + duration;
    MutexLock lock(mutex_);
    while (!cancelled_) {
      const absl::Duration left = deadline - absl::Now();
      if (left <= absl::ZeroDuration()) return true;
      changed_.WaitFor(mutex_, left);
    }
    return false;
  }

  void Play(const Script& script, ResponseSink& sink) {
    for (const ScriptStep& step : script) {
      const absl::Duration* pause = std::get_if<absl::Duration>(&step);
      if (!Pause(pause != nullptr ? *pause : absl::ZeroDuration())) return;
      if (&step == &script.back()) {
        MutexLock lock(mutex_);
        played_ = true;
      }
      if (const auto* started = std::get_if<StartedEvent>(&step)) sink.OnStarted(*started);
      if (const auto* delta = std::get_if<DeltaEvent>(&step)) sink.OnDelta(*delta);
      if (const auto* frame = std::get_if<FrameEvent>(&step)) sink.OnFrame(*frame);
      if (const auto* finished = std::get_if<FinishedEvent>(&step)) sink.OnFinished(*finished);
      if (const auto* error = std::get_if<ApiError>(&step)) sink.OnError(*error);
    }
  }

  ScriptedInference& owner_;
  Mutex mutex_;
  CondVar changed_;
  bool cancelled_ GUARDED_BY(mutex_) = false;
  bool played_ GUARDED_BY(mutex_) = false;
  std::thread thread_;
};

std::unique_ptr<Call> ScriptedInference::Start(GenerateRequest request, std::shared_ptr<ResponseSink> sink) {
  Script script = writer_(request);
  {
    MutexLock lock(mutex_);
    requests_.push_back(std::move(request));
  }
  return std::make_unique<ScriptedCall>(*this, std::move(script), std::move(sink));
}

std::vector<ModelInfo> ScriptedInference::Models() const {
  return {{"m", 1795430400, 4096, true}, {"org/name", 1795430400, 8192, true}};
}

std::optional<ApiError> ScriptedInference::NotReady() const {
  MutexLock lock(mutex_);
  return not_ready_;
}

void ScriptedInference::SetNotReady(std::optional<ApiError> reason) {
  MutexLock lock(mutex_);
  not_ready_ = std::move(reason);
}

std::vector<GenerateRequest> ScriptedInference::requests() const {
  MutexLock lock(mutex_);
  return requests_;
}

}  // namespace quicksilver

#pragma once

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <memory>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "common/metrics.h"
#include "coordinator/service/inference_service.h"
#include "tests/coordinator/recording_sink.h"
#include "tests/coordinator/scripted_group.h"

namespace quicksilver {

/// A service in front of one or two scripted groups.
class ServiceTest : public testing::Test {
 protected:
  void StartGroup(uint32_t sequences_max = 4) {
    group_ = std::make_unique<ScriptedGroup>(DemoGroup(*text_, sequences_max), port_);
    port_ = group_->port();
  }

  // It takes no work before SetReady(true).
  void StartSecondGroup(uint32_t sequences_max = 4) {
    second_ = std::make_unique<ScriptedGroup>(DemoGroup(*text_, sequences_max));
    second_->SetReady(false);
  }

  void StartService() {
    std::vector<WorkerSource>& sources = options_.cluster.discovery.sources;
    if (sources.empty()) {
      sources.push_back(*ParseWorkerSource("", absl::StrCat("127.0.0.1:", port_)));
      if (second_ != nullptr) sources.push_back(*ParseWorkerSource("", second_->address()));
    }
    if (metrics_ == nullptr) metrics_ = std::make_unique<Metrics>("demo", std::vector<std::string>{"default"});
    service_ = InferenceService::Create(options_, text_, *metrics_);
  }

  void StartBoth(uint32_t sequences_max = 4) {
    StartGroup(sequences_max);
    StartService();
    ASSERT_TRUE(BecomesReady(true));
  }

  // The first group is ready, the second one is not yet.
  void StartWithASecondGroup() {
    StartGroup();
    StartSecondGroup();
    StartService();
    ASSERT_TRUE(BecomesReady(true));
  }

  template <typename Condition>
  static bool Eventually(Condition condition) {
    const absl::Time end = absl::Now() + absl::Seconds(10);
    while (!condition() && absl::Now() < end) absl::SleepFor(absl::Milliseconds(2));
    return condition();
  }

  bool BecomesReady(bool ready) {
    return Eventually([&] { return service_->NotReady().has_value() != ready; });
  }

  // Whether /metrics comes to have this piece, or not to have it.
  bool ComesToSay(const std::string& piece, bool says = true) {
    return Eventually([&] { return (RenderMetrics(metrics_->registry()).find(piece) != std::string::npos) == says; });
  }

  static std::string Up(const std::string& address, bool up) {
    return absl::StrCat("quicksilver_worker_up{model_name=\"demo\",group=\"", address, "\"} ", up ? 1 : 0, "\n");
  }

  static GenerateRequest Ask(const std::string& prompt = "def f") {
    GenerateRequest request;
    request.request_id = "test";
    request.model = "demo";
    request.input = prompt;
    return request;
  }

  std::vector<int32_t> Ids(const std::string& text) { return *text_->Encode(text, 1000); }

  // The code of the error that a request ends with.
  std::string ErrorOf(GenerateRequest request) {
    const auto sink = std::make_shared<RecordingSink>(request.choices);
    const std::unique_ptr<Call> call = service_->Start(std::move(request), sink);
    EXPECT_TRUE(sink->WaitUntilOver());
    return sink->errors_.empty() ? "" : sink->errors_[0].code;
  }

  std::shared_ptr<const TextModel> text_ = *TextModel::Load("models/demo");
  InferenceOptions options_;
  int port_ = 0;
  std::unique_ptr<Metrics> metrics_;
  std::unique_ptr<ScriptedGroup> group_;
  std::unique_ptr<ScriptedGroup> second_;
  std::unique_ptr<InferenceService> service_;
};

}  // namespace quicksilver

// Measures a running service: what the coordinator adds to the time to the first committed token, and the tokens per
// second of a worker group. Prints one JSON object; tools/bench starts the processes and reads it.
#include <grpc/support/time.h>
#include <grpcpp/grpcpp.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cstdio>
#include <functional>
#include <iostream>
#include <memory>
#include <thread>
#include <vector>

#include "absl/time/time.h"
#include "common/clock.h"
#include "common/exit_codes.h"
#include "common/options.h"
#include "common/status_macros.h"
#include "coordinator/text/text.h"
#include "quicksilver/v1/inference.grpc.pb.h"
#include "quicksilver/v1/worker.grpc.pb.h"

namespace quicksilver {
namespace {

struct Options {
  std::string worker = "127.0.0.1:7070";
  std::string coordinator;  // Empty: only the worker is measured.
  std::string text_model;   // Directory; empty: random prompt ids.
  int streams = 32;
  int rounds = 5;
  uint32_t max_tokens = 32;
  int prompt_tokens = 16;
};

constexpr const char* kPrompt =
    "def keep_even(numbers):\n    \"\"\"Keep only the elements of numbers that are even.\"\"\"";

/// Times of one round, in milliseconds from the moment all streams were let go.
struct Round {
  std::vector<double> first_ms;
  double seconds = 0;
  uint64_t tokens = 0;
  uint64_t forwards = 0;
};

double Median(std::vector<double> values) {
  if (values.empty()) return 0;
  std::nth_element(values.begin(), values.begin() + static_cast<std::ptrdiff_t>(values.size() / 2), values.end());
  return values[values.size() / 2];
}

/// The outcome of one answer.
struct Answer {
  double first_ms = -1;  // To the first committed token that the client saw; negative: it failed.
  uint64_t tokens = 0;
  uint64_t forwards = 0;
};

/// One answer straight from the leader, over a stream of its own: the client does the same work as with a coordinator.
Answer AskWorker(v1::Worker::Stub& stub, const Options& options, const std::vector<int32_t>& prompt,
                 const std::vector<int32_t>& stops, absl::Duration start) {
  grpc::ClientContext context;
  context.set_deadline(gpr_time_add(gpr_now(GPR_CLOCK_MONOTONIC), gpr_time_from_seconds(600, GPR_TIMESPAN)));
  auto call = stub.Serve(&context);
  v1::CoordinatorMessage hello, submit;
  hello.mutable_hello()->set_coordinator("bench");
  v1::Submit& s = *submit.mutable_submit();
  s.set_sequence_id(1);
  s.mutable_prompt_ids()->Assign(prompt.begin(), prompt.end());
  s.set_max_tokens(options.max_tokens);
  s.mutable_stop_ids()->Assign(stops.begin(), stops.end());
  s.mutable_sampling()->set_top_p(1.0f);
  s.set_provisional(true);
  Answer answer;
  if (!call->Write(hello) || !call->Write(submit)) return answer;
  double first = -1;
  for (v1::WorkerMessage message; call->Read(&message);) {
    for (const v1::SequenceUpdate& update : message.step().updates()) {
      if (update.commits_size() > 0 && first < 0) first = absl::ToDoubleMilliseconds(MonotonicNow() - start);
      if (!update.has_end()) continue;
      if (update.end().reason() != v1::SequenceEnd::REASON_ERROR) {
        answer = {first, update.end().completion_tokens(), update.end().forwards()};
      } else {
        std::cerr << "worker: " << update.end().error_message() << "\n";
      }
      context.TryCancel();
    }
  }
  return answer;
}

/// One answer through the coordinator.
Answer AskCoordinator(v1::Inference::Stub& stub, const std::string& model, const Options& options,
                      absl::Duration start) {
  grpc::ClientContext context;
  context.set_deadline(gpr_time_add(gpr_now(GPR_CLOCK_MONOTONIC), gpr_time_from_seconds(600, GPR_TIMESPAN)));
  v1::GenerateRequest request;
  request.set_model(model);
  v1::ChatMessage& chat = *request.mutable_chat()->add_messages();
  chat.set_role("user");
  chat.set_content(kPrompt);
  request.set_max_tokens(options.max_tokens);
  request.mutable_sampling()->set_temperature(0);
  request.set_canvases(true);
  auto reader = stub.Generate(&context, request);
  Answer answer;
  double first = -1;
  for (v1::GenerateEvent event; reader->Read(&event);) {
    if (first < 0 && (event.has_frame() || event.has_delta()))
      first = absl::ToDoubleMilliseconds(MonotonicNow() - start);
    if (event.has_finished()) answer = {first, event.finished().completion_tokens(), event.finished().forwards()};
  }
  const grpc::Status status = reader->Finish();
  if (status.ok()) return answer;
  std::cerr << "coordinator: " << status.error_message() << "\n";
  return Answer();
}

/// All streams at once, a thread each.
absl::StatusOr<Round> RunRound(int streams, const std::function<Answer(absl::Duration start)>& ask) {
  std::vector<Answer> answers(static_cast<size_t>(streams));
  std::vector<std::thread> threads;
  const absl::Duration start = MonotonicNow();
  for (Answer& answer : answers) threads.emplace_back([&] { answer = ask(start); });
  for (std::thread& thread : threads) thread.join();
  Round round;
  round.seconds = absl::ToDoubleSeconds(MonotonicNow() - start);
  for (const Answer& answer : answers) {
    if (answer.first_ms < 0) return absl::InternalError("an answer failed");
    round.first_ms.push_back(answer.first_ms);
    round.tokens += answer.tokens;
    round.forwards += answer.forwards;
  }
  return round;
}

/// The stop ids of the group's model; none when prompts are made up, so that answers run to their length.
absl::StatusOr<std::vector<int32_t>> StopIds(v1::Worker::Stub& stub, const Options& options) {
  grpc::ClientContext context;
  auto call = stub.Serve(&context);
  v1::CoordinatorMessage hello;
  hello.mutable_hello()->set_coordinator("bench");
  v1::WorkerMessage message;
  if (!call->Write(hello) || !call->Read(&message) || !message.has_info()) {
    return absl::UnavailableError("no worker answers");
  }
  context.TryCancel();
  if (options.text_model.empty()) return std::vector<int32_t>();
  return std::vector<int32_t>(message.info().stop_ids().begin(), message.info().stop_ids().end());
}

absl::StatusOr<std::string> FirstModel(v1::Inference::Stub& stub) {
  grpc::ClientContext context;
  v1::ListModelsReply models;
  if (!stub.ListModels(&context, {}, &models).ok() || models.models().empty()) {
    return absl::UnavailableError("the coordinator has no model");
  }
  return models.models(0).id();
}

absl::StatusOr<std::vector<int32_t>> Prompt(const Options& options) {
  if (options.text_model.empty()) {
    std::vector<int32_t> ids(static_cast<size_t>(options.prompt_tokens));
    for (size_t i = 0; i < ids.size(); ++i) ids[i] = static_cast<int32_t>(7 + 13 * i % 400);
    return ids;
  }
  const auto text = TextModel::Load(options.text_model);
  if (!text.ok()) return text.status();
  return (*text)->EncodeChat({{"user", kPrompt, ""}}, 4096);
}

/// Runs the rounds of both ways in turn, so that a noisy machine disturbs both alike.
absl::Status Measure(const Options& options) {
  ASSIGN_OR_RETURN(const std::vector<int32_t> prompt, Prompt(options));
  const auto worker = v1::Worker::NewStub(grpc::CreateChannel(options.worker, grpc::InsecureChannelCredentials()));
  const auto coordinator =
      v1::Inference::NewStub(grpc::CreateChannel(options.coordinator, grpc::InsecureChannelCredentials()));
  ASSIGN_OR_RETURN(const std::vector<int32_t> stops, StopIds(*worker, options));
  std::string model;
  if (!options.coordinator.empty()) {
    ASSIGN_OR_RETURN(model, FirstModel(*coordinator));
  }
  std::vector<double> direct_first, through_first, added, rates, per_forward;
  for (int i = -1; i < options.rounds; ++i) {  // The first round warms up.
    ASSIGN_OR_RETURN(const Round direct, RunRound(options.streams, [&](absl::Duration start) {
                       return AskWorker(*worker, options, prompt, stops, start);
                     }));
    Round through;
    if (!model.empty()) {
      ASSIGN_OR_RETURN(through, RunRound(options.streams, [&](absl::Duration start) {
                         return AskCoordinator(*coordinator, model, options, start);
                       }));
    }
    if (i < 0) continue;
    direct_first.push_back(Median(direct.first_ms));
    through_first.push_back(Median(through.first_ms));
    added.push_back(through_first.back() - direct_first.back());
    rates.push_back(static_cast<double>(direct.tokens) / direct.seconds);
    per_forward.push_back(static_cast<double>(direct.tokens) /
                          static_cast<double>(std::max<uint64_t>(direct.forwards, 1)));
  }
  std::printf(
      "{\"streams\": %d, \"rounds\": %d, \"tokens_per_second\": %.2f, \"tokens_per_forward\": %.3f, "
      "\"direct_first_ms\": %.3f, \"through_first_ms\": %.3f, \"added_ms\": %.3f}\n",
      options.streams, options.rounds, Median(rates), Median(per_forward), Median(direct_first), Median(through_first),
      Median(added));
  return absl::OkStatus();
}

int Run(int argc, char** argv) {
  Options options;
  CLI::App app("Measures a running service.", "quicksilver_bench_service");
  app.add_option("--worker", options.worker, "Leader of the group")->capture_default_str();
  app.add_option("--coordinator", options.coordinator, "gRPC address; when given, the same load goes through it too");
  app.add_option("--text-model", options.text_model, "Directory of the tokenizer; without it prompts are made-up ids");
  app.add_option("--streams", options.streams)->check(CLI::Range(1, 1024))->capture_default_str();
  app.add_option("--rounds", options.rounds)->check(CLI::Range(1, 1000))->capture_default_str();
  app.add_option("--max-tokens", options.max_tokens)->check(CLI::Range(1, 65536))->capture_default_str();
  app.add_option("--prompt-tokens", options.prompt_tokens)->check(CLI::Range(1, 65536))->capture_default_str();
  if (const std::optional<int> exit = ParseOptions(app, argc, argv); exit.has_value()) return *exit;
  const absl::Status status = Measure(options);
  if (status.ok()) return kExitOk;
  std::cerr << "quicksilver_bench_service: " << status << "\n";
  return kExitInternal;
}

}  // namespace
}  // namespace quicksilver

int main(int argc, char** argv) { return quicksilver::Run(argc, argv); }

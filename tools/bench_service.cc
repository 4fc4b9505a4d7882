// Measures a running service: what the coordinator adds to the time to the first committed token, and the tokens per
// second of a worker group. Prints one JSON object; tools/bench starts the processes and reads it.
#include <grpc/support/time.h>
#include <grpcpp/grpcpp.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cstdio>
#include <functional>
#include <iostream>
#include <map>
#include <memory>
#include <thread>
#include <vector>

#include "absl/time/time.h"
#include "common/clock.h"
#include "common/exit_codes.h"
#include "common/options.h"
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

/// Straight to the leader: one Serve stream, `streams` submissions at once.
absl::StatusOr<Round> Direct(v1::Worker::Stub& stub, const Options& options, const std::vector<int32_t>& prompt) {
  grpc::ClientContext context;
  context.set_deadline(gpr_time_add(gpr_now(GPR_CLOCK_MONOTONIC), gpr_time_from_seconds(600, GPR_TIMESPAN)));
  auto call = stub.Serve(&context);
  v1::CoordinatorMessage hello;
  hello.mutable_hello()->set_coordinator("bench");
  v1::WorkerMessage message;
  if (!call->Write(hello) || !call->Read(&message) || !message.has_info()) {
    return absl::UnavailableError("no worker answers");
  }
  const std::vector<int32_t> stops(message.info().stop_ids().begin(), message.info().stop_ids().end());
  Round round;
  std::map<uint64_t, bool> started;
  const absl::Duration start = MonotonicNow();
  for (int i = 0; i < options.streams; ++i) {
    v1::CoordinatorMessage submit;
    v1::Submit& s = *submit.mutable_submit();
    s.set_sequence_id(static_cast<uint64_t>(i) + 1);
    s.mutable_prompt_ids()->Assign(prompt.begin(), prompt.end());
    s.set_max_tokens(options.max_tokens);
    if (!options.text_model.empty()) s.mutable_stop_ids()->Assign(stops.begin(), stops.end());
    s.mutable_sampling()->set_top_p(1.0f);
    s.set_provisional(true);
    call->Write(submit);
  }
  for (int left = options.streams; left > 0 && call->Read(&message);) {
    for (const v1::SequenceUpdate& update : message.step().updates()) {
      if (update.commits_size() > 0 && !started[update.sequence_id()]) {
        started[update.sequence_id()] = true;
        round.first_ms.push_back(absl::ToDoubleMilliseconds(MonotonicNow() - start));
      }
      if (!update.has_end()) continue;
      --left;
      if (update.end().reason() == v1::SequenceEnd::REASON_ERROR)
        return absl::InternalError(update.end().error_message());
      round.tokens += update.end().completion_tokens();
      round.forwards += update.end().forwards();
    }
  }
  round.seconds = absl::ToDoubleSeconds(MonotonicNow() - start);
  context.TryCancel();
  if (round.first_ms.size() != static_cast<size_t>(options.streams))
    return absl::InternalError("a sequence had no commit");
  return round;
}

/// One answer through the coordinator; returns milliseconds to the first event that shows a committed token.
double Ask(v1::Inference::Stub& stub, const std::string& model, const Options& options, absl::Duration start,
           uint64_t& tokens) {
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
  double first = -1;
  for (v1::GenerateEvent event; reader->Read(&event);) {
    if (first < 0 && (event.has_canvas() || event.has_delta()))
      first = absl::ToDoubleMilliseconds(MonotonicNow() - start);
    if (event.has_finished()) tokens = event.finished().completion_tokens();
  }
  const grpc::Status status = reader->Finish();
  if (!status.ok()) {
    std::cerr << "coordinator: " << status.error_message() << "\n";
    return -1;
  }
  return first;
}

absl::StatusOr<Round> Through(v1::Inference::Stub& stub, const Options& options) {
  grpc::ClientContext context;
  v1::ListModelsReply models;
  if (!stub.ListModels(&context, {}, &models).ok() || models.models().empty()) {
    return absl::UnavailableError("the coordinator has no model");
  }
  Round round;
  round.first_ms.assign(static_cast<size_t>(options.streams), 0.0);
  std::vector<uint64_t> tokens(round.first_ms.size());
  std::vector<std::thread> threads;
  const absl::Duration start = MonotonicNow();
  for (size_t i = 0; i < round.first_ms.size(); ++i) {
    threads.emplace_back([&, i] { round.first_ms[i] = Ask(stub, models.models(0).id(), options, start, tokens[i]); });
  }
  for (std::thread& thread : threads) thread.join();
  round.seconds = absl::ToDoubleSeconds(MonotonicNow() - start);
  for (const uint64_t t : tokens) round.tokens += t;
  if (*std::min_element(round.first_ms.begin(), round.first_ms.end()) < 0)
    return absl::InternalError("an answer failed");
  return round;
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
  const auto prompt = Prompt(options);
  if (!prompt.ok()) return prompt.status();
  const auto worker = v1::Worker::NewStub(grpc::CreateChannel(options.worker, grpc::InsecureChannelCredentials()));
  const auto coordinator =
      v1::Inference::NewStub(grpc::CreateChannel(options.coordinator, grpc::InsecureChannelCredentials()));
  std::vector<double> direct_first, through_first, rates, per_forward;
  for (int i = -1; i < options.rounds; ++i) {  // The first round warms up.
    const auto direct = Direct(*worker, options, *prompt);
    if (!direct.ok()) return direct.status();
    if (i >= 0) {
      direct_first.push_back(Median(direct->first_ms));
      rates.push_back(static_cast<double>(direct->tokens) / direct->seconds);
      per_forward.push_back(static_cast<double>(direct->tokens) /
                            static_cast<double>(std::max<uint64_t>(direct->forwards, 1)));
    }
    if (options.coordinator.empty()) continue;
    const auto through = Through(*coordinator, options);
    if (!through.ok()) return through.status();
    if (i >= 0) through_first.push_back(Median(through->first_ms));
  }
  std::printf(
      "{\"streams\": %d, \"rounds\": %d, \"tokens_per_second\": %.2f, \"tokens_per_forward\": %.3f, "
      "\"direct_first_ms\": %.3f, \"through_first_ms\": %.3f}\n",
      options.streams, options.rounds, Median(rates), Median(per_forward), Median(direct_first), Median(through_first));
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

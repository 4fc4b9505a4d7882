#include "tools/generate.h"

#include <grpc/support/time.h>
#include <grpcpp/grpcpp.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <cstdio>
#include <deque>
#include <iostream>
#include <map>
#include <memory>
#include <thread>

#include "absl/time/clock.h"
#include "common/exit_codes.h"
#include "common/mutex.h"
#include "common/options.h"
#include "coordinator/frontend/client_canvas.h"
#include "quicksilver/v1/inference.grpc.pb.h"
#include "tools/canvas_view.h"

namespace quicksilver {
namespace {

struct Options {
  std::string server = "127.0.0.1:8081";
  std::string model;
  std::vector<std::string> prompts;
  bool raw = false;
  bool plain = false;
  uint32_t max_tokens = 0;
  double temperature = 0.0;
  int64_t seed = 0;
  v1::Policy policy = v1::POLICY_UNSPECIFIED;
  uint32_t steps = 0;
  double threshold = -1.0;
  int timeout_seconds = 300;
  int frame_milliseconds = 120;
};

// Beyond so many events the terminal no longer waits between canvases: the show must not fall far behind.
constexpr size_t kBacklogMax = 60;

struct Totals {
  uint64_t tokens = 0;
  uint64_t forwards = 0;
  double decode_seconds = 0;
  double first_seconds = 0;  // Sum over answers.
  int answers = 0;
};

std::optional<int> Parse(const std::vector<std::string>& arguments, Options& options) {
  CLI::App app("Streams answers of a diffusion language model onto the terminal.", "quicksilver generate");
  app.add_option("prompt", options.prompts, "What to ask; several prompts are asked one after the other")->required();
  app.add_option("--server", options.server, "gRPC address of the coordinator")->capture_default_str();
  app.add_option("--model", options.model, "Model to ask (default: the first that the server has)");
  app.add_flag("--raw", options.raw, "Send the prompt as plain text, without the chat template");
  app.add_flag("--plain", options.plain, "Print final text only, as it comes (the default when not on a terminal)");
  app.add_option("--max-tokens", options.max_tokens, "Longest answer (default: what the model's length leaves)");
  app.add_option("--temperature", options.temperature, "0 is greedy")
      ->check(CLI::Range(0.0, 2.0))
      ->capture_default_str();
  app.add_option("--seed", options.seed, "Equal seeds give equal bytes")->capture_default_str();
  const std::map<std::string, v1::Policy> policies = {{"static", v1::POLICY_STATIC},
                                                      {"dynamic", v1::POLICY_DYNAMIC},
                                                      {"sequential", v1::POLICY_SEQUENTIAL},
                                                      {"threshold", v1::POLICY_THRESHOLD}};
  app.add_option("--policy", options.policy, "Which positions a step commits (default: the model's)")
      ->transform(CLI::CheckedTransformer(policies));
  app.add_option("--steps", options.steps, "Denoising steps: of a block, or of the answer of a bidirectional model");
  app.add_option("--threshold", options.threshold, "Confidence at which a position commits (default: the model's)")
      ->check(CLI::Range(0.0, 1.0));
  app.add_option("--timeout", options.timeout_seconds, "Seconds an answer may take")
      ->check(CLI::Range(1, 86400))
      ->capture_default_str();
  app.add_option("--frame-ms", options.frame_milliseconds,
                 "How long the terminal shows each canvas; 0 is live. The figures are the server's, not slowed")
      ->check(CLI::Range(0, 5000))
      ->capture_default_str();
  std::vector<const char*> argv = {"quicksilver generate"};
  for (const std::string& argument : arguments) argv.push_back(argument.c_str());
  return ParseOptions(app, static_cast<int>(argv.size()), argv.data());
}

int Fail(const grpc::Status& status, const Options& options) {
  std::cerr << "quicksilver generate: " << status.error_message() << " (gRPC code " << status.error_code() << ")\n";
  if (status.error_code() == grpc::StatusCode::UNAVAILABLE) {
    std::cerr << "  what to do: is a coordinator at " << options.server
              << " up and ready? tools/quickstart starts one\n";
  }
  return kExitInternal;
}

v1::GenerateRequest Request(const Options& options, const std::string& prompt) {
  v1::GenerateRequest request;
  request.set_model(options.model);
  if (options.raw) {
    request.set_prompt(prompt);
  } else {
    v1::ChatMessage* message = request.mutable_chat()->add_messages();
    message->set_role("user");
    message->set_content(prompt);
  }
  request.mutable_sampling()->set_temperature(static_cast<float>(options.temperature));
  request.mutable_sampling()->set_seed(options.seed);
  if (options.max_tokens > 0) request.set_max_tokens(options.max_tokens);
  request.mutable_decoding()->set_policy(options.policy);
  if (options.steps > 0) request.mutable_decoding()->set_steps(options.steps);
  if (options.threshold >= 0) request.mutable_decoding()->set_threshold(static_cast<float>(options.threshold));
  request.set_canvases(!options.plain);
  return request;
}

FrameEvent FromProto(const v1::Frame& proto) {
  FrameEvent frame{.committed = proto.committed(), .extent = proto.extent()};
  for (const v1::Span& span : proto.spans()) {
    const SpanOp op = span.op() == v1::Span::OP_FINAL    ? SpanOp::kFinal
                      : span.op() == v1::Span::OP_COMMIT ? SpanOp::kCommit
                                                         : SpanOp::kReplace;
    frame.spans.push_back({op, span.first(), span.tokens(), span.text()});
  }
  return frame;
}

std::vector<ViewSpan> Spans(const ClientCanvas& canvas) {
  std::vector<ViewSpan> spans = {{SpanLook::kFinal, canvas.final_text(), 0}};
  uint32_t at = canvas.committed();
  const auto mask_to = [&](uint32_t token) {
    if (token > at) spans.push_back({SpanLook::kMasked, "", static_cast<int>(token - at)});
  };
  for (const auto& [first, run] : canvas.runs()) {
    mask_to(first);
    spans.push_back({SpanLook::kProvisional, run.text, 0});
    at = first + run.tokens;
  }
  mask_to(canvas.extent());
  return spans;
}

gpr_timespec SecondsFromNow(int seconds) {
  return gpr_time_add(gpr_now(GPR_CLOCK_MONOTONIC), gpr_time_from_seconds(seconds, GPR_TIMESPAN));
}

void Write(const std::string& bytes) {
  std::fwrite(bytes.data(), 1, bytes.size(), stdout);
  std::fflush(stdout);
}

CanvasView TerminalView() {
  winsize size{};
  const bool known = ioctl(STDOUT_FILENO, TIOCGWINSZ, &size) == 0 && size.ws_col > 0 && size.ws_row > 0;
  return known ? CanvasView(size.ws_col, size.ws_row) : CanvasView(80, 24);
}

void PrintFigures(const v1::Finished& f, Totals& totals) {
  std::printf("  [%u tokens, %.0f tokens/s, %.2f tokens/forward, %u forwards, first token after %.1f ms]\n\n",
              f.completion_tokens(), f.decode_seconds() > 0 ? f.completion_tokens() / f.decode_seconds() : 0.0,
              f.tokens_per_forward(), f.forwards(), 1e3 * f.time_to_first_token_seconds());
  totals.tokens += f.completion_tokens();
  totals.forwards += f.forwards();
  totals.decode_seconds += f.decode_seconds();
  totals.first_seconds += f.time_to_first_token_seconds();
  ++totals.answers;
}

/// The events of one call, read as fast as they come while the terminal shows them at a pace that eyes can follow: a
/// client that read slowly would be sent fewer frames.
class EventQueue {
 public:
  explicit EventQueue(grpc::ClientReader<v1::GenerateEvent>& reader) : thread_([this, &reader] { ReadAll(reader); }) {}
  ~EventQueue() { thread_.join(); }

  /// False when the last event has been taken. `backlog`: events that wait behind this one.
  bool Take(v1::GenerateEvent& event, size_t& backlog) {
    MutexLock lock(mu_);
    while (events_.empty() && !ended_) changed_.Wait(mu_);
    if (events_.empty()) return false;
    event = std::move(events_.front());
    events_.pop_front();
    backlog = events_.size();
    return true;
  }

 private:
  void ReadAll(grpc::ClientReader<v1::GenerateEvent>& reader) {
    for (v1::GenerateEvent event; reader.Read(&event);) {
      MutexLock lock(mu_);
      events_.push_back(std::move(event));
      changed_.NotifyOne();
    }
    MutexLock lock(mu_);
    ended_ = true;
    changed_.NotifyOne();
  }

  Mutex mu_;
  CondVar changed_;
  std::deque<v1::GenerateEvent> events_ GUARDED_BY(mu_);
  bool ended_ GUARDED_BY(mu_) = false;
  std::thread thread_;
};

grpc::Status Ask(v1::Inference::Stub& stub, const Options& options, const std::string& prompt, Totals& totals) {
  grpc::ClientContext context;
  context.set_deadline(SecondsFromNow(options.timeout_seconds));
  std::unique_ptr<grpc::ClientReader<v1::GenerateEvent>> reader = stub.Generate(&context, Request(options, prompt));
  Write(prompt + "\n");
  CanvasView view = TerminalView();
  std::string text;
  ClientCanvas canvas;
  {
    EventQueue events(*reader);
    size_t backlog = 0;
    for (v1::GenerateEvent event; events.Take(event, backlog);) {
      if (event.has_delta()) {
        text += event.delta().text();
        if (options.plain) Write(event.delta().text());
      } else if (event.has_frame() && !options.plain) {
        canvas.Apply(FromProto(event.frame()));
        Write(view.Draw(Spans(canvas)));
        if (backlog < kBacklogMax) absl::SleepFor(absl::Milliseconds(options.frame_milliseconds));
      } else if (event.has_finished()) {
        Write(options.plain ? "\n" : view.Finish({{SpanLook::kFinal, text, 0}}));
        PrintFigures(event.finished(), totals);
      }
    }
  }
  return reader->Finish();
}

grpc::Status ChooseModel(v1::Inference::Stub& stub, Options& options) {
  grpc::ClientContext context;
  context.set_deadline(SecondsFromNow(10));
  v1::ListModelsReply models;
  const grpc::Status status = stub.ListModels(&context, v1::ListModelsRequest(), &models);
  if (!status.ok()) return status;
  if (models.models().empty()) return {grpc::StatusCode::UNAVAILABLE, "the server has no model"};
  options.model = models.models(0).id();
  return grpc::Status::OK;
}

}  // namespace

int RunGenerate(const std::vector<std::string>& arguments) {
  Options options;
  if (const std::optional<int> exit = Parse(arguments, options); exit.has_value()) return *exit;
  options.plain = options.plain || isatty(STDOUT_FILENO) == 0;
  const auto stub = v1::Inference::NewStub(grpc::CreateChannel(options.server, grpc::InsecureChannelCredentials()));
  if (options.model.empty()) {
    if (const grpc::Status status = ChooseModel(*stub, options); !status.ok()) return Fail(status, options);
  }
  Totals totals;
  for (const std::string& prompt : options.prompts) {
    if (const grpc::Status status = Ask(*stub, options, prompt, totals); !status.ok()) return Fail(status, options);
  }
  if (totals.answers > 1) {
    std::printf("%d answers: %.0f tokens/s, %.2f tokens/forward, %llu forwards, first committed token after %.1f ms\n",
                totals.answers,
                totals.decode_seconds > 0 ? static_cast<double>(totals.tokens) / totals.decode_seconds : 0.0,
                totals.forwards > 0 ? static_cast<double>(totals.tokens) / static_cast<double>(totals.forwards) : 0.0,
                static_cast<unsigned long long>(totals.forwards), 1e3 * totals.first_seconds / totals.answers);
  }
  return kExitOk;
}

}  // namespace quicksilver

#include "tools/generate.h"

#include <grpc/support/time.h>
#include <grpcpp/grpcpp.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cstdio>
#include <deque>
#include <iostream>
#include <memory>
#include <thread>
#include <tuple>

#include "absl/strings/escaping.h"
#include "absl/time/clock.h"
#include "common/exit_codes.h"
#include "common/mutex.h"
#include "common/options.h"
#include "coordinator/frontend/client_canvas.h"
#include "coordinator/service/decoding_proto.h"
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
  double presence_penalty = 0.0;
  double frequency_penalty = 0.0;
  std::vector<int32_t> forbidden_ids;
  int top_log_probabilities = -1;
  DecodingChoice decoding;
  std::string suffix;
  std::string draft;
  std::vector<int32_t> fixed_ids;
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

void AddSamplingOptions(CLI::App& app, Options& options) {
  app.add_option("--temperature", options.temperature, "0 is greedy")
      ->check(CLI::Range(0.0, 2.0))
      ->capture_default_str();
  app.add_option("--seed", options.seed, "Equal seeds give equal bytes")->capture_default_str();
  for (const auto& [name, value, help] :
       {std::tuple<const char*, double*, const char*>{"--presence-penalty", &options.presence_penalty,
                                                      "Taken once from tokens that the answer has"},
        {"--frequency-penalty", &options.frequency_penalty, "Taken from them for each time that it has them"}}) {
    app.add_option(name, *value, help)->check(CLI::Range(-2.0, 2.0))->capture_default_str();
  }
  app.add_option("--forbidden-ids", options.forbidden_ids, "Token ids that the answer may not have")
      ->delimiter(',')
      ->allow_extra_args(false);
  app.add_option("--top-logprobs", options.top_log_probabilities,
                 "Print each token's log-probability, with so many alternatives (default: do not)")
      ->check(CLI::Range(0, 20));
  app.add_option("--suffix", options.suffix, "Text that follows the answer: the model fills in what is between");
  app.add_option("--draft", options.draft, "Text that the answer begins with; policies that edit may change it");
  app.add_option("--fixed-ids", options.fixed_ids,
                 "Token ids of the answer from its beginning that stay; -1: to be decided")
      ->delimiter(',')
      ->allow_extra_args(false);
}

// One option for each field of the contract.
void AddDecodingOptions(CLI::App& app, DecodingChoice& decoding) {
  for (size_t i = 0; i < kDecodingFieldCount; ++i) {
    const DecodingField& field = kDecodingFields[i];
    std::string flag = "--" + std::string(field.name);
    std::replace(flag.begin(), flag.end(), '_', '-');
    const std::string help(field.help);
    const auto set = [&decoding, i](double value) { decoding.Set(DecodingIndex(i), value); };
    if (field.kind == DecodingKind::kName) {
      app.add_option_function<std::string>(
             flag, [set, &field](const std::string& name) { set(static_cast<double>(NumberOf(field.names, name))); },
             help)
          ->check(CLI::IsMember(std::vector<std::string>(field.names.begin(), field.names.end())));
    } else if (field.kind == DecodingKind::kCount) {
      app.add_option_function<uint32_t>(flag, set, help)
          ->check(CLI::Range(static_cast<uint32_t>(field.min), static_cast<uint32_t>(field.max)));
    } else if (field.kind == DecodingKind::kNumber) {
      app.add_option_function<double>(flag, set, help)->check(CLI::Range(field.min, field.max));
    } else {
      app.add_flag_callback(
          flag, [set] { set(1); }, help);
    }
  }
}

std::optional<int> Parse(const std::vector<std::string>& arguments, Options& options) {
  CLI::App app("Streams answers of a diffusion language model onto the terminal.", "quicksilver generate");
  app.add_option("prompt", options.prompts, "What to ask; several prompts are asked one after the other")->required();
  app.add_option("--server", options.server, "gRPC address of the coordinator")->capture_default_str();
  app.add_option("--model", options.model, "Model to ask (default: the first that the server has)");
  app.add_flag("--raw", options.raw, "Send the prompt as plain text, without the chat template");
  app.add_flag("--plain", options.plain, "Print final text only, as it comes (the default when not on a terminal)");
  app.add_option("--max-tokens", options.max_tokens, "Longest answer (default: what the model's length leaves)");
  AddSamplingOptions(app, options);
  AddDecodingOptions(app, options.decoding);
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
  v1::Sampling& sampling = *request.mutable_sampling();
  sampling.set_presence_penalty(static_cast<float>(options.presence_penalty));
  sampling.set_frequency_penalty(static_cast<float>(options.frequency_penalty));
  sampling.mutable_forbidden_ids()->Assign(options.forbidden_ids.begin(), options.forbidden_ids.end());
  if (options.top_log_probabilities >= 0) {
    sampling.set_top_log_probabilities(static_cast<uint32_t>(options.top_log_probabilities));
  }
  *request.mutable_decoding() = ToProto(options.decoding);
  v1::Infill& infill = *request.mutable_infill();
  if (!options.suffix.empty()) infill.set_suffix(options.suffix);
  if (!options.draft.empty()) infill.set_draft_text(options.draft);
  infill.mutable_fixed_ids()->Assign(options.fixed_ids.begin(), options.fixed_ids.end());
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

// `log-probability  token  alternatives`, without what could steer the terminal.
void PrintTokens(const std::vector<v1::TokenLogProbability>& tokens) {
  for (const v1::TokenLogProbability& token : tokens) {
    std::printf("  %9.4f  '%s'", token.log_probability(), absl::Utf8SafeCHexEscape(token.text()).c_str());
    for (const v1::TokenLogProbability& top : token.top()) {
      std::printf("  %.4f '%s'", top.log_probability(), absl::Utf8SafeCHexEscape(top.text()).c_str());
    }
    std::printf("\n");
  }
}

void PrintFigures(const v1::Finished& f, Totals& totals) {
  std::string run(NameOf(kPolicyNames, f.policy()));
  if (f.cache() > v1::CACHE_NONE) run += ", approximate " + std::string(NameOf(kCacheNames, f.cache())) + " cache";
  std::printf("  [%u tokens, %.0f tokens/s, %.2f tokens/forward, %u forwards, first token after %.1f ms%s%s]\n\n",
              f.completion_tokens(), f.decode_seconds() > 0 ? f.completion_tokens() / f.decode_seconds() : 0.0,
              f.tokens_per_forward(), f.forwards(), 1e3 * f.time_to_first_token_seconds(), run.empty() ? "" : "; ",
              run.c_str());
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
  std::vector<v1::TokenLogProbability> tokens;
  ClientCanvas canvas;
  {
    EventQueue events(*reader);
    size_t backlog = 0;
    for (v1::GenerateEvent event; events.Take(event, backlog);) {
      if (event.has_delta()) {
        text += event.delta().text();
        tokens.insert(tokens.end(), event.delta().tokens().begin(), event.delta().tokens().end());
        if (options.plain) Write(event.delta().text());
      } else if (event.has_frame() && !options.plain) {
        canvas.Apply(FromProto(event.frame()));
        Write(view.Draw(Spans(canvas)));
        if (backlog < kBacklogMax) absl::SleepFor(absl::Milliseconds(options.frame_milliseconds));
      } else if (event.has_finished()) {
        Write(options.plain ? "\n" : view.Finish({{SpanLook::kFinal, text, 0}}));
        PrintTokens(tokens);
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

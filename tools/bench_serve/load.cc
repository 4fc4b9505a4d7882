#include "tools/bench_serve/load.h"

#include <sys/resource.h>

#include <boost/asio/as_tuple.hpp>
#include <boost/asio/co_spawn.hpp>
#include <boost/asio/detached.hpp>
#include <boost/asio/use_awaitable.hpp>
#include <nlohmann/json.hpp>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "common/clock.h"
#include "common/json.h"
#include "common/options.h"
#include "common/status_macros.h"
#include "tools/bench_serve/http_client.h"
#include "tools/bench_serve/sse_reader.h"

namespace quicksilver {
namespace {

using nlohmann::json;

constexpr auto kAwait = asio::as_tuple(asio::use_awaitable_t<AsioExecutor>{});
constexpr size_t kBodyBytesMax = 16 * 1024 * 1024;
constexpr auto kProgressInterval = std::chrono::milliseconds(500);

std::string RequestHead(const BenchServeOptions& options, const char* method, const std::string& path) {
  const bool ipv6 = options.host.find(':') != std::string::npos;
  std::string head = absl::StrCat(method, " ", path, " HTTP/1.1\r\nHost: ", ipv6 ? "[" : "", options.host,
                                  ipv6 ? "]" : "", ":", options.port, "\r\nUser-Agent: quicksilver-bench/",
                                  VersionString(), "\r\nAccept: application/json, text/event-stream\r\n");
  for (const std::string& header : options.headers) {
    const size_t equals = header.find('=');
    absl::StrAppend(&head, header.substr(0, equals), ": ", header.substr(equals + 1), "\r\n");
  }
  return head;
}

/// What every request says besides its prompt and length.
json RequestBase(const BenchServeOptions& options) {
  json body = {{"model", options.model}, {"stream", true}, {"stream_options", {{"include_usage", true}}}};
  if (options.temperature.has_value()) body["temperature"] = *options.temperature;
  if (options.ignore_eos) body["ignore_eos"] = true;
  return body;
}

std::string RequestText(const BenchServeOptions& options, const std::string& head, const BenchPrompt& prompt) {
  json body = RequestBase(options);
  if (options.backend == BenchBackend::kChat) {
    body["messages"] = json::array({{{"role", "user"}, {"content", prompt.text}}});
    body["max_completion_tokens"] = prompt.tokens_max;
  } else {
    body["prompt"] = prompt.text;
    body["max_tokens"] = prompt.tokens_max;
  }
  json extra;
  if (!options.extra_body.empty() && !ParseJson(options.extra_body, {}, extra).has_value()) body.update(extra);
  const std::string text = body.dump(-1, ' ', false, json::error_handler_t::replace);
  return absl::StrCat(head, "Content-Type: application/json\r\nContent-Length: ", text.size(), "\r\n\r\n", text);
}

// Thousands of connections are thousands of files.
void RaiseFileLimit() {
  rlimit limit{};
  if (getrlimit(RLIMIT_NOFILE, &limit) != 0) return;
  limit.rlim_cur = limit.rlim_max;
  (void)setrlimit(RLIMIT_NOFILE, &limit);
}

class Load {
 public:
  Load(const BenchServeOptions& options, const std::vector<BenchPrompt>& prompts, const std::vector<double>& arrivals,
       const std::function<void(const LoadProgress&)>& on_progress)
      : options_(options),
        prompts_(prompts),
        arrivals_(arrivals),
        on_progress_(on_progress),
        head_(RequestHead(options, "POST", options.endpoint)),
        client_(io_, options.host, options.port),
        wake_(io_.get_executor()),
        tick_(io_.get_executor()),
        progress_timer_(io_.get_executor()),
        records_(prompts.size()) {
    progress_.total = prompts.size();
  }

  absl::StatusOr<std::vector<RequestRecord>> Run() {
    RETURN_IF_ERROR(client_.Resolve());
    start_ = MonotonicNow();
    asio::co_spawn(io_, SendAll(), asio::detached);
    asio::co_spawn(io_, ShowProgress(), asio::detached);
    io_.run();
    return std::move(records_);
  }

 private:
  double Now() const { return absl::ToDoubleSeconds(MonotonicNow() - start_); }

  Awaitable<void> SendAll() {
    for (size_t i = 0; i < prompts_.size(); ++i) {
      while (options_.max_concurrency.has_value() && progress_.running >= *options_.max_concurrency) {
        wake_.expires_at(AsioTimer::time_point::max());
        co_await wake_.async_wait(kAwait);
      }
      if (const double wait = arrivals_[i] - Now(); wait > 0.0) {
        tick_.expires_after(std::chrono::duration_cast<std::chrono::nanoseconds>(std::chrono::duration<double>(wait)));
        co_await tick_.async_wait(kAwait);
      }
      ++progress_.running;
      asio::co_spawn(io_, SendOne(i), asio::detached);
    }
  }

  Awaitable<void> SendOne(size_t index) {
    RequestRecord& record = records_[index];
    record.prompt_tokens = prompts_[index].tokens;
    record.start = Now();
    AnswerReader answer(record, options_.save_detailed);
    SseReader sse;
    std::string body;
    std::vector<std::string> events;
    HttpClient::Call call;
    call.request = RequestText(options_, head_, prompts_[index]);
    call.timeout = std::chrono::seconds(options_.request_timeout_seconds);
    call.on_body = [&](const ResponseReader& response, std::string& piece) {
      if (response.event_stream()) {
        events.clear();
        if (!sse.Feed(piece, events)) return absl::DataLossError("an event exceeds the bound");
        for (const std::string& event : events) answer.OnEvent(event, Now() - record.start);
      } else {
        if (body.size() + piece.size() > kBodyBytesMax) return absl::DataLossError("the answer exceeds the bound");
        body += piece;
      }
      return absl::OkStatus();
    };
    const absl::Status status = co_await client_.Run(call);
    const double seconds = Now() - record.start;
    if (!status.ok()) {
      record.error = std::string(status.message()).substr(0, AnswerReader::kErrorBytesMax);
    } else if (!body.empty()) {
      answer.OnBody(call.status, body, seconds);
    }
    answer.Finish(call.status, seconds);
    Count(record);
  }

  void Count(const RequestRecord& record) {
    --progress_.running;
    ++progress_.done;
    progress_.rejected += record.outcome == Outcome::kRejected;
    progress_.failed += record.outcome == Outcome::kFailed;
    if (record.outcome == Outcome::kOk) progress_.output_tokens += record.output_tokens;
    wake_.cancel();
    if (progress_.done == progress_.total) progress_timer_.cancel();
  }

  Awaitable<void> ShowProgress() {
    while (progress_.done < progress_.total) {
      progress_timer_.expires_after(kProgressInterval);
      co_await progress_timer_.async_wait(kAwait);
      progress_.seconds = Now();
      if (on_progress_) on_progress_(progress_);
    }
  }

  const BenchServeOptions& options_;
  const std::vector<BenchPrompt>& prompts_;
  const std::vector<double>& arrivals_;
  const std::function<void(const LoadProgress&)>& on_progress_;
  const std::string head_;
  asio::io_context io_;
  HttpClient client_;
  AsioTimer wake_;  ///< Cancelled when a request is over.
  AsioTimer tick_;  ///< For the next arrival.
  AsioTimer progress_timer_;
  absl::Duration start_;
  std::vector<RequestRecord> records_;
  LoadProgress progress_;
};

}  // namespace

absl::StatusOr<std::string> FirstModel(const BenchServeOptions& options) {
  asio::io_context io;
  HttpClient client(io, options.host, options.port);
  RETURN_IF_ERROR(client.Resolve());
  absl::string_view base = absl::string_view(options.endpoint.data(), options.endpoint.size());
  base = absl::StripSuffix(absl::StripSuffix(base, "/completions"), "/chat");
  std::string body;
  HttpClient::Call call;
  call.request = RequestHead(options, "GET", absl::StrCat(base, "/models")) + "\r\n";
  call.timeout = std::chrono::seconds(10);
  call.on_body = [&](const ResponseReader&, std::string& piece) {
    body += piece;
    return body.size() > kBodyBytesMax ? absl::DataLossError("the list of models exceeds the bound") : absl::OkStatus();
  };
  absl::Status status = absl::UnavailableError("not run");
  const auto ask = [&]() -> Awaitable<void> { status = co_await client.Run(call); };
  asio::co_spawn(io, ask(), asio::detached);
  io.run();
  const std::string where = absl::StrCat("GET ", base, "/models of ", options.host, ":", options.port, ": ");
  if (!status.ok()) return absl::UnavailableError(absl::StrCat(where, status.message()));
  json list;
  if (call.status == 200 && !ParseJson(body, {}, list).has_value()) {
    const json::json_pointer id("/data/0/id");
    if (list.contains(id) && list[id].is_string()) return list[id].get<std::string>();
  }
  return absl::UnavailableError(absl::StrCat(where, "status ", call.status, " and no model; name one with --model"));
}

absl::StatusOr<std::vector<RequestRecord>> RunLoad(const BenchServeOptions& options,
                                                   const std::vector<BenchPrompt>& prompts,
                                                   const std::vector<double>& arrivals,
                                                   const std::function<void(const LoadProgress&)>& on_progress) {
  RaiseFileLimit();
  return Load(options, prompts, arrivals, on_progress).Run();
}

}  // namespace quicksilver

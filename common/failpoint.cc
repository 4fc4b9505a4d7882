#include "common/failpoint.h"

#include <signal.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <iterator>
#include <limits>
#include <memory>
#include <optional>
#include <utility>
#include <vector>

#include "absl/strings/ascii.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/strings/strip.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "common/philox.h"
#include "common/status_macros.h"

namespace quicksilver {
namespace {

constexpr size_t kRulesBytesMax = 4096;
constexpr absl::Duration kDelayMax = absl::Hours(1);

enum class Action { kKill, kExit, kFail, kHang, kDelay };

struct Rule {
  size_t point = 0;
  std::optional<uint64_t> key;
  Action action = Action::kKill;
  int exit_code = 0;
  absl::Duration delay;
  uint64_t times_max = std::numeric_limits<uint64_t>::max();
  double probability = 1;
  uint64_t hits_skipped = 0;
  uint64_t restarts_max = std::numeric_limits<uint64_t>::max();
  std::atomic<uint64_t> hits = 0;
  std::atomic<uint64_t> times = 0;
};

struct Rules {
  std::vector<std::unique_ptr<Rule>> rules;
  uint64_t seed = 0;
};

// Written once, before threads.
Rules& Installed() {
  static Rules rules;
  return rules;
}

absl::Status Wrong(absl::string_view rule, absl::string_view what) {
  return absl::InvalidArgumentError(absl::StrCat("--failpoints: '", rule, "': ", what));
}

// Cuts what stands behind the last `mark` off `text`.
std::optional<absl::string_view> CutTail(absl::string_view& text, char mark) {
  const size_t at = text.rfind(mark);
  if (at == absl::string_view::npos) return std::nullopt;
  const absl::string_view tail = absl::StripAsciiWhitespace(text.substr(at + 1));
  text = absl::StripAsciiWhitespace(text.substr(0, at));
  return tail;
}

// The argument of "word(argument)"; nothing when `text` is not of this form.
std::optional<absl::string_view> ArgumentOf(absl::string_view text, absl::string_view word) {
  if (!absl::ConsumePrefix(&text, word) || !absl::ConsumePrefix(&text, "(") || !absl::ConsumeSuffix(&text, ")")) {
    return std::nullopt;
  }
  return text;
}

absl::Status ParseNumber(absl::string_view text, std::optional<absl::string_view> number, absl::string_view what,
                         uint64_t& out) {
  if (!number.has_value() || absl::SimpleAtoi(*number, &out)) return absl::OkStatus();
  return Wrong(text, absl::StrCat(what, " '", *number, "' is not a number from 0 on"));
}

absl::Status ParsePoint(absl::string_view text, absl::string_view point, Rule& rule) {
  if (absl::ConsumeSuffix(&point, "]")) {
    uint64_t key = 0;
    RETURN_IF_ERROR(ParseNumber(text, CutTail(point, '[').value_or(""), "the key", key));
    rule.key = key;
  }
  const auto* found = std::find_if(std::begin(kFailpoints), std::end(kFailpoints),
                                   [point](const Failpoint& candidate) { return candidate.name == point; });
  if (found == std::end(kFailpoints)) {
    return Wrong(text, absl::StrCat("there is no point '", point, "'; there are\n", DescribeFailpoints()));
  }
  rule.point = static_cast<size_t>(found - std::begin(kFailpoints));
  return absl::OkStatus();
}

absl::Status ParseAction(absl::string_view text, absl::string_view action, Rule& rule) {
  if (action == "kill") {
    rule.action = Action::kKill;
  } else if (action == "hang") {
    rule.action = Action::kHang;
  } else if (const auto code = ArgumentOf(action, "exit")) {
    rule.action = Action::kExit;
    if (!absl::SimpleAtoi(*code, &rule.exit_code) || rule.exit_code < 0 || rule.exit_code > 255) {
      return Wrong(text, absl::StrCat("the exit code '", *code, "' is not from 0 to 255"));
    }
  } else if (const auto delay = ArgumentOf(action, "delay")) {
    rule.action = Action::kDelay;
    if (!absl::ParseDuration(*delay, &rule.delay) || rule.delay < absl::ZeroDuration() || rule.delay > kDelayMax) {
      return Wrong(text, absl::StrCat("the delay '", *delay, "' is not a duration from 0 to 1h"));
    }
  } else if (const auto times = ArgumentOf(action, "fail"); times.has_value() || action == "fail") {
    rule.action = Action::kFail;
    RETURN_IF_ERROR(ParseNumber(text, times, "the number of times", rule.times_max));
    if (kFailpoints[rule.point].failing.empty()) {
      return Wrong(text, absl::StrCat(kFailpoints[rule.point].name, " does not take fail"));
    }
  } else {
    return Wrong(text, absl::StrCat("the action '", action, "' is not kill, exit(CODE), fail, fail(TIMES), hang or ",
                                    "delay(DURATION)"));
  }
  return absl::OkStatus();
}

absl::Status ParseRule(absl::string_view text, Rules& rules) {
  const std::pair<absl::string_view, absl::string_view> sides = absl::StrSplit(text, absl::MaxSplits('=', 1));
  const absl::string_view point = absl::StripAsciiWhitespace(sides.first);
  absl::string_view action = absl::StripAsciiWhitespace(sides.second);
  if (point == "seed") return ParseNumber(text, action, "the seed", rules.seed);
  auto rule = std::make_unique<Rule>();
  RETURN_IF_ERROR(ParsePoint(text, point, *rule));
  RETURN_IF_ERROR(ParseNumber(text, CutTail(action, '^'), "the number of restarts", rule->restarts_max));
  RETURN_IF_ERROR(ParseNumber(text, CutTail(action, '+'), "the number of hits", rule->hits_skipped));
  if (const auto share = CutTail(action, '@'); share.has_value()) {
    if (!absl::SimpleAtod(*share, &rule->probability) || !(rule->probability >= 0 && rule->probability <= 1)) {
      return Wrong(text, absl::StrCat("the probability '", *share, "' is not from 0 to 1"));
    }
  }
  RETURN_IF_ERROR(ParseAction(text, action, *rule));
  rules.rules.push_back(std::move(rule));
  return absl::OkStatus();
}

bool Drawn(const Rule& rule, size_t number, uint64_t hit) {
  if (rule.probability >= 1) return true;
  const PhiloxWords words = Philox(Installed().seed, static_cast<uint32_t>(hit), static_cast<uint32_t>(hit >> 32),
                                   static_cast<uint32_t>(number), 0);
  return static_cast<double>(words.w[0]) < rule.probability * 4294967296.0;
}

bool Act(Rule& rule) {
  switch (rule.action) {
    case Action::kKill:
      kill(getpid(), SIGKILL);
      [[fallthrough]];
    case Action::kHang:
      while (true) pause();
    case Action::kExit:
      _exit(rule.exit_code);
    case Action::kDelay:
      absl::SleepFor(rule.delay);
      return false;
    case Action::kFail:
      return rule.times.fetch_add(1) < rule.times_max;
  }
  return false;
}

}  // namespace

absl::Status InitFailpoints(bool compiled_in, absl::string_view text, uint64_t restarts) {
  if (absl::StripAsciiWhitespace(text).empty()) return absl::OkStatus();
  if (!compiled_in) {
    return absl::FailedPreconditionError(
        "--failpoints (QUICKSILVER_FAILPOINTS): this program has none; unset it, or run the variant for tests");
  }
  if (text.size() > kRulesBytesMax) {
    return Wrong(text.substr(0, 40), absl::StrCat(text.size(), " bytes, at most ", kRulesBytesMax));
  }
  Rules rules;
  for (const absl::string_view part : absl::StrSplit(text, ';')) {
    const absl::string_view rule = absl::StripAsciiWhitespace(part);
    if (!rule.empty()) RETURN_IF_ERROR(ParseRule(rule, rules));
  }
  std::erase_if(rules.rules, [restarts](const auto& rule) { return restarts > rule->restarts_max; });
  Installed() = std::move(rules);
  return absl::OkStatus();
}

std::string DescribeFailpoints() {
  std::string lines;
  for (const Failpoint& point : kFailpoints) {
    absl::StrAppend(&lines, "  ", point.name, "[", point.key, "]");
    if (!point.failing.empty()) absl::StrAppend(&lines, "  fail: ", point.failing);
    absl::StrAppend(&lines, "\n");
  }
  return lines;
}

bool HitFailpoint(size_t index, uint64_t key) {
  bool fail = false;
  const std::vector<std::unique_ptr<Rule>>& rules = Installed().rules;
  for (size_t number = 0; number < rules.size(); ++number) {
    Rule& rule = *rules[number];
    if (rule.point != index || rule.key.value_or(key) != key) continue;
    const uint64_t hit = rule.hits.fetch_add(1);
    if (hit >= rule.hits_skipped && Drawn(rule, number, hit)) fail |= Act(rule);
  }
  return fail;
}

}  // namespace quicksilver

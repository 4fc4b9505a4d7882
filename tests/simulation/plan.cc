#include "tests/simulation/plan.h"

#include <algorithm>
#include <array>

#include "absl/strings/str_cat.h"
#include "tests/simulation/random.h"

namespace quicksilver::simulation {
namespace {

constexpr int kBlock = 4;
constexpr int kVocabulary = 1000;

ModelSpec DrawModel(Random& random) {
  ModelSpec model;
  model.architecture = "Simulated";
  const bool absolute = random.Chance(0.8);
  model.family = absolute ? "sdar" : "llada";
  model.grid = absolute ? BlockGrid::kAbsolute : BlockGrid::kAfterPrompt;
  model.block_length = kBlock;
  model.vocabulary = model.tokens = kVocabulary;
  model.positions_max = 128;
  model.mask_id = kVocabulary - 1;
  model.stop_ids = {1, 2};
  return model;
}

std::vector<int32_t> DrawPrompt(Random& random, const ModelSpec& model) {
  std::vector<int32_t> prompt;
  // A few prefixes that many requests share, also across tenants.
  if (random.Chance(0.6)) {
    const uint64_t prefix = random.Below(2);
    const int64_t length = random.Between(1, 6) * 8;
    for (int64_t i = 0; i < length; ++i) {
      prompt.push_back(static_cast<int32_t>(10 + Mix(prefix, static_cast<uint64_t>(i)) % 900));
    }
  }
  const int64_t tail = random.Between(1, model.grid == BlockGrid::kAbsolute ? 24 : 8);
  for (int64_t i = 0; i < tail; ++i) prompt.push_back(static_cast<int32_t>(random.Between(10, 900)));
  return prompt;
}

void DrawDecoding(Random& random, const ModelSpec& model, v1::Decoding& decoding) {
  static constexpr v1::Policy kPolicies[] = {v1::POLICY_STATIC, v1::POLICY_DYNAMIC, v1::POLICY_SEQUENTIAL,
                                             v1::POLICY_THRESHOLD};
  decoding.set_policy(kPolicies[random.Below(4)]);
  const bool scheduled = decoding.policy() != v1::POLICY_THRESHOLD;
  const float threshold = static_cast<float>(0.3 + 0.6 * UnitOf(random.Next()));
  if (!scheduled || decoding.policy() == v1::POLICY_DYNAMIC) decoding.set_threshold(threshold);
  if (decoding.policy() == v1::POLICY_STATIC && random.Chance(0.3)) decoding.set_remasking(v1::REMASKING_RANDOM);
  if (model.grid == BlockGrid::kAbsolute) {
    const uint32_t steps = static_cast<uint32_t>(random.Between(1, kBlock));
    if (scheduled) decoding.set_steps(steps);
  } else if (random.Chance(0.3)) {
    decoding.set_guidance_scale(1.0f);
  }
}

RequestPlan DrawRequest(Random random, const Plan& plan, uint64_t number, bool poison) {
  RequestPlan request;
  request.number = number;
  request.coordinator = static_cast<int>(random.Below(plan.coordinators.size()));
  request.at = absl::Seconds(1) + random.Between(absl::ZeroDuration(), plan.chaos);
  request.tenant = absl::StrCat("tenant-", random.Below(3));
  if (random.Chance(0.1)) request.cache_key = "key";
  static constexpr v1::Priority kPriorities[] = {v1::PRIORITY_UNSPECIFIED, v1::PRIORITY_INTERACTIVE,
                                                 v1::PRIORITY_DEFAULT, v1::PRIORITY_BATCH};
  request.priority = kPriorities[random.Below(4)];
  request.choices = random.Chance(0.25) ? static_cast<int>(random.Between(2, kChoicesMax)) : 1;
  request.prompt = DrawPrompt(random, plan.model);
  request.tokens_max = static_cast<int>(random.Between(1, plan.model.grid == BlockGrid::kAbsolute ? 48 : 16));
  DrawDecoding(random, plan.model, request.decoding);
  request.provisional = random.Chance(0.5);
  if (random.Chance(0.15)) request.time_max = random.Between(absl::Milliseconds(50), absl::Seconds(6));
  if (random.Chance(0.1)) request.target = random.Between(absl::Milliseconds(200), absl::Seconds(4));
  if (random.Chance(0.12)) request.cancel_after = random.Between(absl::ZeroDuration(), absl::Seconds(4));
  if (random.Chance(0.1)) request.stop_after = static_cast<int>(random.Between(1, 8));
  if (random.Chance(0.03)) request.nan_at = static_cast<int>(random.Between(0, 5));
  if (plan.fair) {
    // A rush of equals.
    request.priority = v1::PRIORITY_DEFAULT;
    request.choices = 1;
    request.at = absl::Seconds(1) + (request.at - absl::Seconds(1)) / 4;
  }
  if (poison) request.poison_at = static_cast<int>(random.Between(0, 6));
  return request;
}

GroupPlan DrawGroup(Random random, const ModelSpec& model, int page_size, bool odd) {
  GroupPlan group;
  group.fingerprint = odd ? "build-b" : "build-a";
  group.sequences_max = static_cast<int>(random.Between(1, 6));
  const int canvas = static_cast<int>(model.positions_max);
  const int pages_needed = canvas / page_size;
  if (model.grid == BlockGrid::kAbsolute) {
    group.step_rows_max = static_cast<int>(random.Between(2 * kBlock, 48));
    group.pages = static_cast<int>(random.Between(pages_needed, 2 * pages_needed));
  } else {
    group.step_rows_max = static_cast<int>(random.Between(2 * canvas, 4 * canvas));
    group.pages = static_cast<int>(random.Between(2 * pages_needed, 3 * pages_needed));
  }
  group.waiting_max = static_cast<int>(random.Between(4, 16));
  group.step_base = random.Between(absl::Milliseconds(10), absl::Milliseconds(40));
  group.step_row = random.Between(absl::Microseconds(20), absl::Microseconds(300));
  group.clock_offset = random.Between(absl::ZeroDuration(), absl::Hours(1));
  return group;
}

FaultPlan DrawFault(Random random, const Plan& plan) {
  // Not all kinds are equally likely: what moves requests is wanted most.
  static constexpr std::array<int, kFaultKinds> kWeights = {6, 2, 4, 2, 3, 4, 1, 2, 1, 2, 2, 3, 2, 4, 2, 1};
  FaultPlan fault;
  int draw = static_cast<int>(random.Below(41));
  int kind = 0;
  while (draw >= kWeights[static_cast<size_t>(kind)]) draw -= kWeights[static_cast<size_t>(kind++)];
  fault.kind = static_cast<FaultKind>(kind);
  fault.at = absl::Seconds(1) + random.Between(absl::ZeroDuration(), plan.chaos);
  fault.duration = random.Between(absl::Milliseconds(100), absl::Seconds(random.Chance(0.3) ? 12 : 4));
  fault.coordinator = static_cast<int>(random.Below(plan.coordinators.size()));
  fault.group = static_cast<int>(random.Below(plan.groups.size()));
  return fault;
}

}  // namespace

const char* NameOf(FaultKind kind) {
  static constexpr std::array<const char*, kFaultKinds> kNames = {"crash",
                                                                  "power loss",
                                                                  "hang",
                                                                  "stuck engine",
                                                                  "slow",
                                                                  "drain",
                                                                  "new build",
                                                                  "new epoch",
                                                                  "restart storm",
                                                                  "partition to group",
                                                                  "partition to coordinator",
                                                                  "partition",
                                                                  "slow link",
                                                                  "break",
                                                                  "half-open",
                                                                  "coordinator crash"};
  return kNames[static_cast<size_t>(kind)];
}

Plan MakePlan(uint64_t seed) {
  Random random(seed);
  Plan plan;
  plan.seed = seed;
  plan.model = DrawModel(random);
  plan.fair = random.Chance(0.2);
  // Two classes of ageing (10 s), and then those who have waited longer.
  plan.starvation_max = absl::Seconds(30);
  plan.chaos = random.Between(absl::Seconds(5), absl::Seconds(12));
  plan.lease = random.Between(absl::Seconds(2), absl::Seconds(5));
  plan.resume_wait = random.Between(absl::Seconds(5), absl::Seconds(15));
  plan.target_grace = absl::Milliseconds(500);
  plan.tenant_requests_max = random.Chance(0.2) && !plan.fair ? static_cast<uint32_t>(random.Between(2, 6)) : 0;
  plan.queue_requests_max = static_cast<uint32_t>(plan.fair ? 64 : random.Between(4, 24));
  // Below the time of ageing, where tenants are to be compared.
  plan.queue_time_max = random.Between(absl::Seconds(4), absl::Seconds(plan.fair ? 9 : 20));
  const int64_t coordinators = plan.fair || random.Chance(0.6) ? 1 : random.Between(2, 3);
  for (int64_t i = 0; i < coordinators; ++i) {
    plan.coordinators.push_back(random.Between(absl::ZeroDuration(), absl::Hours(1)));
  }
  const int64_t groups = random.Between(1, plan.fair ? 2 : 4);
  const bool odd = random.Chance(0.25);
  for (int64_t i = 0; i < groups; ++i) {
    plan.groups.push_back(
        DrawGroup(Random(Mix(seed, 1, static_cast<uint64_t>(i))), plan.model, plan.page_size, odd && i + 1 == groups));
  }
  const int64_t requests = random.Between(6, 90);
  const int64_t poison = random.Chance(0.15) ? random.Between(1, requests) : 0;
  for (int64_t i = 1; i <= requests; ++i) {
    plan.requests.push_back(
        DrawRequest(Random(Mix(seed, 2, static_cast<uint64_t>(i))), plan, static_cast<uint64_t>(i), i == poison));
  }
  const int64_t faults = random.Chance(0.15) ? 0 : random.Between(1, 8);
  for (int64_t i = 0; i < faults; ++i) {
    plan.faults.push_back(DrawFault(Random(Mix(seed, 3, static_cast<uint64_t>(i))), plan));
  }
  const auto by_time = [](const auto& a, const auto& b) { return a.at < b.at; };
  std::stable_sort(plan.requests.begin(), plan.requests.end(), by_time);
  std::stable_sort(plan.faults.begin(), plan.faults.end(), by_time);
  return plan;
}

uint64_t BuildOf(const std::string& fingerprint) {
  uint64_t hash = 0;
  for (const char c : fingerprint) hash = Mix(hash, static_cast<uint64_t>(c));
  return hash;
}

v1::Submit SubmitOf(const Plan& plan, const RequestPlan& request, int choice) {
  v1::Submit submit;
  submit.mutable_prompt_ids()->Add(request.prompt.begin(), request.prompt.end());
  submit.set_max_tokens(static_cast<uint32_t>(request.tokens_max));
  for (const int32_t id : plan.model.stop_ids) submit.add_stop_ids(id);
  submit.mutable_sampling()->set_top_p(1.0f);
  submit.mutable_sampling()->set_seed(SeedOf(plan, request));
  *submit.mutable_decoding() = request.decoding;
  submit.set_choice(static_cast<uint32_t>(choice));
  submit.set_provisional(request.provisional);
  submit.set_priority(request.priority);
  submit.set_tenant(request.tenant);
  submit.set_cache_salt(absl::StrCat(request.tenant, "/", request.cache_key));
  return submit;
}

uint64_t SeedOf(const Plan& plan, const RequestPlan& request) { return Mix(plan.seed, 7, request.number); }

std::string Describe(const FaultPlan& fault) {
  return absl::StrCat("at ", absl::FormatDuration(fault.at), " ", NameOf(fault.kind), " group ", fault.group,
                      " coordinator ", fault.coordinator, " for ", absl::FormatDuration(fault.duration));
}

std::string Describe(const RequestPlan& request) {
  std::string text =
      absl::StrCat("request ", request.number, " at ", absl::FormatDuration(request.at), " to coordinator ",
                   request.coordinator, ": ", request.tenant, ", priority ", static_cast<int>(request.priority), ", ",
                   request.prompt.size(), " prompt + ", request.tokens_max, " tokens x ", request.choices);
  if (request.time_max < absl::InfiniteDuration())
    absl::StrAppend(&text, ", deadline ", absl::FormatDuration(request.time_max));
  if (request.target > absl::ZeroDuration()) absl::StrAppend(&text, ", target ", absl::FormatDuration(request.target));
  if (request.cancel_after < absl::InfiniteDuration()) {
    absl::StrAppend(&text, ", cancelled after ", absl::FormatDuration(request.cancel_after));
  }
  if (request.stop_after >= 0) absl::StrAppend(&text, ", stop string after ", request.stop_after, " tokens");
  if (request.poison_at >= 0) absl::StrAppend(&text, ", kills its group in forward ", request.poison_at);
  if (request.nan_at >= 0) absl::StrAppend(&text, ", NaN in forward ", request.nan_at);
  return text;
}

}  // namespace quicksilver::simulation

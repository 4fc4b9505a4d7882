#include "coordinator/core/tenants.h"

#include <algorithm>
#include <array>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/check.h"

namespace quicksilver {
namespace {

constexpr absl::Duration kMinute = absl::Minutes(1);
// Tenants that are looked at for one that can be forgotten.
constexpr size_t kRecycleTries = 8;

int SecondsUp(absl::Duration wait) {
  return static_cast<int>(std::max<int64_t>(absl::ToInt64Seconds(absl::Ceil(wait, absl::Seconds(1))), 1));
}

// What is left of the limit, as a part of it.
double Left(const RateStatus& status) {
  return static_cast<double>(status.remaining) / static_cast<double>(std::max<uint64_t>(status.limit, 1));
}

}  // namespace

absl::Duration RateLimit::Cost(uint64_t amount) const {
  if (amount == 0) return absl::ZeroDuration();
  return per_minute_ == 0 ? absl::InfiniteDuration()
                          : kMinute * static_cast<int64_t>(amount) / static_cast<int64_t>(per_minute_);
}

absl::Duration RateLimit::WaitFor(uint64_t amount, absl::Duration now) const {
  if (amount > per_minute_) return absl::InfiniteDuration();
  return std::max(std::max(unused_at_, now) + Cost(amount) - kMinute - now, absl::ZeroDuration());
}

void RateLimit::Take(uint64_t amount, absl::Duration now) { unused_at_ = std::max(unused_at_, now) + Cost(amount); }

RateStatus RateLimit::Status(absl::Duration now) const {
  const absl::Duration reset = std::max(unused_at_ - now, absl::ZeroDuration());
  const absl::Duration left = std::max(kMinute - reset, absl::ZeroDuration());
  absl::Duration rest;
  const int64_t remaining = absl::IDivDuration(left * static_cast<int64_t>(per_minute_), kMinute, &rest);
  return {per_minute_, static_cast<uint64_t>(remaining), reset};
}

Tenants::Tenants(const TenantsOptions& options, uint32_t queue_requests_max)
    : options_(options), queue_requests_max_(queue_requests_max) {
  for (const auto& [name, limits] : options_.tenants) {
    CHECK(limits.weight > 0);
    names_[name] = Append(name, limits);
  }
  CHECK(options_.unknown.weight > 0);
  shared_ = Append("", options_.unknown);
  next_recycled_ = tenants_.size();
}

const Tenants::Tenant& Tenants::Get(TenantId id) const {
  const Tenant& tenant = tenants_[PlaceOf(id)];
  CHECK(tenant.id == id);
  return tenant;
}

TenantId Tenants::Append(const std::string& name, const TenantLimits& limits) {
  tenants_.push_back(Make(TenantId{tenants_.size()}, name, limits));
  return tenants_.back().id;
}

Tenants::Tenant Tenants::Make(TenantId id, std::string name, const TenantLimits& limits) {
  const auto rate = [](const std::optional<uint64_t>& limit) -> std::optional<RateLimit> {
    if (!limit) return std::nullopt;
    return RateLimit(*limit);
  };
  return {.id = id,
          .name = std::move(name),
          .limits = limits,
          .requests = rate(limits.requests_per_minute),
          .input = rate(limits.input_tokens_per_minute),
          .output = rate(limits.output_tokens_per_minute),
          .usage = {},
          .day = 0,
          .used_today = 0};
}

TenantId Tenants::Find(const std::string& name, absl::Duration now) {
  if (const auto it = names_.find(name); it != names_.end()) return it->second;
  const size_t unknown_from = options_.tenants.size() + 1;
  if (tenants_.size() < unknown_from + options_.unknown_max) {
    return names_[name] = Append(name, options_.unknown);
  }
  const std::optional<size_t> place = Recycle(now);
  if (!place) return shared_;
  Tenant& tenant = tenants_[*place];
  names_.erase(tenant.name);
  tenant = Make(TenantId{static_cast<uint64_t>(tenant.id) + kPlaces}, name, options_.unknown);
  return names_[name] = tenant.id;
}

// A tenant that is forgotten must not win by it: a new one has no more left of any limit.
bool Tenants::IsIdle(const Tenant& tenant, absl::Duration now) const {
  if (tenant.usage.requests > 0) return false;
  if (tenant.limits.tokens_per_day && tenant.used_today > 0 && tenant.day == Day(now)) return false;
  const std::array<const std::optional<RateLimit>*, 3> rates = {&tenant.requests, &tenant.input, &tenant.output};
  return std::all_of(rates.begin(), rates.end(), [&](const auto* rate) { return !*rate || (*rate)->Unused(now); });
}

std::optional<size_t> Tenants::Recycle(absl::Duration now) {
  const size_t unknown_from = options_.tenants.size() + 1;
  for (size_t i = 0; i < std::min(kRecycleTries, options_.unknown_max); ++i) {
    if (++next_recycled_ >= tenants_.size()) next_recycled_ = unknown_from;
    if (IsIdle(tenants_[next_recycled_], now)) return next_recycled_;
  }
  return std::nullopt;
}

int64_t Tenants::Day(absl::Duration now) const {
  return absl::ToInt64Hours(absl::Floor(now - options_.midnight, absl::Hours(24))) / 24;
}

std::optional<ApiError> Tenants::OverQuota(const Tenant& tenant, TokenCounts tokens, absl::Duration now) const {
  if (!tenant.limits.tokens_per_day) return std::nullopt;
  const uint64_t quota = *tenant.limits.tokens_per_day;
  const uint64_t used = tenant.day == Day(now) ? tenant.used_today : 0;
  const uint64_t held = used + tenant.usage.reserved.input + tenant.usage.reserved.output;
  const uint64_t asked = tokens.input + tokens.output;
  if (held + asked <= quota) return std::nullopt;
  const absl::Duration tomorrow = options_.midnight + absl::Hours(24) * (Day(now) + 1) - now;
  return InsufficientQuota(absl::StrCat("The daily quota of ", quota, " tokens is used up: ", held,
                                        " are used or reserved, this request may use ", asked, "."),
                           SecondsUp(tomorrow));
}

std::optional<ApiError> Tenants::Refusal(TenantId id, TokenCounts tokens, absl::Duration now) const {
  const Tenant& tenant = Get(id);
  if (std::optional<ApiError> error = OverQuota(tenant, tokens, now)) return error;
  if (const auto& limit = tenant.limits.concurrent_requests_max; limit && tenant.usage.requests >= *limit) {
    return RateLimited(absl::StrCat(tenant.usage.requests, " requests are under way, the limit is ", *limit, "."), 1);
  }
  if (const auto& share = tenant.limits.queue_share_max) {
    const auto limit = static_cast<uint32_t>(std::max(*share * queue_requests_max_, 1.0));
    if (tenant.usage.queued >= limit) {
      return RateLimited(absl::StrCat(tenant.usage.queued, " requests wait, the limit is ", limit, "."), 1);
    }
  }
  struct Rate {
    const std::optional<RateLimit>& rate;
    uint64_t amount;
    const char* what;
  };
  const std::array<Rate, 3> rates = {Rate{tenant.requests, 1, "requests"},
                                     Rate{tenant.input, tokens.input, "input tokens"},
                                     Rate{tenant.output, tokens.output, "output tokens"}};
  const Rate* worst = nullptr;
  absl::Duration wait;
  for (const Rate& rate : rates) {
    if (!rate.rate || rate.rate->WaitFor(rate.amount, now) <= wait) continue;
    wait = rate.rate->WaitFor(rate.amount, now);
    worst = &rate;
  }
  if (worst == nullptr) return std::nullopt;
  const RateStatus status = worst->rate->Status(now);
  ApiError error =
      RateLimited(absl::StrCat("The limit is ", status.limit, " ", worst->what, " per minute: ", status.remaining,
                               " are left, this request may use ", worst->amount, "."),
                  wait == absl::InfiniteDuration() ? SecondsUp(kMinute) : SecondsUp(wait));
  error.should_not_retry = wait == absl::InfiniteDuration();
  return error;
}

void Tenants::Admit(TenantId id, TokenCounts tokens, absl::Duration now) {
  Tenant& tenant = Get(id);
  ++tenant.usage.requests;
  tenant.usage.reserved.input += tokens.input;
  tenant.usage.reserved.output += tokens.output;
  if (tenant.requests) tenant.requests->Take(1, now);
  if (tenant.input) tenant.input->Take(tokens.input, now);
  if (tenant.output) tenant.output->Take(tokens.output, now);
}

void Tenants::End(TenantId id, TokenCounts reserved, TokenCounts used, bool turned_away, absl::Duration now) {
  Tenant& tenant = Get(id);
  TenantUsage& usage = tenant.usage;
  CHECK(usage.requests > 0 && usage.reserved.input >= reserved.input && usage.reserved.output >= reserved.output);
  --usage.requests;
  usage.reserved.input -= reserved.input;
  usage.reserved.output -= reserved.output;
  usage.used.input += used.input;
  usage.used.output += used.output;
  if (tenant.day != Day(now)) tenant.used_today = 0;
  tenant.day = Day(now);
  tenant.used_today += used.input + used.output;
  if (tenant.requests && turned_away) tenant.requests->GiveBack(1, 0);
  if (tenant.input) tenant.input->GiveBack(reserved.input, used.input);
  if (tenant.output) tenant.output->GiveBack(reserved.output, used.output);
}

void Tenants::EnterQueue(TenantId id) { ++Get(id).usage.queued; }

void Tenants::LeaveQueue(TenantId id) {
  CHECK(Get(id).usage.queued > 0);
  --Get(id).usage.queued;
}

const Tenants::Tenant* Tenants::Followed(const std::string& name) const {
  const auto it = names_.find(name);
  return it == names_.end() ? nullptr : &Get(it->second);
}

TenantRates Tenants::Rates(const std::string& name, absl::Duration now) const {
  const Tenant* followed = Followed(name);
  const Tenant& tenant = followed == nullptr ? Get(shared_) : *followed;
  TenantRates rates;
  if (tenant.requests) rates.requests = tenant.requests->Status(now);
  if (tenant.input) rates.tokens = tenant.input->Status(now);
  if (tenant.output) {
    const RateStatus output = tenant.output->Status(now);
    if (!rates.tokens || Left(output) < Left(*rates.tokens)) rates.tokens = output;
  }
  return rates;
}

TenantUsage Tenants::Usage(const std::string& name) const {
  const Tenant* tenant = Followed(name);
  return tenant == nullptr ? TenantUsage{} : tenant->usage;
}

TenantUsage Tenants::Total() const {
  TenantUsage total;
  for (const Tenant& tenant : tenants_) {
    total.requests += tenant.usage.requests;
    total.queued += tenant.usage.queued;
    total.reserved.input += tenant.usage.reserved.input;
    total.reserved.output += tenant.usage.reserved.output;
    total.used.input += tenant.usage.used.input;
    total.used.output += tenant.usage.used.output;
  }
  return total;
}

}  // namespace quicksilver

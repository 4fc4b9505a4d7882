#include "coordinator/cluster/discovery.h"

#include <netdb.h>
#include <sys/socket.h>

#include <algorithm>
#include <random>
#include <thread>
#include <utility>

#include "absl/cleanup/cleanup.h"
#include "absl/strings/str_cat.h"
#include "common/clock.h"
#include "common/log.h"
#include "common/mutex.h"
#include "common/status_macros.h"

namespace quicksilver {
namespace {

constexpr char kDnsScheme[] = "dns:///";

std::string Joined(const std::string& host, uint16_t port) {
  return host.find(':') == std::string::npos ? absl::StrCat(host, ":", port) : absl::StrCat("[", host, "]:", port);
}

struct Name {
  HostPort at;
  std::set<std::string> addresses;
  int failures = 0;                            // In a row.
  absl::Duration next = absl::ZeroDuration();  // Infinite while it is looked up.
  std::string last_reason;                     // Logged once, not at every attempt.
};

using Found = absl::StatusOr<std::vector<std::string>>;

// Look-ups at a time.
constexpr int kLookUpsMax = 16;

// Shared with the threads of look-ups, which may outlast the rest: getaddrinfo() cannot be broken off.
struct LookUps {
  Mutex mu;
  CondVar wake;
  std::vector<std::pair<size_t, Found>> answers GUARDED_BY(mu);  // By the name's place.
  int running GUARDED_BY(mu) = 0;
  bool stopping GUARDED_BY(mu) = false;
};

class DiscoveryImpl : public Discovery {
 public:
  DiscoveryImpl(DiscoveryOptions options, std::function<void(const std::set<std::string>&)> on_members)
      : options_(std::move(options)), on_members_(std::move(on_members)) {
    for (const WorkerSource& source : options_.sources) {
      if (source.looked_up) {
        names_.push_back({.at = source.at, .addresses = {}, .last_reason = ""});
      } else {
        fixed_.insert(Joined(source.at.host, source.at.port));
      }
    }
    thread_ = std::thread([this] { Loop(); });
  }

  ~DiscoveryImpl() override {
    {
      MutexLock lock(look_ups_->mu);
      look_ups_->stopping = true;
      look_ups_->wake.NotifyAll();
    }
    thread_.join();
  }

 private:
  void Loop() {
    std::set<std::string> told = fixed_;
    on_members_(told);
    while (!names_.empty() && WaitForNext()) {
      std::vector<std::pair<size_t, Found>> answers;
      {
        MutexLock lock(look_ups_->mu);
        answers.swap(look_ups_->answers);
        const absl::Duration now = MonotonicNow();
        for (size_t i = 0; i < names_.size() && look_ups_->running < kLookUpsMax; ++i) {
          if (names_[i].next <= now) LookUp(i);
        }
      }
      for (auto& [index, found] : answers) Take(std::move(found), names_[index]);
      std::set<std::string> members = fixed_;
      for (const Name& name : names_) members.insert(name.addresses.begin(), name.addresses.end());
      if (members == told) continue;
      told = std::move(members);
      on_members_(told);
    }
  }

  // False when it is time to end.
  bool WaitForNext() {
    LookUps& shared = *look_ups_;
    MutexLock lock(shared.mu);
    while (!shared.stopping && shared.answers.empty()) {
      absl::Duration next = absl::InfiniteDuration();
      for (const Name& name : names_) next = std::min(next, name.next);
      const absl::Duration now = MonotonicNow();
      if (next <= now && shared.running < kLookUpsMax) return true;
      shared.wake.WaitFor(shared.mu, next <= now ? absl::Seconds(60) : std::min(next - now, absl::Seconds(60)));
    }
    return !shared.stopping;
  }

  // On a thread of its own, so that a name server that does not answer holds up neither the other names nor the end.
  void LookUp(size_t index) REQUIRES_LOCK(look_ups_->mu) {
    names_[index].next = absl::InfiniteDuration();
    ++look_ups_->running;
    std::thread([shared = look_ups_, resolver = options_.resolver, at = names_[index].at, index] {
      Found found = resolver(at);
      MutexLock lock(shared->mu);
      --shared->running;
      shared->answers.emplace_back(index, std::move(found));
      shared->wake.NotifyAll();
    }).detach();
  }

  void Take(Found found, Name& name) {
    if (found.ok() && found->empty()) found = absl::NotFoundError(absl::StrCat(name.at.host, " has no address"));
    if (found.ok()) {
      name.addresses = {found->begin(), found->end()};
      name.failures = 0;
      name.last_reason.clear();
      name.next = MonotonicNow() + options_.interval * Uniform(0.75, 1.25);
      return;
    }
    const std::string reason(found.status().message());
    if (reason != name.last_reason) {
      LogWarning("worker groups cannot be looked up; those that are known stay",
                 {{"name", name.at.host}, {"reason", reason}, {"known", name.addresses.size()}});
      name.last_reason = reason;
    }
    const absl::Duration pause =
        std::min(options_.backoff_max, options_.backoff_min * (1 << std::min(name.failures, 10)));
    ++name.failures;
    name.next = MonotonicNow() + pause * Uniform(0.5, 1.0);
  }

  double Uniform(double low, double high) { return std::uniform_real_distribution<>(low, high)(random_); }

  const DiscoveryOptions options_;
  const std::function<void(const std::set<std::string>&)> on_members_;
  std::set<std::string> fixed_;
  std::vector<Name> names_;  // The thread's own.
  std::minstd_rand random_{std::random_device{}()};
  const std::shared_ptr<LookUps> look_ups_ = std::make_shared<LookUps>();
  std::thread thread_;
};

}  // namespace

absl::StatusOr<WorkerSource> ParseWorkerSource(const std::string& flag, const std::string& value) {
  const bool looked_up = value.rfind(kDnsScheme, 0) == 0;
  ASSIGN_OR_RETURN(HostPort at, ParseHostPort(flag, looked_up ? value.substr(sizeof(kDnsScheme) - 1) : value));
  if (at.port == 0) return absl::InvalidArgumentError(absl::StrCat(flag, ": '", value, "' has port 0"));
  return WorkerSource{std::move(at), looked_up};
}

absl::StatusOr<std::vector<std::string>> ResolveWithSystem(const HostPort& name) {
  addrinfo hints{};
  hints.ai_family = AF_UNSPEC;
  hints.ai_socktype = SOCK_STREAM;
  addrinfo* list = nullptr;
  const int code = getaddrinfo(name.host.c_str(), nullptr, &hints, &list);
  if (code != 0) return absl::UnavailableError(absl::StrCat(name.host, ": ", gai_strerror(code)));
  const absl::Cleanup free_list = [list] { freeaddrinfo(list); };
  std::vector<std::string> addresses;
  for (const addrinfo* each = list; each != nullptr; each = each->ai_next) {
    char host[NI_MAXHOST];
    if (getnameinfo(each->ai_addr, each->ai_addrlen, host, sizeof(host), nullptr, 0, NI_NUMERICHOST) != 0) continue;
    addresses.push_back(Joined(host, name.port));
  }
  if (addresses.empty()) return absl::NotFoundError(absl::StrCat(name.host, " has no address"));
  return addresses;
}

std::unique_ptr<Discovery> Discovery::Start(DiscoveryOptions options,
                                            std::function<void(const std::set<std::string>& addresses)> on_members) {
  return std::make_unique<DiscoveryImpl>(std::move(options), std::move(on_members));
}

}  // namespace quicksilver

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
  int failures = 0;  // In a row.
  absl::Duration next = absl::ZeroDuration();
  std::string last_reason;  // Logged once, not at every attempt.
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
      MutexLock lock(mu_);
      stopping_ = true;
      wake_.NotifyAll();
    }
    thread_.join();
  }

 private:
  void Loop() {
    std::set<std::string> told = fixed_;
    on_members_(told);
    while (!names_.empty() && WaitForNext()) {
      const absl::Duration now = MonotonicNow();
      for (Name& name : names_) {
        if (name.next <= now) LookUp(name);
      }
      std::set<std::string> members = fixed_;
      for (const Name& name : names_) members.insert(name.addresses.begin(), name.addresses.end());
      if (members == told) continue;
      told = std::move(members);
      on_members_(told);
    }
  }

  // False when it is time to end.
  bool WaitForNext() {
    MutexLock lock(mu_);
    absl::Duration next = absl::InfiniteDuration();
    for (const Name& name : names_) next = std::min(next, name.next);
    for (absl::Duration now = MonotonicNow(); next > now && !stopping_; now = MonotonicNow()) {
      wake_.WaitFor(mu_, next - now);
    }
    return !stopping_;
  }

  void LookUp(Name& name) {
    absl::StatusOr<std::vector<std::string>> found = options_.resolver(name.at);
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
  Mutex mu_;
  CondVar wake_;
  bool stopping_ GUARDED_BY(mu_) = false;
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

#pragma once

#include <cstdint>
#include <map>
#include <set>
#include <string>
#include <utility>

namespace quicksilver::simulation {

/// Compares what tenants of equal weight were given while both of them had work waiting all the time.
class FairnessMeter {
 public:
  /// These tenants have work that waits, others have none.
  void SetBacklogged(const std::set<std::string>& tenants);
  void Serve(const std::string& tenant, uint64_t amount);
  /// The largest lead that one backlogged tenant has over another since both wait.
  struct Lead {
    std::string ahead, behind;
    uint64_t amount = 0;
  };
  Lead Largest() const;

 private:
  std::set<std::string> backlogged_;
  std::map<std::pair<std::string, std::string>, int64_t> leads_;  // First over second; first < second.
};

}  // namespace quicksilver::simulation

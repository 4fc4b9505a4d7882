#include "tests/simulation/fairness.h"

#include <cstdlib>

namespace quicksilver::simulation {

void FairnessMeter::SetBacklogged(const std::set<std::string>& tenants) {
  if (tenants == backlogged_) return;
  backlogged_ = tenants;
  std::erase_if(leads_, [&](const auto& lead) {
    return !tenants.contains(lead.first.first) || !tenants.contains(lead.first.second);
  });
  for (auto a = tenants.begin(); a != tenants.end(); ++a) {
    for (auto b = std::next(a); b != tenants.end(); ++b) leads_.emplace(std::pair(*a, *b), 0);
  }
}

void FairnessMeter::Serve(const std::string& tenant, uint64_t amount) {
  for (auto& [pair, lead] : leads_) {
    if (pair.first == tenant) lead += static_cast<int64_t>(amount);
    if (pair.second == tenant) lead -= static_cast<int64_t>(amount);
  }
}

FairnessMeter::Lead FairnessMeter::Largest() const {
  Lead largest;
  for (const auto& [pair, lead] : leads_) {
    if (static_cast<uint64_t>(std::llabs(lead)) <= largest.amount) continue;
    largest.amount = static_cast<uint64_t>(std::llabs(lead));
    largest.ahead = lead > 0 ? pair.first : pair.second;
    largest.behind = lead > 0 ? pair.second : pair.first;
  }
  return largest;
}

}  // namespace quicksilver::simulation

#include "tools/bench_serve/arrivals.h"

#include <cmath>
#include <random>

namespace quicksilver {

std::vector<double> ArrivalSeconds(size_t count, double rate, double burstiness, uint64_t seed) {
  std::vector<double> arrivals(count, 0.0);
  if (std::isinf(rate)) return arrivals;
  std::mt19937_64 generator(seed);
  std::gamma_distribution<double> gap(burstiness, 1.0 / (rate * burstiness));
  double now = 0.0;
  for (double& arrival : arrivals) arrival = now += gap(generator);
  return arrivals;
}

}  // namespace quicksilver

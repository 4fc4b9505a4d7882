#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <vector>

#include "kernels/cpu/gemm_kernel.h"
#include "kernels/cpu/thread_team.h"

namespace quicksilver {

/// What a machine has been seen to do, all threads together.
struct MachineCeilings {
  double bytes_per_second = 0.0;  ///< Read from memory.
  std::map<GemmArithmetic, double> flops_per_second;
};

/// Measures a processor's ceilings turn by turn with something else: reading more than its caches hold, and matrix
/// products whose operands stay in a core's cache.
class CeilingProbe {
 public:
  using Clock = std::function<double()>;  ///< Seconds.

  CeilingProbe(int32_t threads, Clock clock);
  ~CeilingProbe();

  void Turn();
  MachineCeilings Medians() const;

 private:
  struct Product;

  void Read();
  void Multiply(const Product& product);

  const Clock clock_;
  ThreadTeam team_;
  std::unique_ptr<char, void (*)(void*)> memory_;
  size_t next_part_ = 0;
  uint64_t sum_ = 0;  // Of what was read, so that it is.
  std::vector<std::unique_ptr<Product>> products_;
  std::vector<double> bandwidths_;
  std::map<GemmArithmetic, std::vector<double>> rates_;
};

}  // namespace quicksilver

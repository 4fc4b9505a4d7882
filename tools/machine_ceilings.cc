#include "tools/machine_ceilings.h"

#include <sys/mman.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <utility>

#include "common/check.h"
#include "kernels/cpu/simd.h"

extern "C" void omp_set_num_threads(int threads);

namespace quicksilver {
namespace {

constexpr size_t kHugePage = size_t{2} << 20;
constexpr size_t kMemory = size_t{512} << 20;
/// Read in one turn: takes some milliseconds. The other parts have left the caches by the time their turn comes again.
constexpr size_t kPart = kMemory / 4;
/// Of rows, in and out features: a tile and a panel that fit a second-level cache together.
constexpr int64_t kRows = 64, kIn = 1024, kOut = 256;
constexpr int kCalls = 16;

/// Two streams, which one core reads faster than one.
QS_MULTIVERSIONED uint64_t SumOf(const char* from, size_t bytes) {
  using Vector = uint64_t __attribute__((vector_size(64)));
  Vector sums[2] = {};
  const size_t half = bytes / 2;
  for (size_t i = 0; i < half; i += sizeof(Vector)) {
    for (const size_t stream : {0, 1}) {
      Vector v;
      __builtin_memcpy(&v, from + stream * half + i, sizeof v);
      sums[stream] += v;
    }
  }
  return (sums[0] + sums[1])[0];
}

double Median(std::vector<double> values) {
  CHECK(!values.empty());
  std::nth_element(values.begin(), values.begin() + static_cast<std::ptrdiff_t>(values.size() / 2), values.end());
  return values[values.size() / 2];
}

}  // namespace

struct CeilingProbe::Product {
  Product(GemmArithmetic kind, int32_t threads)
      : arithmetic(kind),
        kernel(kind, kRows, kIn, kOut, threads),
        tile(static_cast<size_t>(kRows * kIn * GemmElementBytes(kind)), 1),
        weights(kernel.weights(), GemmEngine()),
        products(static_cast<size_t>(threads), std::vector<float>(static_cast<size_t>(kRows * kOut))) {
    std::memset(weights.get_data_handle(), 1, kernel.weights().get_size());
  }

  GemmArithmetic arithmetic;
  GemmKernel kernel;
  std::vector<char> tile;
  dnnl::memory weights;
  mutable std::vector<std::vector<float>> products;  // One a thread.
};

CeilingProbe::CeilingProbe(int32_t threads, Clock clock)
    : clock_(std::move(clock)),
      team_(threads),
      memory_(static_cast<char*>(std::aligned_alloc(kHugePage, kMemory)), std::free) {
  CHECK(memory_ != nullptr);
  madvise(memory_.get(), kMemory, MADV_HUGEPAGE);
  std::memset(memory_.get(), 1, kMemory);
  omp_set_num_threads(1);
  for (const GemmArithmetic kind : {GemmArithmetic::kF32, GemmArithmetic::kBf16, GemmArithmetic::kInt8}) {
    products_.push_back(std::make_unique<Product>(kind, threads));
  }
}

CeilingProbe::~CeilingProbe() = default;

void CeilingProbe::Turn() {
  Read();
  for (const auto& product : products_) Multiply(*product);
}

void CeilingProbe::Read() {
  const auto threads = static_cast<size_t>(team_.threads());
  const char* const part = memory_.get() + next_part_ * kPart;
  next_part_ = (next_part_ + 1) % (kMemory / kPart);
  std::vector<uint64_t> sums(threads);
  const size_t bytes = kPart / threads / 128 * 128;
  const double began = clock_();
  team_.Run(static_cast<int64_t>(threads), true, [&](int64_t item, int32_t) {
    sums[static_cast<size_t>(item)] = SumOf(part + static_cast<size_t>(item) * bytes, bytes);
  });
  bandwidths_.push_back(static_cast<double>(bytes * threads) / (clock_() - began));
  for (const uint64_t sum : sums) sum_ += sum;
}

void CeilingProbe::Multiply(const Product& product) {
  const int64_t threads = team_.threads();
  const auto run = [&](int64_t, int32_t thread) {
    omp_set_num_threads(1);
    float* const out = product.products[static_cast<size_t>(thread)].data();
    for (int i = 0; i < kCalls; ++i) {
      CHECK(product.kernel.Run(thread, product.tile.data(), product.weights, out) == dnnl_success);
    }
  };
  team_.Run(threads, true, run);  // Brings the operands back into the caches.
  const double began = clock_();
  team_.Run(threads, true, run);
  const double flops = 2.0 * static_cast<double>(kRows * kIn * kOut * kCalls * threads);
  rates_[product.arithmetic].push_back(flops / (clock_() - began));
}

MachineCeilings CeilingProbe::Medians() const {
  MachineCeilings machine;
  machine.bytes_per_second = Median(bandwidths_);
  for (const auto& [kind, rates] : rates_) machine.flops_per_second[kind] = Median(rates);
  return machine;
}

}  // namespace quicksilver

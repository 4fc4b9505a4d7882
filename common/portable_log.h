#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#if defined(__CUDACC__)
#define QS_HOST_DEVICE __host__ __device__
#else
#define QS_HOST_DEVICE
#endif

namespace quicksilver {

/// ln x within one unit in the last place, with the same bits on every processor, device and compiler: libraries differ
/// in the last bit. x: positive, finite and normal. The method and the coefficients are fdlibm's (e_log.c, Sun
/// Microsystems): ln x = k ln 2 + ln(1 + f) with 1 + f between sqrt(1/2) and sqrt(2). Every sum of a product is one
/// fma, so no compiler has a contraction left to choose.
QS_HOST_DEVICE inline double PortableLog(double x) {
  uint64_t bits;
  memcpy(&bits, &x, sizeof bits);
  // Adding the distance from sqrt(1/2) to 1 carries into the exponent when the fraction is above sqrt(2).
  constexpr uint64_t kOne = 0x3FF0000000000000u, kRootHalf = 0x3FE6A09E00000000u;
  bits += kOne - kRootHalf;
  const double k = static_cast<double>(static_cast<int64_t>(bits >> 52) - 1023);
  bits = (bits & 0x000FFFFFFFFFFFFFu) + kRootHalf;
  memcpy(&x, &bits, sizeof x);

  const double f = x - 1.0;
  const double s = f / (f + 2.0), z = s * s;
  double r = std::fma(z, 1.479819860511658591e-01, 1.531383769920937332e-01);
  r = std::fma(z, r, 1.818357216161805012e-01);
  r = std::fma(z, r, 2.222219843214978396e-01);
  r = std::fma(z, r, 2.857142874366239149e-01);
  r = std::fma(z, r, 3.999999999940941908e-01);
  r = std::fma(z, r, 6.666666666666735130e-01);
  // ln(1 + f) = f - (f^2/2 - s (f^2/2 + z r)); ln 2 is a short upper part, whose product with k is exact, and the rest.
  const double half = 0.5 * f;
  const double low = std::fma(s, std::fma(half, f, z * r), k * 1.90821492927058770002e-10);
  const double correction = std::fma(half, f, -low) - f;
  return std::fma(k, 6.93147180369123816490e-01, -correction);
}

}  // namespace quicksilver

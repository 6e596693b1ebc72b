// Exponential and logarithm of vectors, by range reduction and truncated series.
#pragma once

#include <limits>

#include "dmlap/dual.h"
#include "engine/simd.h"

namespace dmlap::cpu::DMLAP_ISA {

// Integers of a vector's width and format, and how far series must go for its last digit.
template <class T>
struct FloatFormat;

template <>
struct FloatFormat<float> {
  static constexpr int kMantissa = 23, kBias = 127;
  static constexpr float kRounder = 12582912.f;  // 1.5 * 2^23: adding it rounds to an integer
  static constexpr float kLn2High = 0.693359375f, kLn2Low = -2.12194440e-4f;
  static constexpr float kLowest = -87.33f, kHighest = 88.72f;
  static constexpr int kExpTerms = 7, kLogTerms = 6, kLog1pTerms = 8;
};

template <>
struct FloatFormat<double> {
  static constexpr int kMantissa = 52, kBias = 1023;
  static constexpr double kRounder = 6755399441055744.0;  // 1.5 * 2^52
  static constexpr double kLn2High = 6.93147180369123816490e-01;
  static constexpr double kLn2Low = 1.90821492927058770002e-10;
  static constexpr double kLowest = -708.3, kHighest = 709.7;
  static constexpr int kExpTerms = 13, kLogTerms = 11, kLog1pTerms = 17;
};

template <class V>
using Element = decltype(V{}[0] + 0);
template <class V>
using IntOf = typename Simd<Element<V>>::I;

// e^x: 0 below the normal range, the largest finite power above it.
template <class V>
inline V vexp(V x) {
  using T = Element<V>;
  using F = FloatFormat<T>;
  using I = IntOf<V>;
  constexpr T kLog2E = T(1.44269504088896340736);
  const I tiny = x < F::kLowest;
  V clamped = x < F::kLowest ? V{} + F::kLowest : x;
  clamped = clamped > F::kHighest ? V{} + F::kHighest : clamped;
  const V shifted = clamped * kLog2E + F::kRounder;
  const V n = shifted - F::kRounder;
  const V r = (clamped - n * F::kLn2High) - n * F::kLn2Low;
  V sum = V{} + T(1);
#pragma GCC unroll 16
  for (int k = F::kExpTerms; k > 0; --k) sum = sum * (r * T(1.0 / k)) + T(1);
  const I power = (I)shifted << F::kMantissa;  // the low bits of `shifted` hold n
  const V scaled = (V)((I)sum + power);
  return tiny ? V{} : scaled;
}

// 2 atanh(s) = 2 (s + s^3/3 + s^5/5 + ...)
template <int kTerms, class V>
inline V twice_atanh(V s) {
  using T = Element<V>;
  const V s2 = s * s;
  V sum{};
#pragma GCC unroll 20
  for (int k = kTerms; k > 0; --k) sum = sum * s2 + T(1.0 / (2 * k - 1));
  return T(2) * s * sum;
}

// Natural logarithm of normal numbers; -inf at 0, inf at inf.
template <class V>
inline V vlog(V x) {
  using T = Element<V>;
  using F = FloatFormat<T>;
  using I = IntOf<V>;
  constexpr T inf = std::numeric_limits<T>::infinity();
  // m in [1/2, 1), then in [1/sqrt(2), sqrt(2)).
  const I fraction =
      ((I)x & (((I{} + 1) << F::kMantissa) - 1)) | ((I{} + F::kBias - 1) << F::kMantissa);
  I exponent = ((I)x >> F::kMantissa) - (F::kBias - 1);
  V m = (V)fraction;
  const I low = m < T(0.70710678118654752440);
  m = low ? m + m : m;
  exponent += low;  // a true lane is -1
  const V n = __builtin_convertvector(exponent, V);
  const V log_m = twice_atanh<F::kLogTerms>((m - 1) / (m + 1));
  const V y = (log_m + n * F::kLn2Low) + n * F::kLn2High;
  const V low_end = x == 0 ? V{} - inf : y;
  return x == inf ? x : low_end;
}

template <class V>
struct VectorElementary {
  DMLAP_HD static V softplus(V t) {
    using F = FloatFormat<Element<V>>;
    const V positive = t > 0 ? t : V{};
    const V u = vexp(t > 0 ? -t : t);  // in [0, 1]
    return positive + twice_atanh<F::kLog1pTerms>(u / (u + 2));
  }
  DMLAP_HD static V sigmoid(V t) {
    const V u = vexp(t > 0 ? -t : t);
    const V one = V{} + 1;
    return (t > 0 ? one : u) / (one + u);
  }
};

}  // namespace dmlap::cpu::DMLAP_ISA

namespace dmlap {

template <>
struct Elementary<cpu::DMLAP_ISA::Simd<float>::V>
    : cpu::DMLAP_ISA::VectorElementary<cpu::DMLAP_ISA::Simd<float>::V> {};
template <>
struct Elementary<cpu::DMLAP_ISA::Simd<double>::V>
    : cpu::DMLAP_ISA::VectorElementary<cpu::DMLAP_ISA::Simd<double>::V> {};

}  // namespace dmlap

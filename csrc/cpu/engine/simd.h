// Vectors of one instruction set, by GCC/Clang vector extensions. Included once per translation
// unit, inside its own namespace: no vector type crosses a unit.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <utility>

#if defined(__AVX2__)
// GCC takes the undefined operands of its own intrinsics for a mistake of ours.
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wuninitialized"
#if !defined(__clang__)
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif
#include <immintrin.h>
#pragma GCC diagnostic pop
#endif

#if defined(__AVX512F__)
#define DMLAP_VECTOR_BYTES 64
#elif defined(__AVX2__)
#define DMLAP_VECTOR_BYTES 32
#else
#define DMLAP_VECTOR_BYTES 16
#endif

// Called once a call of a loss, from many losses: one copy is enough.
#define DMLAP_ONCE inline __attribute__((noinline))

namespace dmlap::cpu::DMLAP_ISA {

template <class T>
struct Simd;

template <>
struct Simd<float> {
  typedef float V __attribute__((vector_size(DMLAP_VECTOR_BYTES)));
  typedef float Unaligned __attribute__((vector_size(DMLAP_VECTOR_BYTES), aligned(4), may_alias));
  typedef int32_t I __attribute__((vector_size(DMLAP_VECTOR_BYTES)));
  typedef int32_t UnalignedI
      __attribute__((vector_size(DMLAP_VECTOR_BYTES), aligned(4), may_alias));
  using Int = int32_t;
  static constexpr int kLanes = DMLAP_VECTOR_BYTES / 4;
};

template <>
struct Simd<double> {
  typedef double V __attribute__((vector_size(DMLAP_VECTOR_BYTES)));
  typedef double Unaligned __attribute__((vector_size(DMLAP_VECTOR_BYTES), aligned(8), may_alias));
  typedef int64_t I __attribute__((vector_size(DMLAP_VECTOR_BYTES)));
  typedef int64_t UnalignedI
      __attribute__((vector_size(DMLAP_VECTOR_BYTES), aligned(8), may_alias));
  using Int = int64_t;
  static constexpr int kLanes = DMLAP_VECTOR_BYTES / 8;
};

// A register tile: kRows anchors by kVectors vectors of references. A panel holds kWidth rows
// feature by feature, [dim][kWidth], and serves as either side of a tile. kRows * kVectors
// accumulators, kVectors loads and a broadcast fill the register file.
template <class T>
struct Tile {
  using S = Simd<T>;
  using V = typename S::V;
  using I = typename S::I;
  static constexpr int kLanes = S::kLanes;
  static constexpr int kVectors = 3;
  static constexpr int kWidth = kVectors * kLanes;
  static constexpr int kRows = DMLAP_VECTOR_BYTES == 64 ? 8 : (kLanes == 2 ? 2 : 4);
  static constexpr int kPerPanel = kWidth / kRows;
  static_assert(kWidth % kRows == 0 && kPerPanel <= 8, "a panel's tiles have one bit each");
};

template <class T>
inline typename Simd<T>::V load(const T* p) {
  return *reinterpret_cast<const typename Simd<T>::Unaligned*>(p);
}
template <class T>
inline void store(T* p, typename Simd<T>::V v) {
  *reinterpret_cast<typename Simd<T>::Unaligned*>(p) = v;
}
inline Simd<float>::I load_int(const int32_t* p) {
  return *reinterpret_cast<const Simd<float>::UnalignedI*>(p);
}
inline Simd<double>::I load_int(const int64_t* p) {
  return *reinterpret_cast<const Simd<double>::UnalignedI*>(p);
}

template <class T>
inline typename Simd<T>::V splat(T x) {
  return typename Simd<T>::V{} + x;
}
template <class T>
inline typename Simd<T>::I splat_int(typename Simd<T>::Int x) {
  return typename Simd<T>::I{} + x;
}

// 0, 1, 2, ...
template <class T>
inline typename Simd<T>::I iota() {
  typename Simd<T>::I v{};
  for (int l = 0; l < Simd<T>::kLanes; ++l) v[l] = l;
  return v;
}

template <class V>
inline V vmin(V a, V b) {
  return a < b ? a : b;
}

template <class V>
inline V vsqrt(V v) {
  for (unsigned l = 0; l < sizeof(V) / sizeof(v[0]); ++l) v[l] = std::sqrt(v[l]);
  return v;
}

// One bit a lane that holds true (all bits set) in a comparison's result.
template <class I>
inline uint32_t bits(I mask) {
  uint32_t b = 0;
  for (unsigned l = 0; l < sizeof(I) / sizeof(mask[0]); ++l) b |= uint32_t(mask[l] != 0) << l;
  return b;
}

#if DMLAP_VECTOR_BYTES == 64
inline Simd<float>::V vmin(Simd<float>::V a, Simd<float>::V b) { return _mm512_min_ps(a, b); }
inline Simd<double>::V vmin(Simd<double>::V a, Simd<double>::V b) { return _mm512_min_pd(a, b); }
inline Simd<float>::V vsqrt(Simd<float>::V v) { return _mm512_sqrt_ps(v); }
inline Simd<double>::V vsqrt(Simd<double>::V v) { return _mm512_sqrt_pd(v); }
inline uint32_t bits(Simd<float>::I m) { return _mm512_movepi32_mask((__m512i)m); }
inline uint32_t bits(Simd<double>::I m) { return _mm512_movepi64_mask((__m512i)m); }
#elif DMLAP_VECTOR_BYTES == 32
inline Simd<float>::V vmin(Simd<float>::V a, Simd<float>::V b) { return _mm256_min_ps(a, b); }
inline Simd<double>::V vmin(Simd<double>::V a, Simd<double>::V b) { return _mm256_min_pd(a, b); }
inline Simd<float>::V vsqrt(Simd<float>::V v) { return _mm256_sqrt_ps(v); }
inline Simd<double>::V vsqrt(Simd<double>::V v) { return _mm256_sqrt_pd(v); }
inline uint32_t bits(Simd<float>::I m) { return _mm256_movemask_ps((__m256)m); }
inline uint32_t bits(Simd<double>::I m) { return _mm256_movemask_pd((__m256d)m); }
#endif

// Halves are added until one number is left: a chain of additions would take lanes times as long.
template <class A, class V>
inline A add_halves(V v) {
  constexpr int kLanes = sizeof(V) / sizeof(v[0]);
  A part[kLanes];
#pragma GCC unroll 16
  for (int l = 0; l < kLanes; ++l) part[l] = v[l];
#pragma GCC unroll 4
  for (int half = kLanes / 2; half > 0; half /= 2) {
#pragma GCC unroll 8
    for (int l = 0; l < half; ++l) part[l] += part[l + half];
  }
  return part[0];
}

template <class T>
inline T sum_lanes(typename Simd<T>::V v) {
  return add_halves<T>(v);
}
template <class T>
inline double wide_sum(typename Simd<T>::V v) {
  return add_halves<double>(v);
}

// Lanes of a, or of b where the bit `kHalf` of the lane is set (`kUpper`: of the other half each).
template <int kHalf, bool kUpper, class T, size_t... kLane>
inline typename Simd<T>::V exchange(typename Simd<T>::V a, typename Simd<T>::V b,
                                    std::index_sequence<kLane...>) {
  constexpr int L = Simd<T>::kLanes;
  constexpr auto from = [](int lane) {
    if (kUpper) return lane & kHalf ? L + lane : lane + kHalf;
    return lane & kHalf ? L + lane - kHalf : lane;
  };
#if defined(__clang__)
  return __builtin_shufflevector(a, b, from(kLane)...);
#else
  return __builtin_shuffle(a, b, typename Simd<T>::I{from(kLane)...});
#endif
}

// Transposes kLanes vectors of kLanes numbers, halves of ever greater size changing places.
template <class T, int kHalf = 1>
inline __attribute__((always_inline)) void transpose(typename Simd<T>::V (&rows)[Simd<T>::kLanes]) {
  constexpr int L = Simd<T>::kLanes;
  using V = typename Simd<T>::V;
  if constexpr (kHalf < L) {
    constexpr std::make_index_sequence<L> lanes;
#pragma GCC unroll 16
    for (int r = 0; r < L; ++r) {
      if (r & kHalf) continue;
      const V a = rows[r], b = rows[r + kHalf];
      rows[r] = exchange<kHalf, false, T>(a, b, lanes);
      rows[r + kHalf] = exchange<kHalf, true, T>(a, b, lanes);
    }
    transpose<T, 2 * kHalf>(rows);
  }
}

template <class T>
inline T least_lane(typename Simd<T>::V v) {
  T part[Simd<T>::kLanes];
  store(part, v);
#pragma GCC unroll 4
  for (int half = Simd<T>::kLanes / 2; half > 0; half /= 2) {
#pragma GCC unroll 8
    for (int l = 0; l < half; ++l) part[l] = part[l + half] < part[l] ? part[l + half] : part[l];
  }
  return part[0];
}

}  // namespace dmlap::cpu::DMLAP_ISA

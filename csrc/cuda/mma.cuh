// Products of small matrices on tensor cores, one warp each.
//
// A fragment of a product holds, for a thread with g = lane / 4 and t = lane % 4:
//   A[16][k]: rows g and g + 8;  B[k][8]: column g;  C[16][8]: rows g, g + 8, columns 2t, 2t + 1
// The order of a sum along k is free. So a thread reads coordinates 2t, 2t + 1 and 2t + 8, 2t + 9
// of 16 of both inputs, which lie in pairs in memory, for every number format.
#pragma once

#include "runtime.cuh"

namespace dmlap::cuda {

struct FragmentA {
  float2 low[2], high[2];  // of rows g and g + 8: coordinates 2t, 2t + 1; and 2t + 8, 2t + 9
};
struct FragmentB {
  float2 low, high;  // of column g
};

#ifndef __CUDACC__
namespace emulated {

inline float rounded(float value, int dropped_bits) {
  unsigned bits = __float_as_uint(value);
  if ((bits & 0x7f800000u) == 0x7f800000u) return value;
  const unsigned half = 1u << (dropped_bits - 1);
  // bf16 rounds ties to even, tf32 away from zero.
  const unsigned odd = dropped_bits == 16 ? (bits >> 16 & 1) - 1 : 0;
  bits += half + odd;
  return __uint_as_float(bits & ~((1u << dropped_bits) - 1));
}

struct Operands {
  float a[8];  // [row g or g + 8][4 coordinates]
  float b[4];
  float* c;
};

// c[16][8] += a[16][k] b[k][8]; each thread brings `depth` of its row's and column's coordinates.
inline void product(float (&c)[4], const float (&a)[8], const float (&b)[4], int depth) {
  Operands mine;
  std::memcpy(mine.a, a, sizeof mine.a);
  std::memcpy(mine.b, b, sizeof mine.b);
  mine.c = c;
  emulation::with_warp(mine, [depth](Operands** lanes) {
    for (int lane = 0; lane < emulation::kWarp; ++lane) {
      for (int e = 0; e < 4; ++e) {
        const int row = lane / 4, column = lane % 4 * 2 + e % 2;
        float sum = 0;
        for (int t = 0; t < 4; ++t) {
          const float* left = lanes[row * 4 + t]->a + e / 2 * 4;
          const float* right = lanes[column * 4 + t]->b;
          for (int k = 0; k < depth; ++k) sum += left[k] * right[k];
        }
        lanes[lane]->c[e] += sum;
      }
    }
  });
}

}  // namespace emulated
#endif

__device__ inline float to_tf32(float value) {
#ifdef __CUDACC__
  unsigned bits;
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(bits) : "f"(value));
  return __uint_as_float(bits);
#else
  return emulated::rounded(value, 13);
#endif
}

// C += A B over 8 coordinates in tf32. In the instruction's own numbering a0, a1 and b0 are at
// coordinate t; a2, a3 and b1 at t + 4.
__device__ inline void mma_tf32(float (&c)[4], float a0, float a1, float a2, float a3, float b0,
                                float b1) {
#ifdef __CUDACC__
  asm volatile(
      "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
      "{%0,%1,%2,%3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(__float_as_uint(a0)), "r"(__float_as_uint(a1)), "r"(__float_as_uint(a2)),
        "r"(__float_as_uint(a3)), "r"(__float_as_uint(b0)), "r"(__float_as_uint(b1)));
#else
  // The instruction ignores the other bits.
  const auto cut = [](float v) { return __uint_as_float(__float_as_uint(v) & ~0x1fffu); };
  emulated::product(c, {cut(a0), cut(a2), 0, 0, cut(a1), cut(a3), 0, 0}, {cut(b0), cut(b1), 0, 0},
                    2);
#endif
}

#ifdef __CUDACC__
__device__ inline unsigned to_bf16x2(float2 pair) {
  unsigned bits;  // the first operand goes to the upper half
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(bits) : "f"(pair.y), "f"(pair.x));
  return bits;
}
#endif

__device__ inline void mma_bf16(float (&c)[4], const FragmentA& a, const FragmentB& b) {
#ifdef __CUDACC__
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
      "{%0,%1,%2,%3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(to_bf16x2(a.low[0])), "r"(to_bf16x2(a.low[1])), "r"(to_bf16x2(a.high[0])),
        "r"(to_bf16x2(a.high[1])), "r"(to_bf16x2(b.low)), "r"(to_bf16x2(b.high)));
#else
  const auto r = [](float v) { return emulated::rounded(v, 16); };
  emulated::product(c,
                    {r(a.low[0].x), r(a.low[0].y), r(a.high[0].x), r(a.high[0].y), r(a.low[1].x),
                     r(a.low[1].y), r(a.high[1].x), r(a.high[1].y)},
                    {r(b.low.x), r(b.low.y), r(b.high.x), r(b.high.y)}, 4);
#endif
}

// C += A B over the two coordinates of `a` and `b` that each thread holds of 8.
template <Precision kPrecision>
__device__ inline void multiply_half(float (&c)[4], const float2 (&a)[2], float2 b) {
  const float2 a0 = {to_tf32(a[0].x), to_tf32(a[0].y)};
  const float2 a1 = {to_tf32(a[1].x), to_tf32(a[1].y)};
  const float2 big = {to_tf32(b.x), to_tf32(b.y)};
  if (kPrecision == Precision::highest) {
    // The small parts first, before the large product would swallow them.
    mma_tf32(c, to_tf32(a[0].x - a0.x), to_tf32(a[1].x - a1.x), to_tf32(a[0].y - a0.y),
             to_tf32(a[1].y - a1.y), big.x, big.y);
    mma_tf32(c, a0.x, a1.x, a0.y, a1.y, to_tf32(b.x - big.x), to_tf32(b.y - big.y));
  }
  mma_tf32(c, a0.x, a1.x, a0.y, a1.y, big.x, big.y);
}

// C += A B over 16 coordinates.
template <Precision kPrecision>
__device__ inline void multiply(float (&c)[4], const FragmentA& a, const FragmentB& b) {
  if constexpr (kPrecision == Precision::medium) {
    mma_bf16(c, a, b);
  } else {
    multiply_half<kPrecision>(c, a.low, b.low);
    multiply_half<kPrecision>(c, a.high, b.high);
  }
}

}  // namespace dmlap::cuda

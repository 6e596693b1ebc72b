// Distances of a tile of pairs, computed by tensor cores.
#pragma once

#include <cmath>

#include "async.cuh"
#include "dmlap/types.h"
#include "mma.cuh"

namespace dmlap::cuda {

constexpr int kDepth = 16;  // coordinates per stage
constexpr int kStages = 3;
// So four rows, read as float2 by four threads each, fall into different banks.
constexpr int kPitch = kDepth + 8;

// A tile of kM anchors and kN columns; a warp has kWarpM x kWarpN of it.
template <int kM_, int kN_, int kWarpM_, int kWarpN_, int kScorePitch_>
struct Shape {
  static constexpr int kM = kM_, kN = kN_, kWarpM = kWarpM_, kWarpN = kWarpN_;
  static constexpr int kScorePitch = kScorePitch_;
  static constexpr int kWarpsN = kN / kWarpN;
  static constexpr int kStage = (kM + kN) * kPitch;
  static constexpr int kScores = kM * kScorePitch;
  // Distances reuse the memory of the stages.
  static constexpr int kFloats = kStages * kStage > kScores ? kStages * kStage : kScores;
  static_assert(kM / kWarpM * kWarpsN * 32 == kThreads);
};

// Squared distances below this share of the norms are recomputed from differences: norms and
// products cancel there.
constexpr float kNear = 2e-2f;

__device__ inline float distance_of_square(Distance distance, float square) {
  return distance == Distance::euclidean ? sqrtf(square) : square;
}

__device__ inline bool from_differences(Distance distance) {
  return distance == Distance::euclidean || distance == Distance::sqeuclidean;
}

__device__ inline int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }

// The gradient at a of a pair (a, b) with weight w = d loss / d d is `pull` times `pair_factor`:
// along a - b for squares, along -b for products.
__device__ inline float pair_factor(Distance distance, float w, float d) {
  if (distance == Distance::euclidean) return d == 0 ? 0.f : w / d;
  return distance == Distance::sqeuclidean ? 2 * w : w;
}
__device__ inline float pull(bool squares, float factor, float a, float b) {
  return squares ? factor * (a - b) : -factor * b;
}

// The column that is the anchor itself, -1 for none. This pair does not exist.
__device__ inline int own_column(const Sides& s, int64_t i) {
  if (s.self) return static_cast<int>(i);
  return s.itself == nullptr ? -1 : s.itself[i];
}

// Marks such a pair in a tile of distances. Arithmetic never gives this number.
constexpr unsigned kLeftOut = 0x7fc0beefu;
__device__ inline bool is_left_out(float d) { return __float_as_uint(d) == kLeftOut; }

// Sum over the warp, the same in every lane.
__device__ inline float warp_sum(float value) {
  for (int mask = 16; mask > 0; mask /= 2) value += __shfl_xor_sync(kWholeWarp, value, mask);
  return value;
}

// The distance of one pair in full float32 precision, by the whole warp.
__device__ inline float pair_distance(const Sides& s, int64_t i, int64_t j) {
  const float* x = s.x + i * s.dim;
  const float* y = s.y + j * s.dim;
  const bool squares = from_differences(s.distance);
  float sum = 0;
  for (int64_t k = threadIdx.x % 32; k < s.dim; k += 32) {
    const float difference = x[k] - y[k];
    sum += squares ? difference * difference : x[k] * y[k];
  }
  sum = warp_sum(sum);
  return squares ? distance_of_square(s.distance, sum) : s.x_norms[i] + s.y_norms[j] - sum;
}

// The anchors of a tile: consecutive ones, or a list [kM] in shared memory.
struct Consecutive {
  int64_t row0;
  __device__ int64_t operator[](int row) const { return row0 + row; }
};
struct Listed {
  const int* anchors;
  __device__ int64_t operator[](int row) const { return anchors[row]; }
};

// Loads coordinates from k0 on of the tile's rows into a stage. Rows past the end repeat the last.
template <class S, class Rows>
__device__ inline void load_stage(const Sides& s, const Rows& rows, int64_t col0, int64_t k0,
                                  float* stage) {
  constexpr int kParts = kDepth / 4;
#pragma unroll
  for (int n = threadIdx.x; n < (S::kM + S::kN) * kParts; n += kThreads) {
    const int row = n / kParts, k = n % kParts * 4;
    const float* from = row < S::kM ? s.x + least(rows[row], s.rows - 1) * s.dim
                                    : s.y + least(col0 + row - S::kM, s.cols - 1) * s.dim;
    copy_async(stage + row * kPitch + k, from + k0 + k);
  }
}

template <class S, Precision kPrecision>
__device__ inline void multiply_stage(const float* stage, int m0, int n0,
                                      float (&sums)[S::kWarpM / 16][S::kWarpN / 8][4]) {
  const int g = threadIdx.x % 32 / 4, t = threadIdx.x % 4;
  const auto at = [&](int row, int k) {
    return *reinterpret_cast<const float2*>(stage + row * kPitch + k + 2 * t);
  };
  FragmentB b[S::kWarpN / 8];
#pragma unroll
  for (int n = 0; n < S::kWarpN / 8; ++n) {
    const int row = S::kM + n0 + n * 8 + g;
    b[n] = {at(row, 0), at(row, 8)};
  }
#pragma unroll
  for (int m = 0; m < S::kWarpM / 16; ++m) {
    const int row = m0 + m * 16 + g;
    const FragmentA a = {{at(row, 0), at(row + 8, 0)}, {at(row, 8), at(row + 8, 8)}};
#pragma unroll
    for (int n = 0; n < S::kWarpN / 8; ++n) multiply<kPrecision>(sums[m][n], a, b[n]);
  }
}

template <class S, Precision kPrecision, class Rows>
__device__ inline void multiply_rows(const Sides& s, const Rows& rows, int64_t col0, int m0, int n0,
                                     float* memory,
                                     float (&sums)[S::kWarpM / 16][S::kWarpN / 8][4]) {
  const int64_t stages = s.dim / kDepth;
#pragma unroll
  for (int k = 0; k < kStages - 1; ++k) {
    if (k < stages) load_stage<S>(s, rows, col0, k * kDepth, memory + k * S::kStage);
    commit_copies();
  }
  for (int64_t k = 0; k < stages; ++k) {
    wait_copies<kStages - 2>();
    __syncthreads();  // stage k has arrived, and stage k - 1 is free
    const int64_t next = k + kStages - 1;
    if (next < stages) {
      load_stage<S>(s, rows, col0, next * kDepth, memory + next % kStages * S::kStage);
    }
    commit_copies();
    multiply_stage<S, kPrecision>(memory + k % kStages * S::kStage, m0, n0, sums);
  }
  wait_copies<0>();
  __syncthreads();
}

// Recomputes the distances of a warp that are marked (negative) from differences.
template <class S, class Rows>
__device__ inline void refine(const Sides& s, const Rows& rows, int64_t col0, int m0, int n0,
                              float* scores) {
  const int lane = threadIdx.x % 32;
  for (int m = m0; m < m0 + S::kWarpM; ++m) {
    for (int n = n0; n < n0 + S::kWarpN; n += 32) {
      const bool marked = n + lane < n0 + S::kWarpN && scores[m * S::kScorePitch + n + lane] < 0;
      unsigned left = __ballot_sync(kWholeWarp, marked);
      __syncwarp();  // a vote does not order reads before it and writes after it
      for (; left != 0; left &= left - 1) {
        const int column = n + __ffs(left) - 1;
        const float d = pair_distance(s, rows[m], col0 + column);
        if (lane == 0) scores[m * S::kScorePitch + column] = d;
      }
    }
  }
}

// Writes the distances of kM anchors to kN columns, beginning at col0, into `memory` (S::kFloats)
// as [kM][kScorePitch]. On return the whole block sees them. Entries past the last row or column
// are undefined. No thread may still read `memory` when the block calls.
template <class S, class Rows>
__device__ inline void distances_of(const Sides& s, const Rows& rows, int64_t col0, float* memory) {
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int m0 = warp / S::kWarpsN * S::kWarpM, n0 = warp % S::kWarpsN * S::kWarpN;
  float sums[S::kWarpM / 16][S::kWarpN / 8][4] = {};
  switch (s.precision) {
    case Precision::highest:
      multiply_rows<S, Precision::highest>(s, rows, col0, m0, n0, memory, sums);
      break;
    case Precision::high:
      multiply_rows<S, Precision::high>(s, rows, col0, m0, n0, memory, sums);
      break;
    case Precision::medium:
      multiply_rows<S, Precision::medium>(s, rows, col0, m0, n0, memory, sums);
      break;
  }
  const bool squares = from_differences(s.distance);
  bool near = false;
#pragma unroll
  for (int m = 0; m < S::kWarpM / 16; ++m) {
#pragma unroll
    for (int n = 0; n < S::kWarpN / 8; ++n) {
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        const int row = m0 + m * 16 + e / 2 * 8 + lane / 4;
        const int column = n0 + n * 8 + lane % 4 * 2 + e % 2;
        const int64_t i = rows[row], j = col0 + column;
        float d = 0;
        if (i < s.rows && j < s.cols) {
          const float norms = s.x_norms[i] + s.y_norms[j];
          d = norms - (squares ? 2 * sums[m][n][e] : sums[m][n][e]);
          if (squares) {
            if (s.self && i == j) {
              d = 0;
            } else if (d < kNear * norms) {
              d = -1;  // marked
              near = true;
            } else {
              d = distance_of_square(s.distance, d);
            }
          }
        }
        memory[row * S::kScorePitch + column] = d;
      }
    }
  }
  if (__any_sync(kWholeWarp, near)) {
    __syncwarp();
    refine<S>(s, rows, col0, m0, n0, memory);
  }
  __syncthreads();
}

// Marks the pairs of an anchor and itself. Called by the whole block.
template <class S>
__device__ inline void mark_left_out(const Sides& s, int64_t row0, int64_t col0, float* memory) {
  static_assert(S::kM <= kThreads && S::kN <= kThreads);
  if (s.self && (row0 >= col0 + S::kN || col0 >= row0 + S::kM)) return;
  if (!s.self && s.itself == nullptr && s.col_itself == nullptr) return;
  const int n = threadIdx.x;
  if (n < S::kM && row0 + n < s.rows) {
    const int64_t column = own_column(s, row0 + n) - col0;
    if (column >= 0 && column < S::kN) {
      memory[n * S::kScorePitch + column] = __uint_as_float(kLeftOut);
    }
  }
  if (s.col_itself != nullptr && n < S::kN && col0 + n < s.cols) {
    const int64_t row = s.col_itself[col0 + n] - row0;
    if (row >= 0 && row < S::kM) memory[row * S::kScorePitch + n] = __uint_as_float(kLeftOut);
  }
  __syncthreads();
}

// The same for consecutive anchors, with pairs that do not exist marked.
template <class S>
__device__ inline void tile_distances(const Sides& s, int64_t row0, int64_t col0, float* memory) {
  distances_of<S>(s, Consecutive{row0}, col0, memory);
  mark_left_out<S>(s, row0, col0, memory);
}

}  // namespace dmlap::cuda

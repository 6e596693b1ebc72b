#pragma once

#include <cstdint>

#include "dmlap/cuda/hardest_pairs.h"

// Bodies of the kernels, apart from their launch, so that tests can run them on the CPU.
namespace dmlap::cuda {

constexpr int kTile = 64;   // anchors, and references, that a block holds at a time
constexpr int kDepth = 16;  // coordinates staged in shared memory at a time
constexpr int kSide = 16;   // a block is kSide x kSide threads
constexpr int kPer = kTile / kSide;
constexpr int kThreads = kSide * kSide;
// Rows of a staged tile stay 16-byte aligned, and its columns fall into different banks.
constexpr int kPitch = kTile + 4;
constexpr int64_t kMaxSplits = 64;
constexpr int64_t kWantedBlocks = 1024;

struct Pick {
  float d2;
  int64_t index;  // -1: none yet
};

// Results of one split of the references, (splits, anchors) each.
struct Partials {
  int64_t* positive;
  int64_t* negative;
  float* positive_d2;
  float* negative_d2;
};

__host__ __device__ inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// The references are split over blocks when there are too few anchors to fill a GPU. Candidates
// are totally ordered, so the number of splits does not show in the result.
inline int64_t count_splits(int64_t anchors, int64_t refs) {
  const int64_t wanted = ceil_div(kWantedBlocks, ceil_div(anchors, kTile));
  const int64_t most = wanted < kMaxSplits ? wanted : kMaxSplits;
  const int64_t tiles = ceil_div(refs, kTile);
  return tiles < most ? tiles : most;
}

inline Partials carve(void* workspace, int64_t anchors, int64_t splits) {
  const int64_t n = anchors * splits;
  auto* indices = static_cast<int64_t*>(workspace);
  auto* distances = reinterpret_cast<float*>(indices + 2 * n);
  return {indices, indices + n, distances, distances + n};
}

// Farther wins; among positives labels are equal, so that ties fall to the lower index.
__device__ inline void offer_positive(Pick& best, float d2, int64_t index) {
  if (best.index < 0 || d2 > best.d2 || (d2 == best.d2 && index < best.index)) best = {d2, index};
}

// Nearer wins; ties fall to the lower label, then to the lower index.
__device__ inline void offer_negative(Pick& best, float d2, int64_t index,
                                      const int64_t* ref_labels) {
  bool wins = best.index < 0 || d2 < best.d2;
  if (!wins && d2 == best.d2) {
    const int64_t mine = ref_labels[index];
    const int64_t theirs = ref_labels[best.index];
    wins = mine < theirs || (mine == theirs && index < best.index);
  }
  if (wins) best = {d2, index};
}

// Four consecutive coordinates of one row, zeros outside of the matrix.
__device__ inline void fetch(const float* rows, int64_t row, int64_t count, int64_t k, int64_t dim,
                             float (&out)[4]) {
  for (int c = 0; c < 4; ++c) {
    out[c] = row < count && k + c < dim ? rows[row * dim + k + c] : 0.f;
  }
}

__device__ inline void stage(float (&tile)[kDepth][kPitch], int row, int k, const float (&in)[4]) {
  for (int c = 0; c < 4; ++c) tile[k + c][row] = in[c];
}

// Squared distances of kTile anchors from `x0` on to kTile references from `y0` on; thread
// (threadIdx.x, threadIdx.y) gets kPer x kPer of them. Sums of squared differences cost twice the
// arithmetic of norms and products, and lose nothing to cancellation.
__device__ inline void tile_distances(const HardestPairs& p, int64_t x0, int64_t y0,
                                      float (&xs)[kDepth][kPitch], float (&ys)[kDepth][kPitch],
                                      float (&d2)[kPer][kPer]) {
  const int thread = threadIdx.y * kSide + threadIdx.x;
  const int row = thread / (kDepth / 4);
  const int k = thread % (kDepth / 4) * 4;
  float x_next[4];
  float y_next[4];
  fetch(p.x, x0 + row, p.anchors, k, p.dim, x_next);
  fetch(p.y, y0 + row, p.refs, k, p.dim, y_next);
#pragma unroll
  for (int a = 0; a < kPer; ++a) {
#pragma unroll
    for (int b = 0; b < kPer; ++b) d2[a][b] = 0.f;
  }
  for (int64_t k0 = 0; k0 < p.dim; k0 += kDepth) {
    stage(xs, row, k, x_next);
    stage(ys, row, k, y_next);
    __syncthreads();
    // The next coordinates travel while these are worked on.
    if (k0 + kDepth < p.dim) {
      fetch(p.x, x0 + row, p.anchors, k0 + kDepth + k, p.dim, x_next);
      fetch(p.y, y0 + row, p.refs, k0 + kDepth + k, p.dim, y_next);
    }
#pragma unroll
    for (int c = 0; c < kDepth; ++c) {
      const float4 u = *reinterpret_cast<const float4*>(&xs[c][threadIdx.y * kPer]);
      const float4 v = *reinterpret_cast<const float4*>(&ys[c][threadIdx.x * kPer]);
      const float us[kPer] = {u.x, u.y, u.z, u.w};
      const float vs[kPer] = {v.x, v.y, v.z, v.w};
#pragma unroll
      for (int a = 0; a < kPer; ++a) {
#pragma unroll
        for (int b = 0; b < kPer; ++b) {
          const float diff = us[a] - vs[b];
          d2[a][b] += diff * diff;
        }
      }
    }
    __syncthreads();
  }
}

// One block: kTile anchors against every gridDim.y-th part of the references.
__global__ void __launch_bounds__(kThreads)
    hardest_pairs_kernel(HardestPairs p, Partials out, int64_t refs_per_split) {
  alignas(16) __shared__ float xs[kDepth][kPitch];
  alignas(16) __shared__ float ys[kDepth][kPitch];
  __shared__ Pick picks[kTile][kSide];

  const int64_t x0 = static_cast<int64_t>(blockIdx.x) * kTile;
  const int64_t first = static_cast<int64_t>(blockIdx.y) * refs_per_split;
  const int64_t last = first + refs_per_split < p.refs ? first + refs_per_split : p.refs;
  Pick positive[kPer];
  Pick negative[kPer];
  int64_t label[kPer];
#pragma unroll
  for (int a = 0; a < kPer; ++a) {
    const int64_t i = x0 + threadIdx.y * kPer + a;
    positive[a] = negative[a] = {0.f, -1};
    label[a] = i < p.anchors ? p.labels[i] : 0;
  }

  for (int64_t y0 = first; y0 < last; y0 += kTile) {
    float d2[kPer][kPer];
    tile_distances(p, x0, y0, xs, ys, d2);
#pragma unroll
    for (int b = 0; b < kPer; ++b) {
      const int64_t j = y0 + threadIdx.x * kPer + b;
      if (j >= last) continue;
      const int64_t other = p.ref_labels[j];
#pragma unroll
      for (int a = 0; a < kPer; ++a) {
        const int64_t i = x0 + threadIdx.y * kPer + a;
        if (other != label[a]) {
          offer_negative(negative[a], d2[a][b], j, p.ref_labels);
        } else if (!(p.self_case && i == j)) {
          offer_positive(positive[a], d2[a][b], j);
        }
      }
    }
  }

  // The kSide threads that share an anchor agree on one pick, first of positives, then negatives.
  const int thread = threadIdx.y * kSide + threadIdx.x;
  const int64_t i = x0 + thread;
  const int64_t slot = static_cast<int64_t>(blockIdx.y) * p.anchors + i;
  const bool writes = thread < kTile && i < p.anchors;
#pragma unroll
  for (int a = 0; a < kPer; ++a) picks[threadIdx.y * kPer + a][threadIdx.x] = positive[a];
  __syncthreads();
  if (writes) {
    Pick best = picks[thread][0];
    for (int t = 1; t < kSide; ++t) {
      const Pick next = picks[thread][t];
      if (next.index >= 0) offer_positive(best, next.d2, next.index);
    }
    out.positive[slot] = best.index;
    out.positive_d2[slot] = best.d2;
  }
  __syncthreads();
#pragma unroll
  for (int a = 0; a < kPer; ++a) picks[threadIdx.y * kPer + a][threadIdx.x] = negative[a];
  __syncthreads();
  if (writes) {
    Pick best = picks[thread][0];
    for (int t = 1; t < kSide; ++t) {
      const Pick next = picks[thread][t];
      if (next.index >= 0) offer_negative(best, next.d2, next.index, p.ref_labels);
    }
    out.negative[slot] = best.index;
    out.negative_d2[slot] = best.d2;
  }
}

// One thread an anchor: the best over the splits.
__global__ void __launch_bounds__(kThreads)
    merge_splits_kernel(HardestPairs p, Partials parts, int64_t splits) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (i >= p.anchors) return;
  Pick positive = {0.f, -1};
  Pick negative = {0.f, -1};
  for (int64_t s = 0; s < splits; ++s) {
    const int64_t slot = s * p.anchors + i;
    if (parts.positive[slot] >= 0) {
      offer_positive(positive, parts.positive_d2[slot], parts.positive[slot]);
    }
    if (parts.negative[slot] >= 0) {
      offer_negative(negative, parts.negative_d2[slot], parts.negative[slot], p.ref_labels);
    }
  }
  p.positive[i] = positive.index;
  p.positive_d2[i] = positive.d2;
  p.negative[i] = negative.index;
  p.negative_d2[i] = negative.d2;
}

}  // namespace dmlap::cuda

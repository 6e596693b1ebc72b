// What kernels share that visit the positives of each anchor. A positive's rank is its number among
// its anchor's positives, in column order.
//
// A block has 32 anchors and handles up to 64 positives of each at a time. Each anchor has eight
// threads of a warp: they share the columns of a tile, and each owns every eighth positive.
#pragma once

#include <climits>

#include "dmlap/cuda/windows.h"
#include "tile.cuh"

namespace dmlap::cuda {

using Narrow = Shape<32, 64, 16, 16, 65>;

constexpr int kRanks = 64;  // positives of an anchor that a block handles at a time
constexpr int kRowThreads = kThreads / Narrow::kM;
constexpr int kRowsOfWarp = 32 / kRowThreads;
constexpr int kTable = Narrow::kM * kRanks;  // entries of a table [kM][kRanks]

// The positives of an anchor.
struct Positives {
  int first,
      left_out;  // column of its run; the column in it that is the anchor itself (none: INT_MAX)

  __device__ Positives(const Sides& s, int64_t i) : first(s.first[i]), left_out(own_column(s, i)) {
    if (left_out < first || left_out >= s.last[i]) left_out = INT_MAX;
  }
  __device__ int64_t column(int64_t rank) const {
    const int64_t j = first + rank;
    return j + (j >= left_out ? 1 : 0);
  }
  // The rank of a column of the run; -1 for the anchor itself.
  __device__ int64_t rank(int64_t j) const {
    return j == left_out ? -1 : j - first - (j > left_out ? 1 : 0);
  }
};

__device__ inline int positives_of(const Sides& s, int64_t i) {
  if (i >= s.rows) return 0;
  return s.last[i] - s.first[i] - (Positives(s, i).left_out < INT_MAX ? 1 : 0);
}

__device__ inline int64_t positive_at(const Sides& s, int64_t i, int64_t rank) {
  return Positives(s, i).column(rank);
}

// The number of the `count` positives with ranks in [base, base + most); may be negative.
__device__ inline int ranks_from(int count, int64_t base, int64_t most) {
  return static_cast<int>(least(count - base, most));
}

// The largest value of kOf neighbouring threads of a warp, returned to all of them.
template <int kOf>
__device__ inline int most_of(int value) {
  for (int mask = 1; mask < kOf; mask *= 2) {
    const int other = __shfl_xor_sync(kWholeWarp, value, mask);
    value = other > value ? other : value;
  }
  return value;
}

// The most positives of an anchor of the block, returned to every thread.
__device__ inline int most_positives(const Sides& s, int64_t row0) {
  static_assert(Narrow::kM == 32);
  return most_of<32>(positives_of(s, row0 + threadIdx.x % 32));
}

// The sum over the threads of an anchor, returned to all of them.
template <class T>
__device__ inline T anchor_sum(T value) {
  for (int mask = 1; mask < kRowThreads; mask *= 2) {
    value += __shfl_xor_sync(kWholeWarp, value, mask);
  }
  return value;
}

// A thread's anchor.
struct Anchor {
  int row, part;  // row of the tile; number of the thread among the anchor's
  int64_t i;
  int first, last, count;  // its run of columns, and how many positives are in it
  int own;                 // the column that is the anchor itself, -1 for none
  bool exists;

  __device__ Anchor(const Sides& s, int64_t row0)
      : row(threadIdx.x / kRowThreads), part(threadIdx.x % kRowThreads), i(row0 + row) {
    exists = i < s.rows;
    first = exists ? s.first[i] : 0;
    last = exists ? s.last[i] : 0;
    count = positives_of(s, i);
    own = exists ? own_column(s, i) : -1;
  }

  __device__ bool within(int64_t j) const { return j >= first && j < last; }
  __device__ bool negative(const Sides& s, int64_t j) const {
    return exists && j < s.cols && !within(j) && j != own;
  }
  // Their number.
  __device__ int64_t negatives(const Sides& s) const {
    return s.cols - (last - first) - (own >= 0 && !within(own) ? 1 : 0);
  }
  // Whether the thread owns this positive of an anchor of its warp.
  __device__ bool owns(int row_of_warp, int rank) const {
    return row % kRowsOfWarp == row_of_warp && part == rank % kRowThreads;
  }
};

// Calls visit(row_of_warp, i, rank - base) for the ranks in [base, min(base + kRanks, end)) of the
// warp's anchors. Called by the whole warp.
template <class Visit>
__device__ inline void each_positive(const Sides& s, int64_t row0, int64_t base, int64_t end,
                                     const Visit& visit) {
  for (int r = 0; r < kRowsOfWarp; ++r) {
    const int64_t i = row0 + threadIdx.x / 32 * kRowsOfWarp + r;
    const int ranks = ranks_from(positives_of(s, i), base, least(end - base, kRanks));
    for (int rank = 0; rank < ranks; ++rank) visit(r, i, rank);
  }
}

// Writes the distances of these positives to dp [kM][kRanks], each by its owner.
__device__ inline void positive_distances(const Sides& s, int64_t row0, const Anchor& a,
                                          int64_t base, int64_t end, float* dp) {
  each_positive(s, row0, base, end, [&](int r, int64_t i, int rank) {
    const float d = pair_distance(s, i, positive_at(s, i, base + rank));
    if (a.owns(r, rank)) dp[a.row * kRanks + rank] = d;
  });
}

// Sums over the terms of an anchor.
struct TermSums {
  double total = 0, hinges = 0, count = 0;
  int64_t nonzero = 0, violated = 0;

  __device__ void add(float term, float hinge) {
    total += term;
    hinges += hinge;
    nonzero += term > 0;
    violated += hinge > 0;
  }

  // Adds the sums of the anchor's threads to sums [rows][5]. Called by the whole warp.
  __device__ void write(const Anchor& a, double* sums) const {
    const double found[5] = {anchor_sum(total), anchor_sum(static_cast<double>(nonzero)),
                             anchor_sum(hinges), anchor_sum(static_cast<double>(violated)),
                             anchor_sum(count)};
    if (a.part != 0 || !a.exists) return;
    for (int k = 0; k < 5; ++k) sums[a.i * 5 + k] += found[k];
  }
};

}  // namespace dmlap::cuda

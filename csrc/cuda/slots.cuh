// What kernels share that go through the positives of each anchor by number ("slots").
//
// A block has 32 anchors and takes up to 64 slots of each at a time. Eight threads of a warp have
// an anchor: they share the columns of a tile, and each owns every eighth slot.
#pragma once

#include <climits>

#include "dmlap/cuda/slots.h"
#include "tile.cuh"

namespace dmlap::cuda {

using Narrow = Shape<32, 64, 16, 16, 65>;

constexpr int kSlots = 64;  // of an anchor that a block takes at a time
constexpr int kRowThreads = kThreads / Narrow::kM;
constexpr int kRowsOfWarp = 32 / kRowThreads;
constexpr int kTable = Narrow::kM * kSlots;  // entries of a table [kM][kSlots]

// The positives of an anchor by their slots.
struct Positives {
  int first, left_out;  // of its run; the column in it that is the anchor itself (none: INT_MAX)

  __device__ Positives(const Sides& s, int64_t i) : first(s.first[i]), left_out(own_column(s, i)) {
    if (left_out < first || left_out >= s.last[i]) left_out = INT_MAX;
  }
  __device__ int64_t column(int64_t slot) const {
    const int64_t j = first + slot;
    return j + (j >= left_out ? 1 : 0);
  }
  // Of a column of the run; -1 of the one that is left out.
  __device__ int64_t slot(int64_t j) const {
    return j == left_out ? -1 : j - first - (j > left_out ? 1 : 0);
  }
};

__device__ inline int positives_of(const Sides& s, int64_t i) {
  if (i >= s.rows) return 0;
  return s.last[i] - s.first[i] - (Positives(s, i).left_out < INT_MAX ? 1 : 0);
}

__device__ inline int64_t positive_at(const Sides& s, int64_t i, int64_t slot) {
  return Positives(s, i).column(slot);
}

// How many of `count` positives have slots from `base` on, `most` at most; may be negative.
__device__ inline int slots_from(int count, int64_t base, int64_t most) {
  return static_cast<int>(least(count - base, most));
}

// The largest of a number of neighbouring threads of a warp, the same in all of them.
template <int kOf>
__device__ inline int most_of(int value) {
  for (int mask = 1; mask < kOf; mask *= 2) {
    const int other = __shfl_xor_sync(kWholeWarp, value, mask);
    value = other > value ? other : value;
  }
  return value;
}

// The most positives of the block's anchors, the same in every thread.
__device__ inline int most_positives(const Sides& s, int64_t row0) {
  static_assert(Narrow::kM == 32);
  return most_of<32>(positives_of(s, row0 + threadIdx.x % 32));
}

// The sum over the threads of an anchor, the same in all of them.
template <class T>
__device__ inline T anchor_sum(T value) {
  for (int mask = 1; mask < kRowThreads; mask *= 2) {
    value += __shfl_xor_sync(kWholeWarp, value, mask);
  }
  return value;
}

// A thread's anchor.
struct Anchor {
  int row, part;  // in the tile; of the threads of the anchor
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
  // How many there are.
  __device__ int64_t negatives(const Sides& s) const {
    return s.cols - (last - first) - (own >= 0 && !within(own) ? 1 : 0);
  }
  // Whether the thread owns a slot of one of the anchors of its warp.
  __device__ bool owns(int row_of_warp, int slot) const {
    return row % kRowsOfWarp == row_of_warp && part == slot % kRowThreads;
  }
};

// visit(row_of_warp, i, slot) for the slots [base, base + kSlots) below `end` of the warp's
// anchors, counted from base; by the whole warp.
template <class Visit>
__device__ inline void each_slot(const Sides& s, int64_t row0, int64_t base, int64_t end,
                                 const Visit& visit) {
  for (int r = 0; r < kRowsOfWarp; ++r) {
    const int64_t i = row0 + threadIdx.x / 32 * kRowsOfWarp + r;
    const int slots = slots_from(positives_of(s, i), base, least(end - base, kSlots));
    for (int slot = 0; slot < slots; ++slot) visit(r, i, slot);
  }
}

// Distances to the positives in these slots into dp [kM][kSlots], each written by its owner.
__device__ inline void positive_distances(const Sides& s, int64_t row0, const Anchor& a,
                                          int64_t base, int64_t end, float* dp) {
  each_slot(s, row0, base, end, [&](int r, int64_t i, int slot) {
    const float d = pair_distance(s, i, positive_at(s, i, base + slot));
    if (a.owns(r, slot)) dp[a.row * kSlots + slot] = d;
  });
}

// What the terms of an anchor add up to.
struct TermSums {
  double total = 0, hinges = 0, count = 0;
  int64_t nonzero = 0, violated = 0;

  __device__ void add(float term, float hinge) {
    total += term;
    hinges += hinge;
    nonzero += term > 0;
    violated += hinge > 0;
  }

  // Adds the sums of all threads of the anchor to sums [rows][5]; the whole warp calls.
  __device__ void write(const Anchor& a, double* sums) const {
    const double found[5] = {anchor_sum(total), anchor_sum(static_cast<double>(nonzero)),
                             anchor_sum(hinges), anchor_sum(static_cast<double>(violated)),
                             anchor_sum(count)};
    if (a.part != 0 || !a.exists) return;
    for (int k = 0; k < 5; ++k) sums[a.i * 5 + k] += found[k];
  }
};

}  // namespace dmlap::cuda

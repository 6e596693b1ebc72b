// The forward sweep: goes through tiles of distances and reduces each into a state per anchor.
//
// A policy has
//   State                      what an anchor keeps
//   Params params(i)           what it reads of anchor i
//   visit(state, params, strip)   adds a strip of the anchor's pairs
//   merge(state, other)        adds another state of the anchor; the order of merges is fixed
//   empty()                    the state before the first pair
//   write(i, state)            the results of an anchor
// In the self case only blocks of row groups g <= h are computed, and each pair off the diagonal
// counts for its row and for its column.
#pragma once

#include "dmlap/cuda/sweeps.h"
#include "tile.cuh"

namespace dmlap::cuda {

using Wide = Shape<128, 64, 32, 32, 66>;

// Pairs of one anchor with consecutive partners in a tile, or every second one.
struct Strip {
  const float* distances;
  int pitch;  // between the distances of partners
  int first;  // the first partner
  int step, count;
  int from, to;  // partners [from, to) are positive

  // visit(d, partner, positive)
  template <class Visit>
  __device__ void each(const Visit& visit) const {
    for (int k = 0; k < count; ++k) {
      const int j = first + k * step;
      const float d = distances[k * pitch];
      const bool positive = j >= from && j < to;
      // Columns past the last one are at an infinite distance.
      if (is_left_out(d) || (!positive && d == INFINITY)) continue;
      visit(d, j, positive);
    }
  }
};

// Which rows and columns a block has, and where its states go.
struct Split {
  int groups;      // of columns; results are [groups][rows]
  int64_t length;  // rows and columns of a group, a multiple of Wide's
  bool triangle;   // the self case, by pairs of groups
  bool runs;       // only the columns of the rows' classes, in one group
};

constexpr int64_t kMaxGroups = 32;
constexpr int64_t kWantedBlocks = 1024;

inline Split split_columns(const Sides& s, bool runs) {
  if (runs) return {1, s.cols, false, true};
  if (s.rows == 0) return {0, 0, s.self, false};
  const int64_t tiles = ceil_div(s.cols, Wide::kM);
  // Many anchors fill a GPU without splitting the columns.
  const int64_t wanted = s.self ? kMaxGroups : ceil_div(kWantedBlocks, ceil_div(s.rows, Wide::kM));
  const int64_t groups = tiles < wanted ? tiles : (wanted < kMaxGroups ? wanted : kMaxGroups);
  const int64_t length = groups == 0 ? 0 : ceil_div(tiles, groups) * Wide::kM;
  const int64_t used = groups == 0 ? 0 : ceil_div(s.cols, length);
  return {static_cast<int>(used), length, s.self, false};
}

struct Range {
  int64_t begin, end;
};

struct Work {
  Range rows, columns;
  int row_group, column_group;  // of the results; column_group -1: rows only
};

__device__ inline Work block_work(const Sides& s, const Split& split) {
  if (!split.triangle) {
    const int64_t row0 = static_cast<int64_t>(blockIdx.x) * Wide::kM;
    const Range rows = {row0, least(row0 + Wide::kM, s.rows)};
    if (split.runs) return {rows, {s.first[row0], s.last[rows.end - 1]}, 0, -1};
    const int h = static_cast<int>(blockIdx.y);
    return {rows, {h * split.length, least((h + 1) * split.length, s.cols)}, h, -1};
  }
  int g = 0, left = static_cast<int>(blockIdx.x);
  while (left >= split.groups - g) left -= split.groups - g++;
  const int h = g + left;
  return {{g * split.length, least((g + 1) * split.length, s.rows)},
          {h * split.length, least((h + 1) * split.length, s.cols)},
          h,
          g == h ? -1 : g};
}

template <class Policy>
__device__ inline void visit_row(const Sides& s, const Policy& policy, int64_t i, int64_t col0,
                                 int64_t col_end, const float* scores,
                                 typename Policy::State& own) {
  // Two threads per row, on alternate columns.
  const int half = threadIdx.x % 2, row = threadIdx.x / 2;
  const int64_t first = col0 + half;
  const int count = static_cast<int>(least((col_end - first + 1) / 2, Wide::kN / 2));
  const Strip strip = {scores + row * Wide::kScorePitch + half,
                       2,
                       static_cast<int>(first),
                       2,
                       count,
                       s.first[i],
                       s.last[i]};
  typename Policy::State state = own;
  policy.visit(state, policy.params(i), strip);
  own = state;
}

// Four threads per column, each on a quarter of the rows; then one of them merges.
template <class Policy>
__device__ inline void visit_columns(const Sides& s, const Policy& policy, const Range& rows,
                                     int64_t row0, int64_t col0, const float* scores,
                                     typename Policy::State* exchange,
                                     typename Policy::State* results) {
  constexpr int kQuarter = Wide::kM / 4;
  const int column = threadIdx.x % Wide::kN, quarter = threadIdx.x / Wide::kN;
  const int64_t j = col0 + column, first = row0 + quarter * kQuarter;
  typename Policy::State state = policy.empty();
  if (j < s.cols) {
    const Strip strip = {scores + quarter * kQuarter * Wide::kScorePitch + column,
                         Wide::kScorePitch,
                         static_cast<int>(first),
                         1,
                         static_cast<int>(least(rows.end - first, kQuarter)),
                         s.col_first[j],
                         s.col_last[j]};
    policy.visit(state, policy.params(j), strip);
  }
  exchange[threadIdx.x] = state;
  __syncthreads();
  if (quarter == 0 && j < s.cols) {
    for (int q = 1; q < 4; ++q) policy.merge(state, exchange[q * Wide::kN + column]);
    if (row0 == rows.begin) {
      results[j] = state;
    } else {
      typename Policy::State before = results[j];
      policy.merge(before, state);
      results[j] = before;
    }
  }
}

template <class Policy>
__global__ void __launch_bounds__(kThreads, 2)
    sweep_kernel(Sides s, Policy policy, Split split, typename Policy::State* partials) {
  using State = typename Policy::State;
  float* scores = shared_memory();
  State* exchange = reinterpret_cast<State*>(scores + Wide::kFloats);
  State& own =
      exchange[kThreads + threadIdx.x];  // in shared memory: the products need the registers
  const Work work = block_work(s, split);
  for (int64_t row0 = work.rows.begin; row0 < work.rows.end; row0 += Wide::kM) {
    const int64_t i = least(row0 + threadIdx.x / 2, s.rows - 1);
    own = policy.empty();
    for (int64_t col0 = work.columns.begin; col0 < work.columns.end; col0 += Wide::kN) {
      tile_distances<Wide>(s, row0, col0, scores);
      visit_row(s, policy, i, col0, work.columns.end, scores, own);
      if (work.column_group >= 0) {
        visit_columns(s, policy, work.rows, row0, col0, scores, exchange,
                      partials + work.column_group * s.cols);
      }
      __syncthreads();
    }
    __syncthreads();
    const int64_t row = row0 + threadIdx.x;
    if (threadIdx.x < Wide::kM && row < work.rows.end) {
      const State* halves = exchange + kThreads + 2 * threadIdx.x;
      State both = halves[0];
      policy.merge(both, halves[1]);
      partials[work.row_group * s.rows + row] = both;
    }
    __syncthreads();
  }
}

// One thread per anchor.
template <class Policy>
__global__ void __launch_bounds__(kThreads)
    merge_kernel(int64_t rows, Policy policy, int groups, const typename Policy::State* partials) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (i >= rows) return;
  typename Policy::State state = policy.empty();
  for (int g = 0; g < groups; ++g) policy.merge(state, partials[g * rows + i]);
  policy.write(i, state);
}

// `workspace` holds sweep_workspace(s) bytes.
template <class Policy>
int launch_sweep(const Sides& s, const Policy& policy, bool runs, void* workspace,
                 const Queue& queue) {
  using State = typename Policy::State;
  static_assert(sizeof(State) <= kStateBytes);
  static_assert(Wide::kFloats * sizeof(float) + 2 * kThreads * sizeof(State) <= kMostShared);
  if (s.rows == 0) return 0;
  const Split split = split_columns(s, runs);
  auto* partials = static_cast<State*>(workspace);
  if (s.cols > 0) {
    const auto pairs = static_cast<unsigned>(split.groups * (split.groups + 1) / 2);
    const auto tiles = static_cast<unsigned>(ceil_div(s.rows, Wide::kM));
    const dim3 grid =
        split.triangle ? dim3(pairs) : dim3(tiles, static_cast<unsigned>(split.groups));
    const size_t shared = Wide::kFloats * sizeof(float) + 2 * kThreads * sizeof(State);
    const int status =
        launch(sweep_kernel<Policy>, queue, grid, shared, s, policy, split, partials);
    if (status != 0) return status;
  }
  const dim3 grid(static_cast<unsigned>(ceil_div(s.rows, kThreads)));
  return launch(merge_kernel<Policy>, queue, grid, 0, s.rows, policy, split.groups, partials);
}

}  // namespace dmlap::cuda

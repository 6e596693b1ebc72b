// The k nearest columns of each anchor. Each anchor has a sorted list, in shared memory if it fits,
// and distances enter it in column order. A warp has four anchors; all lanes work on one list.
#include "dmlap/cuda/sweeps.h"
#include "tile.cuh"

namespace dmlap::cuda {

namespace {

using Flat = Shape<32, 128, 16, 32, 129>;

constexpr int kMostOnChip = 128;
static_assert((Flat::kFloats + 2 * Flat::kM * kMostOnChip) * sizeof(float) <= kMostShared);
constexpr int kRowsOfWarp = Flat::kM / (kThreads / 32);

// A list in ascending order. Empty entries are infinite, with column -1.
struct List {
  float* distances;
  int* columns;
  int k;

  __device__ void clear() const {
    for (int at = threadIdx.x % 32; at < k; at += 32) {
      distances[at] = INFINITY;
      columns[at] = -1;
    }
    __syncwarp();
  }

  // Inserts an entry nearer than the last one, after those that tie. Called by the whole warp.
  __device__ void insert(float d, int column) const {
    const int lane = threadIdx.x % 32;
    int place = 0;
    for (int base = 0; base < k; base += 32) {
      const int at = base + lane;
      place += __popc(__ballot_sync(kWholeWarp, at < k && distances[at] <= d));
    }
    for (int base = (k - 1) / 32 * 32; base + 31 >= place && base >= 0; base -= 32) {
      const int at = base + lane;
      const bool moves = at > place && at < k;
      const float before = moves ? distances[at - 1] : d;
      const int column_before = moves ? columns[at - 1] : column;
      __syncwarp();
      if (moves || at == place) {
        distances[at] = before;
        columns[at] = column_before;
      }
      __syncwarp();
    }
  }

  // Offers one entry per lane, in lane order.
  __device__ void offer(float d, int column, bool exists) const {
    const bool wanted = exists && d < distances[k - 1];
    for (unsigned left = __ballot_sync(kWholeWarp, wanted); left != 0; left &= left - 1) {
      const int from = __ffs(left) - 1;
      const float one = __shfl_sync(kWholeWarp, d, from);
      const int its_column = __shfl_sync(kWholeWarp, column, from);
      if (one < distances[k - 1]) insert(one, its_column);
    }
    __syncwarp();
  }
};

struct Lists {
  float* distances;  // [groups][rows][k]
  int* columns;
  int k;

  __device__ List at(int64_t list) const { return {distances + list * k, columns + list * k, k}; }
};

__global__ void __launch_bounds__(kThreads, 2)
    nearest_kernel(Sides s, Lists results, int64_t length) {
  float* distances = shared_memory();
  const int lane = threadIdx.x % 32, row_of_warp = threadIdx.x / 32 * kRowsOfWarp;
  const int64_t row0 = static_cast<int64_t>(blockIdx.x) * Flat::kM;
  const int64_t begin = blockIdx.y * length, end = least(begin + length, s.cols);
  const bool on_chip = results.k <= kMostOnChip;
  float* chip = distances + Flat::kFloats;
  const Lists here = {chip, reinterpret_cast<int*>(chip + Flat::kM * results.k), results.k};
  const auto list_of = [&](int row) {
    return on_chip ? here.at(row) : results.at(blockIdx.y * s.rows + row0 + row);
  };
  const int rows = static_cast<int>(least(s.rows - row0 - row_of_warp, kRowsOfWarp));
  for (int r = 0; r < rows; ++r) list_of(row_of_warp + r).clear();
  for (int64_t col0 = begin; col0 < end; col0 += Flat::kN) {
    tile_distances<Flat>(s, row0, col0, distances);
    for (int r = 0; r < rows; ++r) {
      const int row = row_of_warp + r;
      const List list = list_of(row);
      for (int c = lane; c < Flat::kN; c += 32) {
        const int64_t j = col0 + c;
        const float d = distances[row * Flat::kScorePitch + c];
        list.offer(d, static_cast<int>(j), j < end && !is_left_out(d));
      }
    }
    __syncthreads();
  }
  if (!on_chip) return;
  for (int r = 0; r < rows; ++r) {
    const List from = here.at(row_of_warp + r);
    const List to = results.at(blockIdx.y * s.rows + row0 + row_of_warp + r);
    for (int at = lane; at < results.k; at += 32) {
      to.distances[at] = from.distances[at];
      to.columns[at] = from.columns[at];
    }
  }
}

// Merges the lists of all groups into the first. One warp per row.
__global__ void __launch_bounds__(kThreads)
    merge_lists_kernel(int64_t rows, int groups, Lists lists) {
  const int64_t row = static_cast<int64_t>(blockIdx.x) * (kThreads / 32) + threadIdx.x / 32;
  if (row >= rows) return;
  const List into = lists.at(row);
  for (int g = 1; g < groups; ++g) {
    const List from = lists.at(g * rows + row);
    for (int base = 0; base < lists.k; base += 32) {
      const int at = base + static_cast<int>(threadIdx.x % 32);
      const bool exists = at < lists.k;
      into.offer(exists ? from.distances[at] : INFINITY, exists ? from.columns[at] : -1, exists);
    }
  }
}

}  // namespace

int nearest_groups(const Sides& s) {
  constexpr int64_t kWantedBlocks = 256, kMostGroups = 16;
  const int64_t blocks = ceil_div(s.rows, Flat::kM), tiles = ceil_div(s.cols, Flat::kN);
  int64_t groups = blocks == 0 ? 1 : ceil_div(kWantedBlocks, blocks);
  groups = groups < kMostGroups ? groups : kMostGroups;
  groups = groups < tiles ? groups : tiles;
  return static_cast<int>(groups > 1 ? groups : 1);
}

int launch_nearest(const Sides& s, int k, float* distances, int* columns, const Queue& queue) {
  if (s.rows == 0 || k == 0) return 0;
  const int groups = nearest_groups(s);
  const int64_t length = ceil_div(ceil_div(s.cols, Flat::kN), groups) * Flat::kN;
  const Lists lists = {distances, columns, k};
  const dim3 grid(static_cast<unsigned>(ceil_div(s.rows, Flat::kM)), static_cast<unsigned>(groups));
  const size_t on_chip = k <= kMostOnChip ? size_t{2} * Flat::kM * k : 0;
  const size_t shared = (Flat::kFloats + on_chip) * sizeof(float);
  const int status = launch(nearest_kernel, queue, grid, shared, s, lists, length);
  if (status != 0 || groups == 1) return status;
  const dim3 blocks(static_cast<unsigned>(ceil_div(s.rows, kThreads / 32)));
  return launch(merge_lists_kernel, queue, blocks, 0, s.rows, groups, lists);
}

}  // namespace dmlap::cuda

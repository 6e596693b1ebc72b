// Hinges and smallest distances of negative pairs, by pairs of classes.
//
// A block owns the classes that begin within its 64 rows and those that begin within its 64
// columns, and goes on to their last rows. So each pair of classes belongs to one block.
#include "dmlap/cuda/sweeps.h"
#include "tile.cuh"

namespace dmlap::cuda {

namespace {

using Square = Shape<64, 64, 32, 16, 65>;

// Classes [first, last) and their rows.
struct Classes {
  int64_t first, last, begin, end;
};

// The number of ends below `row`.
__device__ inline int64_t ends_below(const int64_t* ends, int64_t count, int64_t row) {
  int64_t low = 0, high = count;
  while (low < high) {
    const int64_t middle = (low + high) / 2;
    if (ends[middle] < row) {
      low = middle + 1;
    } else {
      high = middle;
    }
  }
  return low;
}

__device__ inline int64_t begin_of(const int64_t* ends, int64_t c) {
  return c == 0 ? 0 : ends[c - 1];
}

// The classes that begin at rows [row, row + 64).
__device__ inline Classes classes_of(const int64_t* ends, int64_t count, int64_t row) {
  const int64_t first = row == 0 ? 0 : least(ends_below(ends, count, row) + 1, count);
  const int64_t last = least(ends_below(ends, count, row + Square::kM) + 1, count);
  if (first >= last) return {0, 0, 0, 0};
  return {first, last, begin_of(ends, first), ends[last - 1]};
}

// Adds what the tile at (row0, col0) holds of a pair of classes.
__device__ inline void add_cell(const Sides& s, const ClassScores& in, int64_t a, int64_t b,
                                int64_t row0, int64_t col0, const float* distances) {
  const int64_t row_begin = begin_of(in.ends_x, a), col_begin = begin_of(in.ends_y, b);
  const int64_t from = row_begin > row0 ? row_begin : row0;
  const int64_t to = least(in.ends_x[a], row0 + Square::kM);
  const int64_t left = col_begin > col0 ? col_begin : col0;
  const int64_t right = least(in.ends_y[b], col0 + Square::kN);
  if (from >= to || left >= right) return;
  if (left >= s.first[from] && left < s.last[from]) return;  // equal labels
  float sum = 0, smallest = INFINITY;
  for (int64_t i = from; i < to; ++i) {
    const float threshold = in.thresholds[i];
    for (int64_t j = left; j < right; ++j) {
      const float d = distances[(i - row0) * Square::kScorePitch + j - col0];
      if (is_left_out(d)) continue;
      sum += fmaxf(threshold - d, 0.f);
      smallest = fminf(smallest, d);
    }
  }
  const int64_t cell = a * in.classes_y + b;
  in.sums[cell] += sum;
  in.smallest[cell] = fminf(in.smallest[cell], smallest);
}

__global__ void __launch_bounds__(kThreads, 2) class_scores_kernel(Sides s, ClassScores in) {
  float* distances = shared_memory();
  const int64_t at = static_cast<int64_t>(blockIdx.x) * Square::kM;
  const Classes rows = classes_of(in.ends_x, in.classes_x, at);
  if (rows.begin == rows.end) return;
  const int64_t col_tiles = ceil_div(s.cols, Square::kN);
  for (int64_t tile = blockIdx.y; tile < col_tiles; tile += gridDim.y) {
    const Classes columns = classes_of(in.ends_y, in.classes_y, tile * Square::kN);
    const int64_t count = columns.last - columns.first;
    for (int64_t row0 = rows.begin; row0 < rows.end; row0 += Square::kM) {
      for (int64_t col0 = columns.begin; col0 < columns.end; col0 += Square::kN) {
        tile_distances<Square>(s, row0, col0, distances);
        // A cell belongs to the same thread in every tile.
        for (int64_t n = threadIdx.x; n < (rows.last - rows.first) * count; n += kThreads) {
          const int64_t a = rows.first + n / count, b = columns.first + n % count;
          add_cell(s, in, a, b, row0, col0, distances);
        }
        __syncthreads();
      }
    }
  }
}

}  // namespace

int launch_class_scores(const Sides& s, const ClassScores& scores, const Queue& queue) {
  if (s.rows == 0 || s.cols == 0) return 0;
  constexpr int64_t kMostParts = 1024;
  const int64_t col_tiles = ceil_div(s.cols, Square::kN);
  const dim3 grid(static_cast<unsigned>(ceil_div(s.rows, Square::kM)),
                  static_cast<unsigned>(col_tiles < kMostParts ? col_tiles : kMostParts));
  return launch(class_scores_kernel, queue, grid, Square::kFloats * sizeof(float), s, scores);
}

}  // namespace dmlap::cuda

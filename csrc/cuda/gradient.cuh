// The backward sweep. A block has kM rows and up to kChunk coordinates of their gradient. It goes
// through the columns, recomputes each tile's distances, turns them into pair weights, and
// multiplies these with the columns' vectors.
//
// With c = w / d for euclidean, 2 w for sqeuclidean, w otherwise, the gradient of row i is
//   sum_j c_ij (x_i - y_j) for squares,  -sum_j c_ij y_j for inner products.
#pragma once

#include "dmlap/cuda/sweeps.h"
#include "tile.cuh"

namespace dmlap::cuda {

// Rows of weights, read as float2, fall into different banks, too.
using Square = Shape<64, 64, 32, 16, 72>;

constexpr int kChunk = 256;  // coordinates of the gradient per block
// Rows 2t and 2t + 1 of eight columns fall into different banks.
constexpr int kChunkPitch = kChunk + 4;
// The chunk reuses the memory of the stages, but not that of the distances.
constexpr int kGradientFloats = Square::kScores + Square::kN * kChunkPitch + Square::kM;
static_assert(kGradientFloats >= Square::kFloats + Square::kM);
static_assert(kGradientFloats * sizeof(float) <= kMostShared);
constexpr int kColumnTiles = 8;  // per warp, of 8 coordinates each

struct Chunk {
  int64_t begin;
  int width;
};

// Loads the chunk's coordinates of the tile's columns, [kN][kChunkPitch].
__device__ inline void load_chunk(const Sides& s, int64_t col0, const Chunk& chunk, float* memory) {
  constexpr int kParts = kChunk / 4;
  for (int n = threadIdx.x; n < Square::kN * kParts; n += kThreads) {
    const int row = n / kParts, k = n % kParts * 4;
    if (k >= chunk.width) continue;
    const int64_t j = least(col0 + row, s.cols - 1);
    copy_async(memory + row * kChunkPitch + k, s.y + j * s.dim + chunk.begin + k);
  }
  commit_copies();
}

// sums += weights [kM][kN] times the chunk [kN][width]; a warp takes 32 rows and 64 coordinates.
template <Precision kPrecision>
__device__ inline void multiply_weights(const float* weights, const float* columns, int width,
                                        float (&sums)[2][kColumnTiles][4]) {
  const int lane = threadIdx.x % 32, g = lane / 4, t = lane % 4, warp = threadIdx.x / 32;
  const int m0 = warp / 4 * 32, n0 = warp % 4 * (8 * kColumnTiles);
  const auto left = [&](int row, int k) {
    return *reinterpret_cast<const float2*>(weights + row * Square::kScorePitch + k + 2 * t);
  };
  for (int k = 0; k < Square::kN; k += 16) {
    FragmentA a[2];
#pragma unroll
    for (int m = 0; m < 2; ++m) {
      const int row = m0 + m * 16 + g;
      a[m] = {{left(row, k), left(row + 8, k)}, {left(row, k + 8), left(row + 8, k + 8)}};
    }
    const float* right = columns + (k + 2 * t) * kChunkPitch + n0 + g;
#pragma unroll
    for (int n = 0; n < kColumnTiles; ++n) {
      if (n0 + n * 8 >= width) continue;
      const float* at = right + n * 8;
      const FragmentB b = {{at[0], at[kChunkPitch]}, {at[8 * kChunkPitch], at[9 * kChunkPitch]}};
#pragma unroll
      for (int m = 0; m < 2; ++m) multiply<kPrecision>(sums[m][n], a[m], b);
    }
  }
}

// Adds near pairs by their differences, which would cancel in the product, and sets their weights
// to 0. A warp has the eight rows whose weights its threads wrote: bit c of `near` is column 4 c +
// lane % 4 of row lane / 4.
__device__ inline void add_near(const Sides& s, int64_t row0, int64_t col0, const Chunk& chunk,
                                unsigned near, float* weights, float* out) {
  const int lane = threadIdx.x % 32;
  __syncwarp();
  for (int from = 0; from < 32; ++from) {
    const int row = threadIdx.x / 32 * 8 + from / 4;
    const int64_t i = row0 + row;
    for (unsigned left = __shfl_sync(kWholeWarp, near, from); left != 0; left &= left - 1) {
      const int column = 4 * (__ffs(left) - 1) + from % 4;
      float* at = weights + row * Square::kScorePitch + column;
      const float c = *at;
      __syncwarp();
      if (lane == 0) *at = 0;
      const float* x = s.x + i * s.dim + chunk.begin;
      const float* y = s.y + (col0 + column) * s.dim + chunk.begin;
      float* sum = out + i * s.dim + chunk.begin;
      for (int k = lane; k < chunk.width; k += 32) sum[k] += c * (x[k] - y[k]);
    }
  }
}

// Turns the tile's distances into factors c and adds those of a row up in `row_sum`. Returns
// whether any is not 0. `weigh` is (j, d, positive) -> w. Four threads per row.
template <class Weigh>
__device__ inline bool fill_weights(const Sides& s, int64_t row0, int64_t col0, int64_t col_end,
                                    const Chunk& chunk, const Weigh& weigh, float* scores,
                                    float& row_sum, float* out) {
  const int row = threadIdx.x / 4, offset = threadIdx.x % 4;
  const int64_t i = row0 + row;
  const bool lives = i < s.rows;
  const int from = lives ? s.first[i] : 0, to = lives ? s.last[i] : 0;
  const bool squares = from_differences(s.distance);
  bool active = false;
  unsigned near = 0;
  float sum = 0;
  for (int n = 0; n < Square::kN / 4; ++n) {
    const int64_t j = col0 + 4 * n + offset;
    float* at = scores + row * Square::kScorePitch + 4 * n + offset;
    const float d = *at;
    const bool positive = j >= from && j < to;
    float c = 0;
    if (lives && j < col_end && !is_left_out(d) && (positive || d != INFINITY)) {
      c = pair_factor(s.distance, weigh(j, d, positive), d);
      if (squares && c != 0) {
        const bool root = s.distance == Distance::euclidean;
        const float square = root ? d * d : d;
        if (square < kNear * (s.x_norms[i] + s.y_norms[j])) {
          near |= 1u << n;
        } else {
          sum += c;
        }
      }
    }
    active = active || c != 0;
    *at = c;
  }
  row_sum += sum;
  if (__any_sync(kWholeWarp, near != 0)) {
    add_near(s, row0, col0, chunk, near, scores, out);
  }
  return active;
}

// out += row_sums x - sums
__device__ inline void write_gradient(const Sides& s, int64_t row0, const Chunk& chunk,
                                      const float (&sums)[2][kColumnTiles][4],
                                      const float* row_sums, float* out) {
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int m0 = warp / 4 * 32, n0 = warp % 4 * (8 * kColumnTiles);
#pragma unroll
  for (int m = 0; m < 2; ++m) {
#pragma unroll
    for (int n = 0; n < kColumnTiles; ++n) {
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        const int row = m0 + m * 16 + e / 2 * 8 + lane / 4;
        const int k = n0 + n * 8 + lane % 4 * 2 + e % 2;
        if (row0 + row >= s.rows || k >= chunk.width) continue;
        const int64_t at = (row0 + row) * s.dim + chunk.begin + k;
        out[at] += row_sums[row] * s.x[at] - sums[m][n][e];
      }
    }
  }
}

// Clears the block's part of out [rows][dim]. gradient_block has a barrier before it adds.
__device__ inline void clear_gradient(const Sides& s, int64_t row0, const Chunk& chunk,
                                      float* out) {
  for (int n = threadIdx.x; n < Square::kM * chunk.width; n += kThreads) {
    const int64_t i = row0 + n / chunk.width;
    if (i < s.rows) out[i * s.dim + chunk.begin + n % chunk.width] = 0;
  }
}

// The order of column tiles: `prepare(col0)` before a tile, then the first column of the next.
struct TileByTile {
  __device__ void prepare(int64_t) const {}
  __device__ int64_t next(int64_t col0) const { return col0 + Square::kN; }
};

// Adds the gradient from columns [begin, end) to `out` [rows][dim], for one block.
// `fill(col0, scores, row_sum)` turns a tile's distances into factors as `fill_weights` does; it
// may use the rest of the kGradientFloats that begin at `scores`.
template <class Fill, class Walk = TileByTile>
__device__ inline void gradient_block(const Sides& s, int64_t row0, const Chunk& chunk,
                                      int64_t begin, int64_t end, float* out, const Fill& fill,
                                      const Walk& walk = {}) {
  float* scores = shared_memory();
  float* columns = scores + Square::kScores;
  float* row_sums = columns + Square::kN * kChunkPitch;
  float sums[2][kColumnTiles][4] = {};
  float row_sum = 0;
  for (int64_t col0 = begin; col0 < end; col0 = walk.next(col0)) {
    walk.prepare(col0);
    tile_distances<Square>(s, row0, col0, scores);
    const bool active = fill(col0, scores, row_sum);
    if (__syncthreads_or(active)) {
      load_chunk(s, col0, chunk, columns);
      wait_copies<0>();
      __syncthreads();
      switch (s.precision) {
        case Precision::highest:
          multiply_weights<Precision::highest>(scores, columns, chunk.width, sums);
          break;
        case Precision::high:
          multiply_weights<Precision::high>(scores, columns, chunk.width, sums);
          break;
        case Precision::medium:
          multiply_weights<Precision::medium>(scores, columns, chunk.width, sums);
          break;
      }
      __syncthreads();
    }
  }
  row_sum += __shfl_xor_sync(kWholeWarp, row_sum, 1);
  row_sum += __shfl_xor_sync(kWholeWarp, row_sum, 2);
  if (threadIdx.x % 4 == 0) row_sums[threadIdx.x / 4] = row_sum;
  __syncthreads();
  write_gradient(s, row0, chunk, sums, row_sums, out);
}

// A block's rows, coordinates and columns: blockIdx.x, .y and .z.
struct GradientWork {
  int64_t row0;
  Chunk chunk;
  int64_t begin, end;
  float* out;
};

__device__ inline GradientWork gradient_work(const Sides& s, int64_t split_length, float* out) {
  const int64_t k = static_cast<int64_t>(blockIdx.y) * kChunk;
  const int64_t split = blockIdx.z;
  return {static_cast<int64_t>(blockIdx.x) * Square::kM,
          {k, static_cast<int>(least(kChunk, s.dim - k))},
          split * split_length,
          least((split + 1) * split_length, s.cols),
          out + split * s.rows * s.dim};
}

// out [n] = sum of parts [splits][n]
static __global__ void __launch_bounds__(kThreads)
    add_splits_kernel(int64_t n, int splits, const float* parts, float* out) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (i >= n) return;
  float sum = 0;
  for (int p = 0; p < splits; ++p) sum += parts[p * n + i];
  out[i] = sum;
}

// Launches a gradient kernel for parts [splits][rows][dim]. Its shared memory is that of
// gradient_block and `more` floats.
template <class In>
int launch_gradient_parts(void (*kernel)(Sides, In, int64_t, float*), const Sides& s, const In& in,
                          int more, float* parts, const Queue& queue) {
  if (s.rows == 0) return 0;
  const int splits = gradient_splits(s);
  const int64_t length = ceil_div(ceil_div(s.cols, Square::kN), splits) * Square::kN;
  const dim3 grid(static_cast<unsigned>(ceil_div(s.rows, Square::kM)),
                  static_cast<unsigned>(ceil_div(s.dim, kChunk)), static_cast<unsigned>(splits));
  const size_t shared = static_cast<size_t>(kGradientFloats + more) * sizeof(float);
  return launch(kernel, queue, grid, shared, s, in, length, parts);
}

// The same, then adds up the parts. The workspace is that of launch_gradient.
template <class In>
int launch_gradient_kernel(void (*kernel)(Sides, In, int64_t, float*), const Sides& s, const In& in,
                           int more, float* out, float* workspace, const Queue& queue) {
  const int splits = gradient_splits(s);
  float* parts = splits == 1 ? out : workspace;
  const int status = launch_gradient_parts(kernel, s, in, more, parts, queue);
  if (status != 0 || splits == 1 || s.rows == 0) return status;
  const int64_t n = s.rows * s.dim;
  const dim3 blocks(static_cast<unsigned>(ceil_div(n, kThreads)));
  return launch(add_splits_kernel, queue, blocks, 0, n, splits, parts, out);
}

}  // namespace dmlap::cuda

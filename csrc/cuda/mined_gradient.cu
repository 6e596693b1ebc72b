// Gradients of mined triplets. Each row gathers its own pairs. They are few, so a warp takes them
// from differences, without tiles.
#include "windows.cuh"

namespace dmlap::cuda {

namespace {

constexpr int kWarps = kThreads / 32;
constexpr int kOwned = 4;  // references per warp, when it gathers negative pairs

__device__ inline int64_t warp_number() {
  return static_cast<int64_t>(blockIdx.x) * kWarps + threadIdx.x / 32;
}

// Adds to the gradients of the anchors.
__global__ void __launch_bounds__(kThreads) anchors_kernel(Sides s, MinedPairs in, float* gx) {
  const int64_t i = warp_number();
  const int ranks = ranks_from(positives_of(s, i), in.window.base, in.window.ranks);
  const bool squares = from_differences(s.distance);
  if (ranks <= 0) return;
  const Positives positives(s, i);
  for (int64_t k = threadIdx.x % 32; k < s.dim; k += 32) {
    const float x = s.x[i * s.dim + k];
    float sum = 0;
    for (int rank = 0; rank < ranks; ++rank) {
      const int64_t at = rank * s.rows + i, n = in.negative[at];
      if (n < 0) continue;
      const int64_t p = positives.column(in.window.base + rank);
      sum += pull(squares, in.anchor_positive[at], x, s.y[p * s.dim + k]);
      sum -= pull(squares, in.anchor_negative[at], x, s.y[n * s.dim + k]);
    }
    gx[i * s.dim + k] += sum;
  }
}

// Adds to the gradient of reference j as the positive of the anchors of its class.
__device__ inline void add_as_positive(const Sides& s, const MinedPairs& in, int64_t j, float* gy) {
  const int begin = s.col_first[j], end = s.col_last[j];
  if (begin == end) return;
  // The rank is one less if the anchor itself comes before the reference.
  const int64_t place = j - s.first[begin] - in.window.base;
  if (place < 0 || place > in.window.ranks) return;
  const bool squares = from_differences(s.distance);
  for (int64_t k = threadIdx.x % 32; k < s.dim; k += 32) {
    const float y = s.y[j * s.dim + k];
    float sum = 0;
    for (int64_t i = begin; i < end; ++i) {
      const int64_t rank = Positives(s, i).rank(j) - in.window.base;
      if (rank < 0 || rank >= in.window.ranks) continue;
      const int64_t at = rank * s.rows + i, n = in.negative[at];
      if (n < 0) continue;
      sum += pull(squares, in.anchor_positive[at], y, s.x[i * s.dim + k]);
      if (in.positive_negative == nullptr) continue;
      sum -= pull(squares, in.positive_negative[at], y, s.y[n * s.dim + k]);
    }
    gy[j * s.dim + k] += sum;
  }
}

// Adds to the gradient of a reference as the negative that an anchor's positive met.
__device__ inline void add_as_negative(const Sides& s, const MinedPairs& in, int64_t i, int rank,
                                       int64_t n, float* gy) {
  const bool squares = from_differences(s.distance), swap = in.positive_negative != nullptr;
  const int64_t at = rank * s.rows + i;
  const int64_t p = positive_at(s, i, in.window.base + rank);
  for (int64_t k = threadIdx.x % 32; k < s.dim; k += 32) {
    const float y = s.y[n * s.dim + k];
    float sum = pull(squares, in.anchor_negative[at], y, s.x[i * s.dim + k]);
    if (swap) sum += pull(squares, in.positive_negative[at], y, s.y[p * s.dim + k]);
    gy[n * s.dim + k] -= sum;
  }
}

// Four blocks per multiprocessor: for a fifth the compiler would spill on sm_100.
__global__ void __launch_bounds__(kThreads, 4)
    references_kernel(Sides s, MinedPairs in, float* gy) {
  const int64_t from = warp_number() * kOwned, to = least(from + kOwned, s.cols);
  if (*in.largest <= in.window.base) return;
  for (int64_t j = from; j < to; ++j) add_as_positive(s, in, j, gy);
  if (from >= to) return;
  for (int64_t i0 = 0; i0 < s.rows; i0 += 32) {
    const int64_t i = i0 + threadIdx.x % 32;
    const int ranks = ranks_from(positives_of(s, i), in.window.base, in.window.ranks);
    const int most = most_of<32>(ranks);
    for (int rank = 0; rank < most; ++rank) {
      const int n = rank < ranks ? in.negative[rank * s.rows + i] : -1;
      for (unsigned left = __ballot_sync(kWholeWarp, n >= from && n < to); left != 0;
           left &= left - 1) {
        const int lane = __ffs(left) - 1;
        add_as_negative(s, in, i0 + lane, rank, __shfl_sync(kWholeWarp, n, lane), gy);
      }
    }
  }
}

}  // namespace

int launch_mined_gradient(const Sides& s, const MinedPairs& pairs, bool references, float* out,
                          const Queue& queue) {
  if (s.rows == 0 || s.cols == 0) return 0;
  const auto kernel = references ? references_kernel : anchors_kernel;
  const int64_t blocks = references ? ceil_div(s.cols, kWarps * kOwned) : ceil_div(s.rows, kWarps);
  return launch(kernel, queue, dim3(static_cast<unsigned>(blocks)), 0, s, pairs, out);
}

}  // namespace dmlap::cuda

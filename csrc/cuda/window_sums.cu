// Losses of each positive pair against every negative: all triplets, with or without swap; angular.
#include "windows.cuh"

namespace dmlap::cuda {

namespace {

// Shared memory: a tile of the anchors; dp and values [kM][kRanks]; the columns of the positives of
// one rank; a tile of those positives.
constexpr int kSumsFloats = Narrow::kFloats + 2 * kTable + Narrow::kM;
constexpr size_t kSumsShared = kSumsFloats * sizeof(float);
constexpr size_t kThirdShared = (kSumsFloats + Narrow::kFloats) * sizeof(float);
static_assert(kThirdShared <= kMostShared);
static_assert(kSumsFloats % 4 == 0);  // copies of 16 bytes

// Angular always has the third distance.
template <bool kThird>
__device__ inline bool angular(const WindowRule& rule) {
  return kThird && rule.kind == WindowKind::angular;
}

// Goes through the thread's columns of a tile for one positive of its anchor. Adds the terms to
// `sums`; returns the sum over negatives that backward, or the angular term, needs.
template <bool kThird>
__device__ inline float visit_positive(const Sides& s, const WindowSumsIn& in, const Anchor& a,
                                       int64_t col0, float inner, const float* distances,
                                       const float* of_positive, TermSums& sums) {
  const WindowRule& rule = in.rule;
  float value = 0, total = 0, hinges = 0;
  int nonzero = 0, violated = 0;
  for (int n = a.part; n < Narrow::kN; n += kRowThreads) {
    if (!a.negative(s, col0 + n)) continue;
    const float d = distances[n];
    if (angular<kThird>(rule)) {
      value += expf(rule.angular.exponent(2 - d - of_positive[n]));
      continue;
    }
    const float third = kThird ? of_positive[n] : INFINITY;
    if (in.weight != nullptr) {
      value += rule.triplet.derive(inner, d, third).by[0];
      continue;
    }
    const float violation = rule.triplet.violation(inner, rule.triplet.nearer(d, third));
    const float term = rule.triplet.term(violation);
    total += term;
    hinges += hinge(violation);
    nonzero += term > 0;
    violated += violation > 0;
  }
  sums.total += total;
  sums.hinges += hinges;
  sums.nonzero += nonzero;
  sums.violated += violated;
  return value;
}

// Called by a positive's owner once all its negatives are visited.
template <bool kThird>
__device__ inline void finish_positive(const Sides& s, const WindowSumsIn& in,
                                       const WindowSumsOut& out, int64_t i, int64_t rank,
                                       float inner, float value, TermSums& sums) {
  if (in.weight == nullptr) {
    if (!angular<kThird>(in.rule)) return;
    const auto term = static_cast<float>(in.rule.angular.term<double>(1 - inner, value));
    sums.add(term, term);
    return;
  }
  const int64_t to = (rank - in.window.base) * s.rows + i;
  const double weight = in.weight[i];
  out.distance[to] = inner;
  if (!angular<kThird>(in.rule)) {
    out.by_distance[to] = static_cast<float>(weight * value);
    return;
  }
  const Dual<double, 2> term = in.rule.angular.derive(1 - inner, value);
  out.by_distance[to] = static_cast<float>(-weight * term.by[0]);
  out.by_sum[to] = static_cast<float>(weight * term.by[1]);
}

// kThird: WindowRule::third().
template <bool kThird>
__global__ void __launch_bounds__(kThreads, kThird ? 1 : 2)
    window_sums_kernel(Sides s, Sides among, WindowSumsIn in, WindowSumsOut out) {
  float* scores = shared_memory();
  float* dp = scores + Narrow::kFloats;
  float* values = dp + kTable;
  int* positives = reinterpret_cast<int*>(values + kTable);
  float* others = scores + kSumsFloats;
  const int64_t row0 = static_cast<int64_t>(blockIdx.x) * Narrow::kM;
  const Anchor a(s, row0);
  const int64_t end = least(in.window.base + in.window.ranks, most_positives(s, row0));
  const float* distances = scores + a.row * Narrow::kScorePitch;
  for (int64_t base = in.window.base; base < end; base += kRanks) {
    const int most = static_cast<int>(least(end - base, kRanks));
    const int ranks = ranks_from(a.count, base, most);
    TermSums sums;
    positive_distances(s, row0, a, base, end, dp);
    for (int rank = a.part; rank < ranks; rank += kRowThreads) values[a.row * kRanks + rank] = 0;
    for (int64_t col0 = 0; col0 < s.cols; col0 += Narrow::kN) {
      tile_distances<Narrow>(s, row0, col0, scores);
      for (int rank = 0; rank < most; ++rank) {
        if (kThird) {
          if (a.part == 0) {
            positives[a.row] =
                rank < ranks ? static_cast<int>(positive_at(s, a.i, base + rank)) : 0;
          }
          __syncthreads();
          distances_of<Narrow>(among, Listed{positives}, col0, others);
        }
        const int at = a.row * kRanks + rank;
        float value = 0;
        if (rank < ranks) {
          value = visit_positive<kThird>(s, in, a, col0, dp[at], distances,
                                         others + a.row * Narrow::kScorePitch, sums);
        }
        value = anchor_sum(value);
        if (rank < ranks && rank % kRowThreads == a.part) values[at] += value;
      }
      __syncthreads();
    }
    for (int rank = a.part; rank < ranks; rank += kRowThreads) {
      const int at = a.row * kRanks + rank;
      finish_positive<kThird>(s, in, out, a.i, base + rank, dp[at], values[at], sums);
    }
    if (in.weight != nullptr) continue;
    if (a.part == 0 && ranks > 0) sums.count = ranks * static_cast<double>(a.negatives(s));
    sums.write(a, out.sums);
  }
}

}  // namespace

int launch_window_sums(const Sides& s, const Sides& among, const WindowSumsIn& in,
                       const WindowSumsOut& out, const Queue& queue) {
  if (s.rows == 0 || s.cols == 0) return 0;
  const dim3 grid(static_cast<unsigned>(ceil_div(s.rows, Narrow::kM)));
  if (in.rule.third()) {
    return launch(window_sums_kernel<true>, queue, grid, kThirdShared, s, among, in, out);
  }
  return launch(window_sums_kernel<false>, queue, grid, kSumsShared, s, among, in, out);
}

}  // namespace dmlap::cuda

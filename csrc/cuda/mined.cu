// Triplets of each positive pair with one negative: the semi-hard one, or one drawn by distance.
#include "windows.cuh"

namespace dmlap::cuda {

namespace {

// The positives that a block mines for at a time: ranks [base, base + ranks) of each anchor. A
// miner writes their negatives to columns [kM][kRanks], -1 for none. `scores` holds a tile;
// `scratch` is as large as dp.
struct Group {
  int64_t row0, base;
  int ranks, most;  // of the thread's anchor; the most of an anchor of its warp
  const float* dp;
  float* scores;
  float* scratch;
  int* columns;

  // Gives this negative to the ranks that have none.
  __device__ void fill(const Anchor& a, int column) const {
    for (int rank = a.part; rank < ranks; rank += kRowThreads) {
      int& place = columns[a.row * kRanks + rank];
      if (place < 0) place = column;
    }
    __syncwarp();
  }
};

// The nearest negative beyond the positive, else the farthest. Ties go to the lower column.
struct Semihard {
  struct Found {
    float d;
    int column;  // -1: none

    __device__ void offer(float other, int j, float sign) {
      if (j < 0) return;
      const float ahead = sign * (d - other);
      if (column >= 0 && (ahead < 0 || (!(ahead > 0) && j > column))) return;
      d = other;
      column = j;
    }
    // The best of the anchor's threads.
    __device__ void meet(float sign) {
      for (int mask = 1; mask < kRowThreads; mask *= 2) {
        const float other = __shfl_xor_sync(kWholeWarp, d, mask);
        offer(other, __shfl_xor_sync(kWholeWarp, column, mask), sign);
      }
    }
  };

  static constexpr int kBlocks = 2;  // per multiprocessor
  // 1: the least distance; -1: the greatest.
  static constexpr float kNearest = 1, kFarthest = -1;

  __device__ static void mine(const Sides& s, const MinedIn&, const Anchor& a, const Group& g) {
    Found far = {0, -1};
    for (int64_t col0 = 0; col0 < s.cols; col0 += Narrow::kN) {
      tile_distances<Narrow>(s, g.row0, col0, g.scores);
      const float* distances = g.scores + a.row * Narrow::kScorePitch;
      for (int n = a.part; n < Narrow::kN; n += kRowThreads) {
        if (a.negative(s, col0 + n)) {
          far.offer(distances[n], static_cast<int>(col0) + n, kFarthest);
        }
      }
      for (int rank = 0; rank < g.most; ++rank) {
        const int at = a.row * kRanks + rank;
        const float inner = rank < g.ranks ? g.dp[at] : INFINITY;
        Found best = {0, -1};
        for (int n = a.part; n < Narrow::kN; n += kRowThreads) {
          if (distances[n] > inner && a.negative(s, col0 + n)) {
            best.offer(distances[n], static_cast<int>(col0) + n, kNearest);
          }
        }
        best.meet(kNearest);
        if (a.part != 0) continue;
        Found before = {0, -1};
        if (col0 > 0) before = {g.scratch[at], g.columns[at]};
        before.offer(best.d, best.column, kNearest);
        g.scratch[at] = before.d;
        g.columns[at] = before.column;
      }
      __syncthreads();
    }
    far.meet(kFarthest);
    g.fill(a, far.column);
  }
};

// Draws a negative: the first at which the running sum of the weights, in column order, exceeds the
// positive's random number times their total.
struct Drawn {
  static constexpr int kBlocks = 1;  // float64 needs the registers
  // Consecutive columns of a tile per thread, because the sum runs in column order.
  static constexpr int kRun = Narrow::kN / kRowThreads;

  // log of the weight of a negative at distance d; -inf for a weight of 0.
  __device__ static double log_weight(const DistanceWeights& w, Distance distance, float d) {
    double square = d;
    if (distance == Distance::euclidean) square *= square;
    if (distance == Distance::cosine) square = square > 0 ? 2 * square : 0;
    const double clipped = square > w.low ? square : w.low, rest = 1 - clipped / 4;
    if (!(square < w.high && rest > 0 && clipped > 0)) return -INFINITY;
    return w.closeness * log(clipped) + w.farness * log(rest);
  }

  // Calls visit(j, log weight) for the thread's columns that may be drawn, until it returns false.
  template <class Visit>
  __device__ static void each(const Sides& s, const DistanceWeights& w, const Anchor& a,
                              int64_t col0, const float* scores, const Visit& visit) {
    for (int n = a.part * kRun; n < (a.part + 1) * kRun; ++n) {
      if (!a.negative(s, col0 + n)) continue;
      const double weight = log_weight(w, s.distance, scores[a.row * Narrow::kScorePitch + n]);
      if (weight > -INFINITY && !visit(static_cast<int>(col0) + n, weight)) return;
    }
  }

  // log of an anchor's largest weight, and the sum of its weights relative to that one.
  struct Total {
    double top = -INFINITY, sum = 0;

    __device__ void add(double other_top, double other) {
      if (other_top == -INFINITY) return;
      const double higher = top > other_top ? top : other_top;
      sum = sum * exp(top - higher) + other * exp(other_top - higher);
      top = higher;
    }
  };

  __device__ static Total total_of(const Sides& s, const DistanceWeights& w, const Anchor& a,
                                   const Group& g, double* exchange) {
    Total mine;
    for (int64_t col0 = 0; col0 < s.cols; col0 += Narrow::kN) {
      tile_distances<Narrow>(s, g.row0, col0, g.scores);
      each(s, w, a, col0, g.scores, [&](int, double weight) {
        mine.add(weight, 1);
        return true;
      });
      __syncthreads();
    }
    exchange[threadIdx.x] = mine.top;
    exchange[kThreads + threadIdx.x] = mine.sum;
    __syncwarp();
    // All threads of an anchor add in the same order and so get the same bits.
    Total all;
    const double* parts = exchange + a.row * kRowThreads;
    for (int q = 0; q < kRowThreads; ++q) all.add(parts[q], parts[kThreads + q]);
    return all;
  }

  __device__ static void mine(const Sides& s, const MinedIn& in, const Anchor& a, const Group& g) {
    auto* exchange = reinterpret_cast<double*>(g.scratch);
    const DistanceWeights& w = in.draw;
    const Total total = total_of(s, w, a, g, exchange);
    for (int rank = a.part; rank < g.ranks; rank += kRowThreads) {
      g.columns[a.row * kRanks + rank] = -1;
    }
    double running = 0;
    int final_column = -1;
    for (int64_t col0 = 0; col0 < s.cols; col0 += Narrow::kN) {
      tile_distances<Narrow>(s, g.row0, col0, g.scores);
      double own = 0;
      each(s, w, a, col0, g.scores, [&](int j, double weight) {
        const double share = exp(weight - total.top);
        own += share;
        if (share > 0) final_column = j;
        return true;
      });
      exchange[threadIdx.x] = own;
      __syncwarp();
      double before = running, after = running;
      for (int q = 0; q < kRowThreads; ++q) {
        const double next = running + exchange[a.row * kRowThreads + q];
        if (q == a.part) {
          before = running;
          after = next;
        }
        running = next;
      }
      for (int rank = 0; rank < g.ranks && before < after; ++rank) {
        const double bound = in.draw.uniform01(in.numbers[a.i], g.base + rank) * total.sum;
        if (!(before <= bound && bound < after)) continue;
        double sum = 0;
        int& column = g.columns[a.row * kRanks + rank];
        each(s, w, a, col0, g.scores, [&](int j, double weight) {
          const double share = exp(weight - total.top);
          sum += share;
          if (share > 0) column = j;
          return !(before + sum > bound);
        });
      }
      __syncthreads();
    }
    // Rounding may put the number at the total itself.
    g.fill(a, most_of<kRowThreads>(final_column));
  }
};

// Adds the terms of a group's triplets, or stores what backward needs. Called by whole warps.
__device__ inline void mined_terms(const Sides& s, const Sides& among, const MinedIn& in,
                                   const MinedOut& out, const Anchor& a, const Group& g,
                                   int64_t end, TermSums& sums) {
  const bool forward = in.weight == nullptr;
  each_positive(s, g.row0, g.base, end, [&](int r, int64_t i, int rank) {
    const int row = threadIdx.x / 32 * kRowsOfWarp + r;
    const int n = g.columns[row * kRanks + rank];
    const int64_t to = (g.base - in.window.base + rank) * s.rows + i;
    if (n < 0) {
      if (!forward && a.owns(r, rank)) out.negative[to] = -1;
      return;
    }
    const Triplet<float>& rule = in.rule;
    const float d_an = pair_distance(s, i, n);
    const float d_pn =
        rule.swap ? pair_distance(among, positive_at(s, i, g.base + rank), n) : INFINITY;
    if (!a.owns(r, rank)) return;
    const float d_ap = g.dp[row * kRanks + rank];
    if (forward) {
      const float violation = rule.violation(d_ap, rule.nearer(d_an, d_pn));
      sums.add(rule.term(violation), hinge(violation));
      sums.count += 1;
      return;
    }
    const float weight = in.weight[i];
    const Dual<float, 3> term = rule.derive(d_ap, d_an, d_pn);
    out.negative[to] = n;
    out.anchor_positive[to] = pair_factor(s.distance, weight * term.by[0], d_ap);
    out.anchor_negative[to] = pair_factor(s.distance, -weight * term.by[1], d_an);
    if (rule.swap) {
      out.positive_negative[to] = pair_factor(s.distance, -weight * term.by[2], d_pn);
    }
  });
}

constexpr size_t kMinedShared = (Narrow::kFloats + 3 * kTable) * sizeof(float);
static_assert(kMinedShared <= kMostShared);
static_assert(kTable * sizeof(float) >= 2 * kThreads * sizeof(double));
static_assert(Narrow::kFloats * sizeof(float) % sizeof(double) == 0);

template <class Miner>
__global__ void __launch_bounds__(kThreads, Miner::kBlocks)
    mined_kernel(Sides s, Sides among, MinedIn in, MinedOut out) {
  float* scores = shared_memory();
  float* dp = scores + Narrow::kFloats;
  float* scratch = dp + kTable;
  int* columns = reinterpret_cast<int*>(scratch + kTable);
  const int64_t row0 = static_cast<int64_t>(blockIdx.x) * Narrow::kM;
  const Anchor a(s, row0);
  const int64_t end = least(in.window.base + in.window.ranks, most_positives(s, row0));
  for (int64_t base = in.window.base; base < end; base += kRanks) {
    const int ranks = ranks_from(a.count, base, least(end - base, kRanks));
    const Group group = {row0, base, ranks, most_of<32>(ranks), dp, scores, scratch, columns};
    positive_distances(s, row0, a, base, end, dp);
    Miner::mine(s, in, a, group);
    TermSums sums;
    mined_terms(s, among, in, out, a, group, end, sums);
    if (in.weight == nullptr) sums.write(a, out.sums);
  }
}

}  // namespace

int launch_mined(const Sides& s, const Sides& among, const MinedIn& in, const MinedOut& out,
                 const Queue& queue) {
  if (s.rows == 0 || s.cols == 0) return 0;
  const dim3 grid(static_cast<unsigned>(ceil_div(s.rows, Narrow::kM)));
  const auto run = [&](auto kernel) {
    return launch(kernel, queue, grid, kMinedShared, s, among, in, out);
  };
  return in.mining == Mining::semihard ? run(mined_kernel<Semihard>) : run(mined_kernel<Drawn>);
}

}  // namespace dmlap::cuda

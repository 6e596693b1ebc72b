// Gradients of what window_sums.cu computes, for one window of positives.
//
// A pair of a tile is an anchor with a negative or, if the third distance counts, a positive with a
// negative. That anchor or positive is called a member here. It is the pair's row, its column, or
// each in turn. Its partners complete the triplets: an anchor's positives, or a positive's anchors.
#include "gradient.cuh"
#include "windows.cuh"

namespace dmlap::cuda {

namespace {

// Between the tile's distances and the rows for the product lie the weights of its pairs, and the
// distances of its negatives to the members' partners.
constexpr int kThirdAt = Square::kScores;
constexpr int kWeightsAt = kThirdAt + Square::kFloats;
static_assert(kWeightsAt + Square::kScores <= kGradientFloats);
static_assert(kThirdAt % 4 == 0);  // copies of 16 bytes

// The partners of a member whose pairs may lie in the window.
struct Partners {
  int64_t first;  // rank within the window, or anchor
  int count;
};

// A partner: where its pair lies in the tables [ranks][anchors], -1 for none, and the row to which
// the third distance goes.
struct Partner {
  int64_t at, anchor;
  int row;
};

// All anchors, or all positives, as members.
struct Members {
  const Sides& s;
  const WindowPairs& in;
  bool positives;

  __device__ int64_t number() const { return positives ? s.cols : s.rows; }

  __device__ Partners partners(int64_t m) const {
    if (m >= number()) return {0, 0};
    if (!positives) return {0, ranks_from(positives_of(s, m), in.window.base, in.window.ranks)};
    const int begin = s.col_first[m], count = s.col_last[m] - begin;
    if (count == 0) return {0, 0};
    // The rank is one less if the anchor itself comes before the member.
    const int64_t rank = m - s.first[begin] - in.window.base;
    const bool in_window = rank >= 0 && rank <= in.window.ranks;
    return {begin, in_window ? count : 0};
  }

  __device__ Partner partner(int64_t m, const Partners& of, int k) const {
    if (k >= of.count) return {-1, 0, 0};
    if (!positives) {
      return {k * s.rows + m, m, static_cast<int>(positive_at(s, m, in.window.base + k))};
    }
    const int64_t i = of.first + k;
    const int64_t rank = Positives(s, i).rank(m) - in.window.base;
    if (rank < 0 || rank >= in.window.ranks) return {-1, 0, 0};
    return {rank * s.rows + i, i, static_cast<int>(i)};
  }

  // d loss / d d of a member and a row of another class, which is a negative unless it is the
  // anchor itself. `other` is the third distance.
  __device__ float weight(const Partner& p, int64_t opposite, float d, float other) const {
    if (p.at < 0 || own_column(s, p.anchor) == opposite) return 0;
    const WindowRule& rule = in.rule;
    if (rule.kind == WindowKind::angular) {
      const float power = expf(rule.angular.exponent(2 - d - other));
      return -rule.angular.spread * in.by_sum[p.at] * power;
    }
    const float third = rule.third() ? other : INFINITY;
    return in.weight[p.anchor] * rule.triplet.derive(in.distance[p.at], d, third).by[1];
  }
};

// A block's tile: 64 rows and 64 columns.
struct Tile {
  int64_t row0, col0;
};

// Adds the weights of the tile's negative pairs whose rows, or columns, are members. Four threads
// per row, on the same columns as in fill_weights.
__device__ inline void add_members(const Sides& g, const Sides& third, const Members& members,
                                   const Tile& tile, bool members_are_rows, float* scores,
                                   int* list) {
  const int row = threadIdx.x / 4, offset = threadIdx.x % 4;
  const int64_t i = tile.row0 + row;
  const bool lives = i < g.rows;
  const int from = lives ? g.first[i] : 0, to = lives ? g.last[i] : 0;
  const int64_t member0 = members_are_rows ? tile.row0 : tile.col0;
  const int64_t opposite0 = members_are_rows ? tile.col0 : tile.row0;
  // One round per partner of the member that has most.
  const int64_t listed = member0 + threadIdx.x % Square::kM;
  const Partners of_listed = members.partners(listed);
  const int other_half =
      most_of<32>(members.partners(member0 + (threadIdx.x + 32) % Square::kM).count);
  const int own_half = most_of<32>(of_listed.count);
  const int rounds = own_half > other_half ? own_half : other_half;
  const bool has_third = members.in.rule.third();
  for (int k = 0; k < rounds; ++k) {
    if (has_third) {
      if (threadIdx.x < Square::kM) list[threadIdx.x] = members.partner(listed, of_listed, k).row;
      __syncthreads();
      distances_of<Square>(third, Listed{list}, opposite0, scores + kThirdAt);
    }
    for (int n = offset; n < Square::kN && lives; n += 4) {
      const int64_t j = tile.col0 + n;
      if (j >= g.cols || (j >= from && j < to)) continue;
      const int64_t m = members_are_rows ? i : j;
      const int across =
          members_are_rows ? row * Square::kScorePitch + n : n * Square::kScorePitch + row;
      const Partner partner = members.partner(m, members.partners(m), k);
      const int at = row * Square::kScorePitch + n;
      const float other = has_third ? scores[kThirdAt + across] : 0.f;
      scores[kWeightsAt + at] +=
          members.weight(partner, members_are_rows ? j : i, scores[at], other);
    }
  }
}

// d loss / d d of the positive pair of an anchor and column j of its run.
__device__ inline float positive_weight(const Sides& s, const WindowPairs& in, int64_t i,
                                        int64_t j) {
  const int64_t rank = Positives(s, i).rank(j) - in.window.base;
  return rank >= 0 && rank < in.window.ranks ? in.by_distance[rank * s.rows + i] : 0.f;
}

struct WindowGradient {
  Sides s, among;
  WindowPairs pairs;
};

__global__ void __launch_bounds__(kThreads, 1)
    window_gradient_kernel(Sides g, WindowGradient in, int64_t split_length, float* parts) {
  const WindowPairs& pairs = in.pairs;
  if (*pairs.largest <= pairs.window.base) return;
  const GradientWork work = gradient_work(g, split_length, parts);
  const bool positives = pairs.rows == WindowRows::positives;
  const Members members = {in.s, pairs, positives};
  int* list = reinterpret_cast<int*>(shared_memory() + kGradientFloats);
  const int64_t i = work.row0 + threadIdx.x / 4;
  const auto fill = [&](int64_t col0, float* scores, float& row_sum) {
    float* mine = scores + kWeightsAt + threadIdx.x / 4 * Square::kScorePitch;
    for (int n = threadIdx.x % 4; n < Square::kN; n += 4) mine[n] = 0;
    for (int side = 0; side < 2; ++side) {
      if (pairs.rows == (side == 0 ? WindowRows::references : WindowRows::anchors)) continue;
      add_members(g, positives ? in.s : in.among, members, {work.row0, col0}, side == 0, scores,
                  list);
    }
    const auto weigh = [&](int64_t j, float, bool positive) {
      if (!positive) return mine[j - col0];
      if (positives) return 0.f;
      float w = 0;
      if (pairs.rows != WindowRows::references) w += positive_weight(in.s, pairs, i, j);
      if (pairs.rows != WindowRows::anchors) w += positive_weight(in.s, pairs, j, i);
      return w;
    };
    return fill_weights(g, work.row0, col0, work.end, work.chunk, weigh, scores, row_sum, work.out);
  };
  gradient_block(g, work.row0, work.chunk, work.begin, work.end, work.out, fill);
}

}  // namespace

int launch_window_gradient(const Sides& rows, const Sides& s, const Sides& among,
                           const WindowPairs& pairs, float* parts, const Queue& queue) {
  if (s.rows == 0 || s.cols == 0) return 0;
  const WindowGradient in = {s, among, pairs};
  return launch_gradient_parts(window_gradient_kernel, rows, in, Square::kM, parts, queue);
}

}  // namespace dmlap::cuda

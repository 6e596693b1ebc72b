// Gradients of what slot_sums.cu computes, for a window of slots.
//
// A pair of a tile can be one of an anchor or, where the third distance plays a part, of a positive
// with a negative. Such a member of triplets is the row, the column, or in turn both; its partners
// are the anchor's positives, or the anchors of which it is a positive.
#include "gradient.cuh"
#include "slots.cuh"

namespace dmlap::cuda {

namespace {

// The weights of a tile's pairs, and distances of negatives to partners of its members, have the
// memory between the distances and the rows that these are multiplied with later.
constexpr int kThirdAt = Square::kScores;
constexpr int kWeightsAt = kThirdAt + Square::kFloats;
static_assert(kWeightsAt + Square::kScores <= kGradientFloats);
static_assert(kThirdAt % 4 == 0);  // copies of 16 bytes

// Partners of a member that may have a slot in the window.
struct Partners {
  int64_t first;  // slot of the window; or anchor
  int count;
};

// A partner: the place of its pair in the tables [slots][anchors], and the row of the third
// distance. at -1: none.
struct Partner {
  int64_t at, anchor;
  int row;
};

// Members of triplets: anchors, or positives, with whatever role they have in a tile.
struct Members {
  const Sides& s;
  const SlotPairs& in;
  bool positives;

  __device__ int64_t number() const { return positives ? s.cols : s.rows; }

  __device__ Partners partners(int64_t m) const {
    if (m >= number()) return {0, 0};
    if (!positives) return {0, slots_from(positives_of(s, m), in.window.base, in.window.slots)};
    const int begin = s.col_first[m], count = s.col_last[m] - begin;
    if (count == 0) return {0, 0};
    // The slot is one less where the anchor itself is before the member.
    const int64_t slot = m - s.first[begin] - in.window.base;
    const bool in_window = slot >= 0 && slot <= in.window.slots;
    return {begin, in_window ? count : 0};
  }

  __device__ Partner partner(int64_t m, const Partners& of, int k) const {
    if (k >= of.count) return {-1, 0, 0};
    if (!positives) {
      return {k * s.rows + m, m, static_cast<int>(positive_at(s, m, in.window.base + k))};
    }
    const int64_t i = of.first + k;
    const int64_t slot = Positives(s, i).slot(m) - in.window.base;
    if (slot < 0 || slot >= in.window.slots) return {-1, 0, 0};
    return {slot * s.rows + i, i, static_cast<int>(i)};
  }

  // d loss / d d of the pair of a member and a row of another class, which is a negative unless it
  // is the anchor itself; `other` is the third distance.
  __device__ float weight(const Partner& p, int64_t opposite, float d, float other) const {
    if (p.at < 0 || own_column(s, p.anchor) == opposite) return 0;
    const SlotRule& rule = in.rule;
    if (rule.kind == SlotKind::angular) {
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

// Adds the weights of the tile's negative pairs whose rows (or columns) are members: four threads a
// row, each on the same columns as in fill_weights.
__device__ inline void add_members(const Sides& g, const Sides& third, const Members& members,
                                   const Tile& tile, bool members_are_rows, float* scores,
                                   int* list) {
  const int row = threadIdx.x / 4, offset = threadIdx.x % 4;
  const int64_t i = tile.row0 + row;
  const bool lives = i < g.rows;
  const int from = lives ? g.first[i] : 0, to = lives ? g.last[i] : 0;
  const int64_t member0 = members_are_rows ? tile.row0 : tile.col0;
  const int64_t opposite0 = members_are_rows ? tile.col0 : tile.row0;
  // As many rounds as any member of the tile has partners.
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
__device__ inline float positive_weight(const Sides& s, const SlotPairs& in, int64_t i, int64_t j) {
  const int64_t slot = Positives(s, i).slot(j) - in.window.base;
  return slot >= 0 && slot < in.window.slots ? in.by_distance[slot * s.rows + i] : 0.f;
}

struct SlotGradient {
  Sides s, among;
  SlotPairs pairs;
};

__global__ void __launch_bounds__(kThreads, 1)
    slot_gradient_kernel(Sides g, SlotGradient in, int64_t split_length, float* parts) {
  const SlotPairs& pairs = in.pairs;
  if (*pairs.largest <= pairs.window.base) return;
  const GradientWork work = gradient_work(g, split_length, parts);
  const bool positives = pairs.rows == SlotRows::positives;
  const Members members = {in.s, pairs, positives};
  int* list = reinterpret_cast<int*>(shared_memory() + kGradientFloats);
  const int64_t i = work.row0 + threadIdx.x / 4;
  const auto fill = [&](int64_t col0, float* scores, float& row_sum) {
    float* mine = scores + kWeightsAt + threadIdx.x / 4 * Square::kScorePitch;
    for (int n = threadIdx.x % 4; n < Square::kN; n += 4) mine[n] = 0;
    for (int side = 0; side < 2; ++side) {
      if (pairs.rows == (side == 0 ? SlotRows::references : SlotRows::anchors)) continue;
      add_members(g, positives ? in.s : in.among, members, {work.row0, col0}, side == 0, scores,
                  list);
    }
    const auto weigh = [&](int64_t j, float, bool positive) {
      if (!positive) return mine[j - col0];
      if (positives) return 0.f;
      float w = 0;
      if (pairs.rows != SlotRows::references) w += positive_weight(in.s, pairs, i, j);
      if (pairs.rows != SlotRows::anchors) w += positive_weight(in.s, pairs, j, i);
      return w;
    };
    return fill_weights(g, work.row0, col0, work.end, work.chunk, weigh, scores, row_sum, work.out);
  };
  gradient_block(g, work.row0, work.chunk, work.begin, work.end, work.out, fill);
}

}  // namespace

int launch_slot_gradient(const Sides& rows, const Sides& s, const Sides& among,
                         const SlotPairs& pairs, float* parts, const Queue& queue) {
  if (s.rows == 0 || s.cols == 0) return 0;
  const SlotGradient in = {s, among, pairs};
  return launch_gradient_parts(slot_gradient_kernel, rows, in, Square::kM, parts, queue);
}

}  // namespace dmlap::cuda

// The forward sweep: positives from label runs, then one sweep over the negatives.
#pragma once

#include <type_traits>

#include "dmlap/policies/contrastive.h"
#include "dmlap/policies/triplet_hard.h"
#include "saved.h"
#include "tile.h"

namespace dmlap::cpu::DMLAP_ISA {

// What one anchor gathers; indices are positions in label order.
template <class T>
struct AnchorState {
  double positive_sum = 0;  // of distances
  double violation[2] = {};
  double term[2] = {};
  int64_t nonzero[2] = {};
  T hardest_positive = -1;  // squared distance
  T hardest_negative = kInf<T>;
  int64_t positive_at = -1;
  int64_t negative_at = -1;

  void offer_negative(T d2, int64_t at) {
    if (d2 < hardest_negative || (d2 == hardest_negative && at < negative_at)) {
      hardest_negative = d2;
      negative_at = at;
    }
  }
};

// The nearest negatives of a row or of a vector of columns, lane by lane.
template <class T>
struct NearestNegatives {
  using V = typename Tile<T>::V;
  using I = typename Tile<T>::I;
  V d2;
  I at;
  void clear() {
    d2 = splat<T>(kInf<T>);
    at = I{};
  }
  void offer(V v, I index) {
    const I closer = v < d2;
    d2 = vmin(v, d2);
    at = closer ? index : at;
  }
  void give(AnchorState<T>& anchor, int lane) const {
    if (d2[lane] < kInf<T>) anchor.offer_negative(d2[lane], at[lane]);
  }
};

// Sums of a pairwise policy over the rows and columns of a task.
template <class T>
struct PairwiseSums {
  using V = typename Tile<T>::V;
  V violation, term, nonzero;
  void clear() { violation = term = nonzero = V{}; }
  void add(V h, V t) {
    violation += h;
    term += t;
    nonzero += h > 0 ? splat<T>(1) : V{};
  }
};

struct NoPolicy {};

template <class T>
struct ForwardShared {
  const Prepared<T>* p;
  AnchorState<T>* anchors;  // [x.n]
  double* negative_sum;     // [blocks of x] of distances, for the statistics
  uint8_t* active;          // [panel pairs] a bit for each tile with an active pair; or null
  Blocks rows, columns;
};

// One thread's part of the sweep. kHard: nearest negatives; Policy: a pairwise policy, or NoPolicy;
// kStats: the sum of negative distances.
template <class T, class Policy, bool kHard, bool kStats>
class ForwardWorker {
  using P = Tile<T>;
  using V = typename P::V;
  using I = typename P::I;
  using Best = NearestNegatives<T>;
  using Classes = typename DistanceTile<T>::Classes;
  static constexpr bool kPairwise = !std::is_same_v<Policy, NoPolicy>;

 public:
  ForwardWorker(const ForwardShared<T>& shared, const Policy& policy)
      : s_(shared),
        policy_(policy),
        best_(kHard ? shared.rows.per_block * P::kWidth : 0),
        sums_(kPairwise ? shared.rows.per_block * P::kWidth : 0) {
    if constexpr (kPairwise) reach_ = s_.p->to_squared(policy_.reach());
  }

  void operator()(int64_t block_x, int64_t block_y) {
    const Prepared<T>& p = *s_.p;
    first_row_ = s_.rows.begin(block_x) * P::kWidth;
    const int64_t held = s_.rows.end(block_x) * P::kWidth - first_row_;
    for (int64_t i = 0; i < held; ++i) {
      if constexpr (kHard) best_[i].clear();
      if constexpr (kPairwise) sums_[i].clear();
    }
    distance_sum_ = 0;
    for (int64_t py = s_.columns.begin(block_y); py < s_.columns.end(block_y); ++py) {
      for (int c = 0; c < P::kVectors; ++c) {
        if constexpr (kHard) column_best_[c].clear();
        if constexpr (kPairwise) column_sums_[c].clear();
      }
      for (int64_t px = s_.rows.begin(block_x); px < s_.rows.end(block_x); ++px) {
        if (p.self && px > py) break;
        panel(px, py);
      }
      if (p.self) give_columns(py);
    }
    for (int64_t i = 0; i < held && first_row_ + i < p.x.n; ++i) give_row(i);
    if constexpr (kStats) s_.negative_sum[block_x] += distance_sum_;
  }

 private:
  void panel(int64_t px, int64_t py) {
    const Prepared<T>& p = *s_.p;
    const bool diagonal = p.self && px == py;
    uint8_t active = 0;
    for (int t = 0; t < P::kPerPanel; ++t) {
      const int64_t i0 = px * P::kWidth + t * P::kRows;
      if (i0 >= p.x.n) break;
      const Classes classes = DistanceTile<T>::classes(p, i0, py);
      if (classes == Classes::one) continue;
      DistanceTile<T> tile;
      tile.compute(p, px, t * P::kRows, py, classes == Classes::mixed, diagonal);
      if constexpr (kHard) offer(tile, i0, py * P::kWidth);
      if constexpr (kPairwise) {
        if (bits(tile.least < splat<T>(reach_))) {
          active |= 1 << t;
          add(tile, i0);
        }
      }
      if constexpr (kStats) add_distances(tile);
    }
    if (kPairwise) s_.active[panel_pair(px, py, s_.columns.panels, p.self)] = active;
  }

  void offer(const DistanceTile<T>& tile, int64_t i0, int64_t j0) {
    const bool both = s_.p->self;
    I columns[P::kVectors];
    for (int c = 0; c < P::kVectors; ++c) columns[c] = iota<T>() + splat_int<T>(j0 + c * P::kLanes);
#pragma GCC unroll 8
    for (int r = 0; r < P::kRows; ++r) {
      Best& row = best_[i0 - first_row_ + r];
      Best local = row;
#pragma GCC unroll 3
      for (int c = 0; c < P::kVectors; ++c) local.offer(tile.d2[r][c], columns[c]);
      row = local;
    }
    if (!both) return;
#pragma GCC unroll 3
    for (int c = 0; c < P::kVectors; ++c) {
      Best local = column_best_[c];
#pragma GCC unroll 8
      for (int r = 0; r < P::kRows; ++r) local.offer(tile.d2[r][c], splat_int<T>(i0 + r));
      column_best_[c] = local;
    }
  }

  void add(const DistanceTile<T>& tile, int64_t i0) {
    for (int r = 0; r < P::kRows; ++r) {
      for (int c = 0; c < P::kVectors; ++c) {
        const V h = policy_.negative_violation(s_.p->from_squared(tile.d2[r][c]));
        const V t = policy_.term(h);
        sums_[i0 - first_row_ + r].add(h, t);
        column_sums_[c].add(h, t);
      }
    }
  }

  void add_distances(const DistanceTile<T>& tile) {
    V sum{};
    for (int r = 0; r < P::kRows; ++r) {
      for (int c = 0; c < P::kVectors; ++c) {
        const V d = s_.p->from_squared(tile.d2[r][c]);
        sum += d < kInf<T> ? d : V{};
      }
    }
    distance_sum_ += wide_sum<T>(sum);
  }

  void give_columns(int64_t py) {
    for (int c = 0; c < P::kVectors; ++c) {
      for (int l = 0; l < P::kLanes; ++l) {
        const int64_t j = py * P::kWidth + c * P::kLanes + l;
        if (j >= s_.p->x.n) return;
        AnchorState<T>& anchor = s_.anchors[j];
        if constexpr (kHard) column_best_[c].give(anchor, l);
        if constexpr (kPairwise) {
          anchor.violation[1] += column_sums_[c].violation[l];
          anchor.term[1] += column_sums_[c].term[l];
          anchor.nonzero[1] += static_cast<int64_t>(column_sums_[c].nonzero[l]);
        }
      }
    }
  }

  void give_row(int64_t i) {
    AnchorState<T>& anchor = s_.anchors[first_row_ + i];
    if constexpr (kHard) {
      for (int l = 0; l < P::kLanes; ++l) best_[i].give(anchor, l);
    }
    if constexpr (kPairwise) {
      anchor.violation[1] += wide_sum<T>(sums_[i].violation);
      anchor.term[1] += wide_sum<T>(sums_[i].term);
      anchor.nonzero[1] += static_cast<int64_t>(wide_sum<T>(sums_[i].nonzero));
    }
  }

  ForwardShared<T> s_;
  Policy policy_;
  T reach_ = 0;
  int64_t first_row_ = 0;
  double distance_sum_ = 0;
  Buffer<Best> best_;
  Buffer<PairwiseSums<T>> sums_;
  Best column_best_[P::kVectors];
  PairwiseSums<T> column_sums_[P::kVectors];
};

template <class T, class Policy, bool kHard, bool kStats>
inline void sweep_negatives(const ForwardShared<T>& shared, const Policy& policy) {
  Schedule schedule(shared.rows.count, shared.columns.count, shared.p->self);
  schedule.run(shared.p->threads,
               [&](int) { return ForwardWorker<T, Policy, kHard, kStats>(shared, policy); });
}

// Calls visit(state, d2, position) for every positive pair, anchors in parallel.
template <class T, class Visit>
inline void sweep_positives(const Prepared<T>& p, AnchorState<T>* anchors, Visit visit) {
  parallel_for(p.threads, (p.x.n + 31) / 32, [&](int64_t block) {
    const int64_t last = block * 32 + 32 < p.x.n ? block * 32 + 32 : p.x.n;
    for (int64_t i = block * 32; i < last; ++i) {
      const T* row = p.x.row(i);
      for (int64_t j = p.begin[i]; j < p.end[i]; ++j) {
        if (!p.self || i != j) visit(anchors[i], p.pair(row, p.y().row(j)), j);
      }
    }
  });
}

}  // namespace dmlap::cpu::DMLAP_ISA

// All triplets (1503.03832): forward. A negative is compared with the threshold d_ap + margin of
// every positive of its anchor.
#pragma once

#include "simd_math.h"
#include "triplets_rows.h"
#include "triplets_sort.h"

namespace dmlap::cpu::DMLAP_ISA {

// The thresholds of anchors with few positives, slot by slot.
template <class T>
struct TripletThresholds {
  static constexpr int64_t W = Tile<T>::kWidth;

  PositiveSlots<T> slots;
  Buffer<T> value;  // [slots][W] ascending; -inf beyond an anchor's positives
  Buffer<T> reach;  // [panels] squared: a negative at it or beyond adds nothing to the panel
  bool smooth;

  TripletThresholds(const Prepared<T>& p, const Triplet<T>& policy)
      : slots(p), value(slots.size(p)), reach(p.x.panels), smooth(policy.smooth) {
    for (int64_t panel = 0; panel < p.x.panels; ++panel) {
      T most = -kInf<T>;
      for (int64_t s = slots.offset[panel]; s < slots.offset[panel + 1]; ++s) {
        const T d2 = slots.d2[s];
        value[s] = d2 < kInf<T> ? policy.threshold(p.from_squared(d2)) : -kInf<T>;
        most = value[s] > most ? value[s] : most;
      }
      reach[panel] = smooth && slots.depth(panel) > 0 ? kInf<T> : p.to_squared(most);
    }
  }
  // Whether a tile of these panels has a pair that adds something.
  bool active(const DistanceTile<T>& tile, int64_t px, int64_t py, bool both) const {
    const T far = both && reach[py] > reach[px] ? reach[py] : reach[px];
    return bits(tile.least < splat<T>(far)) != 0;
  }
};

// Sums of the terms over the negatives. AnchorState: violation[0], term[0]; nonzero[0] of the
// terms, nonzero[1] of the hinges.
template <class T>
class TripletAllSink {
  using P = Tile<T>;
  using V = typename P::V;
  static constexpr int64_t W = P::kWidth;

  struct Sums {
    V hinges, term, violated, nonzero;
    void clear() { hinges = term = violated = nonzero = V{}; }
    template <bool kSmooth>
    void add(V above) {
      const V one = splat<T>(1);
      hinges += hinge(above);
      violated += above > 0 ? one : V{};
      if constexpr (kSmooth) {
        const V t = triplet_term<kSmooth>(above);
        term += t;
        nonzero += t > 0 ? one : V{};
      }
    }
  };

 public:
  struct Options {
    const TripletThresholds<T>* thresholds;
  };

  TripletAllSink(const ForwardShared<T>& shared, const Options& options)
      : s_(shared), t_(*options.thresholds), rows_(shared.rows.per_block * W) {}

  void open_rows(int64_t n) {
    for (int64_t i = 0; i < n; ++i) rows_[i].clear();
  }
  void open_columns() {
    for (Sums& c : columns_) c.clear();
  }
  bool take(const DistanceTile<T>& tile, const TilePlace& at) {
    const bool both = s_.both();
    if (!t_.active(tile, at.i0 / W, at.j0 / W, both)) return false;
    V d[P::kRows][P::kVectors];
    for (int r = 0; r < P::kRows; ++r) {
      for (int c = 0; c < P::kVectors; ++c) d[r][c] = s_.p->from_squared(tile.d2[r][c]);
    }
    if (t_.smooth) {
      take<true>(d, at, both);
    } else {
      take<false>(d, at, both);
    }
    return true;
  }
  void close_columns(int64_t first) {
    each_column<T>(first, s_.p->y().n, [&](int64_t j, int c, int l) {
      const Sums& s = columns_[c];
      give(s_.column_anchors[j], s.hinges[l], s.term[l], s.violated[l], s.nonzero[l]);
    });
  }
  void close_rows(int64_t first, int64_t n) {
    for (int64_t i = 0; i < n; ++i) {
      const Sums& s = rows_[i];
      give(s_.anchors[first + i], wide_sum<T>(s.hinges), wide_sum<T>(s.term),
           wide_sum<T>(s.violated), wide_sum<T>(s.nonzero));
    }
  }

 private:
  template <bool kSmooth>
  void take(const V (&d)[P::kRows][P::kVectors], const TilePlace& at, bool both) {
    const int64_t depth = t_.slots.depth(at.i0 / W);
    for (int64_t m = 0; m < depth; ++m) {
      const T* t = t_.value.get() + t_.slots.index(at.i0, m);
      for (int r = 0; r < P::kRows; ++r) {
        Sums local = rows_[at.row + r];
        for (int c = 0; c < P::kVectors; ++c) local.template add<kSmooth>(splat<T>(t[r]) - d[r][c]);
        rows_[at.row + r] = local;
      }
    }
    if (!both) return;
    const int64_t column_depth = t_.slots.depth(at.j0 / W);
    for (int c = 0; c < P::kVectors; ++c) {
      Sums local = columns_[c];
      for (int64_t m = 0; m < column_depth; ++m) {
        const V t = load(t_.value.get() + t_.slots.index(at.j0, m) + c * P::kLanes);
        for (int r = 0; r < P::kRows; ++r) local.template add<kSmooth>(t - d[r][c]);
      }
      columns_[c] = local;
    }
  }
  void give(AnchorState<T>& a, double hinges, double term, double violated, double nonzero) const {
    a.violation[0] += hinges;
    a.term[0] += t_.smooth ? term : hinges;
    a.nonzero[1] += static_cast<int64_t>(violated);
    a.nonzero[0] += static_cast<int64_t>(t_.smooth ? nonzero : violated);
  }

  ForwardShared<T> s_;
  const TripletThresholds<T>& t_;
  Buffer<Sums> rows_;
  Sums columns_[P::kVectors];
};

// All triplets of one anchor. Hinges are counted along the sorted distances; a softplus is taken of
// every triplet.
template <class T>
class AllMiner {
  using V = typename Simd<T>::V;
  static constexpr int64_t L = Simd<T>::kLanes;

 public:
  AllMiner(const Prepared<T>& p, const LossOptions& options)
      : p_(p),
        policy_(options.params),
        sorter_(p.y().n),
        threshold_(p.y().n),
        slope_(p.y().n),
        negative_(p.y().n + L),
        negative_slope_(p.y().n + L),
        positive_at_(p.y().n),
        negative_at_(p.y().n) {}

  void add(int64_t i, const T* d2, TripletTotals& totals) {
    gather(i, d2);
    totals.count += positives_ * negatives_;
    int64_t below = 0;
    double sum = 0;  // of the distances of the negatives below the threshold
    for (int64_t m = 0; m < positives_; ++m) {
      while (below < negatives_ && negative_[below] < threshold_[m]) sum += negative_[below++];
      totals.violation += double(below) * double(threshold_[m]) - sum;
      totals.violated += below;
    }
    if (!policy_.smooth) {
      totals.term = totals.violation;
      totals.nonzero = totals.violated;
      return;
    }
    for (int64_t m = 0; m < positives_; ++m) {
      V term{}, nonzero{};
      for (int64_t k = 0; k < negatives_; k += L) {
        const V t = triplet_term<true>(splat<T>(threshold_[m]) - load(negative_.get() + k));
        term += t;
        nonzero += t > 0 ? splat<T>(1) : V{};
      }
      totals.term += wide_sum<T>(term);
      totals.nonzero += static_cast<int64_t>(wide_sum<T>(nonzero));
    }
  }

  // See AnchorBlocks.
  int64_t weigh(int64_t i, const T* d2, const Upstream<T>& upstream, T* w, SwappedPair<T>*) {
    gather(i, d2);
    const T c = upstream.at(p_.x.order[i], 0, positives_ * negatives_);
    policy_.smooth ? smooth_slopes() : hinge_slopes();
    for (int64_t m = 0; m < positives_; ++m) {
      const T d = p_.from_squared(d2[positive_at_[m]]);
      w[positive_at_[m]] = c * slope_[m] * p_.factor(d);
    }
    for (int64_t k = 0; k < negatives_; ++k) {
      w[negative_at_[k]] = -c * negative_slope_[k] * p_.factor(negative_[k]);
    }
    return 0;
  }

 private:
  // Thresholds and distances of the negatives, ascending.
  void gather(int64_t i, const T* d2) {
    const Keyed<T>* sorted = sorter_.sort(d2, p_.y().n);
    const int64_t itself = p_.itself(i);
    positives_ = negatives_ = 0;
    for (int64_t k = 0; k < p_.y().n; ++k) {
      const int64_t j = sorted[k].at;
      if (j == itself) continue;
      const T d = p_.from_squared(sorted[k].value());
      if (!p_.in_class(i, j)) {
        negative_at_[negatives_] = j;
        negative_[negatives_++] = d;
      } else {
        positive_at_[positives_] = j;
        threshold_[positives_++] = policy_.threshold(d);
      }
    }
    for (int64_t k = negatives_; k < negatives_ + L; ++k) negative_[k] = kInf<T>;
  }
  void hinge_slopes() {
    int64_t below = 0;
    for (int64_t m = 0; m < positives_; ++m) {
      // The negatives before `below` lie beyond the thresholds before m, and no others.
      while (below < negatives_ && negative_[below] < threshold_[m]) {
        negative_slope_[below++] = T(positives_ - m);
      }
      slope_[m] = T(below);
    }
    for (; below < negatives_; ++below) negative_slope_[below] = 0;
  }
  void smooth_slopes() {
    for (int64_t k = 0; k < negatives_ + L; ++k) negative_slope_[k] = 0;
    for (int64_t m = 0; m < positives_; ++m) {
      V sum{};
      for (int64_t k = 0; k < negatives_; k += L) {
        const V above = splat<T>(threshold_[m]) - load(negative_.get() + k);
        const V s = triplet_term<true>(variable<1>(above, 0)).by[0];
        store(negative_slope_.get() + k, load(negative_slope_.get() + k) + s);
        sum += s;
      }
      slope_[m] = sum_lanes<T>(sum);
    }
  }

  const Prepared<T>& p_;
  Triplet<T> policy_;
  Sorter<T> sorter_;
  int64_t positives_ = 0, negatives_ = 0;
  Buffer<T> threshold_, slope_;          // [positives]
  Buffer<T> negative_, negative_slope_;  // [negatives], and a vector beyond
  Buffer<int64_t> positive_at_, negative_at_;
};

template <class T>
inline void forward_triplet_all(const Pairs<T>& pairs, const LossOptions& options,
                                const ForwardOut<T>& out) {
  const Triplet<T> policy(options.params);
  const ForwardState<T> state(pairs);
  const Prepared<T>& p = state.p;
  const TripletThresholds<T> thresholds(p, policy);
  sweep_negatives<T, TripletAllSink<T>>(state.shared(out.saved + sizeof(SavedHeader)),
                                        {&thresholds});
  Buffer<TripletTotals> totals(p.x.n);
  for (int64_t i = 0; i < p.x.n; ++i) {
    const AnchorState<T>& a = state.anchors[i];
    totals[i] = {a.term[0], a.violation[0], few_positives(p, i) * negatives_of(p, i), a.nonzero[0],
                 a.nonzero[1]};
  }
  each_anchor_row<T, AllMiner<T>>(
      p, options, [&](int64_t i) { return many_positives(p, i) > 0; },
      [&](auto& miner, int64_t i, const T* d2) { miner.add(i, d2, totals[i]); });
  finish_triplets(state, options, totals.get(), out);
}

}  // namespace dmlap::cpu::DMLAP_ISA

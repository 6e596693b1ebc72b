// All triplets (1503.03832). Each negative is compared with the threshold d_ap + margin of every
// positive of its anchor. Backward also counts the active triplets of each positive.
#pragma once

#include "engine/simd_math.h"
#include "losses/anchor_rows.h"

namespace dmlap::cpu::DMLAP_ISA {

// The thresholds of anchors with few positives, window by window.
template <class T>
struct TripletThresholds {
  static constexpr int64_t W = Tile<T>::kWidth;

  PositiveWindows<T> windows;
  Buffer<T> value;  // [windows][W] ascending; -inf beyond an anchor's positives
  Buffer<T> reach;  // [panels] squared: a negative at it or beyond adds nothing to the panel
  bool smooth;

  TripletThresholds(const Prepared<T>& p, const Triplet<T>& policy)
      : windows(p), value(windows.size(p)), reach(p.x.panels), smooth(policy.smooth) {
    for (int64_t panel = 0; panel < p.x.panels; ++panel) {
      T most = -kInf<T>;
      for (int64_t s = windows.offset[panel]; s < windows.offset[panel + 1]; ++s) {
        const T d2 = windows.d2[s];
        value[s] = d2 < kInf<T> ? policy.threshold(p.from_squared(d2)) : -kInf<T>;
        most = value[s] > most ? value[s] : most;
      }
      reach[panel] = smooth && windows.depth(panel) > 0 ? kInf<T> : p.to_squared(most);
    }
  }
  // Whether any pair of a tile of these panels may add something.
  bool active(const DistanceTile<T>& tile, int64_t px, int64_t py, bool both) const {
    const T far = both && reach[py] > reach[px] ? reach[py] : reach[px];
    return bits(tile.least < splat<T>(far)) != 0;
  }
};

// Sums of the terms over the negatives.
template <class T>
class TripletAllAccumulator {
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

  TripletAllAccumulator(const ForwardShared<T>& shared, const Options& options)
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
    const int64_t depth = t_.windows.depth(at.i0 / W);
    for (int64_t m = 0; m < depth; ++m) {
      const T* t = t_.value.get() + t_.windows.index(at.i0, m);
      for (int r = 0; r < P::kRows; ++r) {
        Sums local = rows_[at.row + r];
        for (int c = 0; c < P::kVectors; ++c) local.template add<kSmooth>(splat<T>(t[r]) - d[r][c]);
        rows_[at.row + r] = local;
      }
    }
    if (!both) return;
    const int64_t column_depth = t_.windows.depth(at.j0 / W);
    for (int c = 0; c < P::kVectors; ++c) {
      Sums local = columns_[c];
      for (int64_t m = 0; m < column_depth; ++m) {
        const V t = load(t_.value.get() + t_.windows.index(at.j0, m) + c * P::kLanes);
        for (int r = 0; r < P::kRows; ++r) local.template add<kSmooth>(t - d[r][c]);
      }
      columns_[c] = local;
    }
  }
  void give(AnchorState<T>& a, double hinges, double term, double violated, double nonzero) const {
    a.terms[0].add({t_.smooth ? term : hinges, hinges, 0,
                    static_cast<int64_t>(t_.smooth ? nonzero : violated),
                    static_cast<int64_t>(violated)});
  }

  ForwardShared<T> s_;
  const TripletThresholds<T>& t_;
  Buffer<Sums> rows_;
  Sums columns_[P::kVectors];
};

// All triplets of one anchor. Hinges are summed along the sorted distances; softplus terms one by
// one.
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

  void add(int64_t i, const T* d2, TermSums& totals) {
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
      // Exactly the negatives before `below` are farther than the thresholds before m.
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
  Buffer<T> negative_, negative_slope_;  // [negatives], padded by a vector
  Buffer<int64_t> positive_at_, negative_at_;
};

template <class T>
struct TripletAllPairGradient {
  using P = Tile<T>;
  using V = typename P::V;
  static constexpr int64_t W = P::kWidth;

  const Prepared<T>* p;
  const TripletThresholds<T>* thresholds;
  const T* coefficient;  // [panels * kWidth] upstream of each anchor's terms
  T* slopes;             // [windows][W] sum of the slopes of a positive's triplets
  T reach;               // the largest of the thresholds', squared
  int64_t i = 0, depth = 0;

  void row(int64_t position) {
    i = position;
    depth = thresholds->windows.depth(i / W);
  }
  bool idle(V d2) const { return !bits(d2 < splat<T>(reach)); }

  // The blocks of the row and of the columns belong to the caller's task alone.
  V weight(V d2, int64_t j) const {
    const V d = p->from_squared(d2);
    const PositiveWindows<T>& windows = thresholds->windows;
    V sum{};
    for (int64_t m = 0; m < depth; ++m) {
      const int64_t place = windows.index(i, m);
      const V s = slope(splat<T>(thresholds->value[place]) - d);
      slopes[place] += sum_lanes<T>(s);
      sum += s;
    }
    V v = sum * -coefficient[i];
    if (p->self) {
      V column_sum{};
      const int64_t column_depth = windows.depth(j / W);
      for (int64_t m = 0; m < column_depth; ++m) {
        const int64_t place = windows.index(j, m);
        const V s = slope(load(thresholds->value.get() + place) - d);
        store(slopes + place, load(slopes + place) + s);
        column_sum += s;
      }
      v -= column_sum * load(coefficient + j);
    }
    return d2 < kInf<T> ? p->pair_weight(v, d) : V{};
  }

 private:
  V slope(V above) const {
    const auto violation = variable<1>(above, 0);
    return thresholds->smooth ? triplet_term<true>(violation).by[0]
                              : triplet_term<false>(violation).by[0];
  }
};

// out += the gradient of the positive pairs of anchors with few positives.
template <class T>
inline void scatter_positives(const Prepared<T>& p, const PositiveWindows<T>& windows,
                              const T* slopes, const T* coefficient, T* gx, T* gy) {
  const Side<T>& y = p.y();
  feature_slices(p.threads, p.dim, [&](int64_t k0, int64_t width) {
    for (int64_t i = 0; i < p.x.n; ++i) {
      const T* a = p.x.row(i) + k0;
      for (int64_t m = 0; m < few_positives(p, i); ++m) {
        const int64_t place = windows.index(i, m), j = windows.at[place];
        if (slopes[place] == 0) continue;
        const T w = coefficient[i] * slopes[place] * p.factor(p.from_squared(windows.d2[place]));
        scatter_pair(p, a, y.row(j) + k0, w, width, gx + p.x.order[i] * p.dim + k0,
                     gy + y.order[j] * p.dim + k0);
      }
    }
  });
}

template <class T>
struct TripletAllKernels {
  static constexpr bool kSkipsReferences = false;

  static constexpr SavedSize saved_size(bool self) {
    return with_active<T>({sizeof(SavedHeader)}, self);
  }

  static void forward(const Pairs<T>& pairs, const LossOptions& options, const ForwardOut<T>& out) {
    const Triplet<T> policy(options.params);
    ForwardState<T> state(pairs, &out);
    const Prepared<T>& p = state.p;
    const TripletThresholds<T> thresholds(p, policy);
    sweep_negatives<T, TripletAllAccumulator<T>>(state.shared(out.saved + sizeof(SavedHeader)),
                                                 {&thresholds});
    Buffer<TermSums> totals(p.x.n);
    for (int64_t i = 0; i < p.x.n; ++i) {
      totals[i] = state.anchors[i].terms[0];
      totals[i].count = few_positives(p, i) * p.negatives(i);
    }
    each_anchor_row<T, AllMiner<T>>(
        p, options, [&](int64_t i) { return many_positives(p, i) > 0; },
        [&](auto& miner, int64_t i, const T* d2) { miner.add(i, d2, totals[i]); });
    finish_triplets(state, options, totals.get(), out);
    state.keep_rows(out);
  }

  static void backward(const Pairs<T>& pairs, const LossOptions& options,
                       const BackwardArgs<T>& args) {
    constexpr int64_t W = Tile<T>::kWidth;
    if (nonfinite_gradients(pairs, args)) return;
    const Triplet<T> policy(options.params);
    const BackwardRows<T> rows(pairs, args.kept);
    const Prepared<T>& p = rows.get();
    const TripletThresholds<T> thresholds(p, policy);
    const int64_t windows = thresholds.windows.size(p);
    const Upstream<T> upstream(options, args);
    Buffer<T> coefficient(p.x.panels * W), slopes(windows);
    coefficient.fill(p.x.panels * W, T(0));
    slopes.fill(windows, T(0));
    for (int64_t i = 0; i < p.x.n; ++i) {
      const int64_t few = few_positives(p, i);
      if (few > 0) coefficient[i] = upstream.at(p.x.order[i], 0, few * p.negatives(i));
    }
    T reach = -kInf<T>;
    for (int64_t panel = 0; panel < p.x.panels; ++panel) {
      reach = thresholds.reach[panel] > reach ? thresholds.reach[panel] : reach;
    }

    GradientSide<T> gx, gy_storage;
    gx.out = args.gx;
    gx.reset(p.x.panels, p.packed_dim);
    fill(args.gx, p.x.n * p.dim, T(0));
    if (!p.self) {
      gy_storage.out = args.gy;
      gy_storage.reset(p.y_storage.panels, p.packed_dim);
      fill(args.gy, p.y_storage.n * p.dim, T(0));
    }
    GradientSide<T>& gy = p.self ? gx : gy_storage;
    const BackwardShared<T> shared{&p,
                                   args.saved + sizeof(SavedHeader),
                                   rows.tiles(),
                                   &gx,
                                   &gy,
                                   Blocks(p.x.panels),
                                   Blocks(p.y().panels)};
    const TripletAllPairGradient<T> pair_gradient{&p, &thresholds, coefficient.get(), slopes.get(),
                                                  reach};
    Schedule schedule(shared.rows.count, shared.columns.count, p.self);
    schedule.run(p.threads, [&](int) {
      return BackwardWorker<T, TripletAllPairGradient<T>>(shared, pair_gradient);
    });
    if (any_many_positives(p)) AnchorBlocks<T, AllMiner<T>>(p, options, gx, gy).run(upstream);
    scatter_positives(p, thresholds.windows, slopes.get(), coefficient.get(), gx.out, gy.out);
    finish_gradient(p, p.x, gx);
    if (!p.self) finish_gradient(p, p.y_storage, gy);
  }
};

}  // namespace dmlap::cpu::DMLAP_ISA

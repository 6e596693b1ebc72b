// Losses of single pairs, hinges and their smooth relatives: contrastive, margin and SigLIP's.
#pragma once

#include "dmlap/policies/hinge.h"
#include "engine/backward.h"
#include "engine/finish.h"

namespace dmlap::cpu::DMLAP_ISA {

// The bounds of every anchor, by position.
template <class T>
struct HingeBounds {
  Buffer<T> positive;  // [x.n]: a positive farther away is a violation
  Buffer<T> negative;  // [x.panels * kWidth]: a nearer negative is one; -inf beyond x.n
  T reach = -kInf<T>;  // the largest bound of a negative, squared; smooth terms have none
  bool uniform = true;

  template <class Policy>
  HingeBounds(const Policy& policy, const Prepared<T>& p, const T* anchor_params)
      : positive(p.x.n), negative(p.x.panels * Tile<T>::kWidth) {
    negative.fill(p.x.panels * Tile<T>::kWidth, -kInf<T>);
    uniform = anchor_params == nullptr;
    for (int64_t i = 0; i < p.x.n; ++i) {
      const T param = uniform ? T(0) : anchor_params[p.x.order[i]];
      positive[i] = policy.positive_bound(param);
      negative[i] = policy.negative_bound(param);
      const T square = policy.term.smooth() ? kInf<T> : p.to_squared(negative[i]);
      reach = square > reach ? square : reach;
    }
  }
};

// Sums of violations over the negatives.
template <class T>
class HingeAccumulator {
  using P = Tile<T>;
  using V = typename P::V;

  struct Sums {
    V violation, term, nonzero;
    void clear() { violation = term = nonzero = V{}; }
    void add(V excess, HingeTerm<T> of) {
      if (of.smooth()) {
        term += of(excess);
        return;
      }
      const V h = hinge(excess);
      violation += h;
      if (of.squared) term += of(h);
      nonzero += h > 0 ? splat<T>(1) : V{};
    }
  };

 public:
  struct Options {
    const HingeBounds<T>* bounds;
    HingeTerm<T> term;
  };

  HingeAccumulator(const ForwardShared<T>& shared, const Options& options)
      : s_(shared), o_(options), rows_(shared.rows.per_block * P::kWidth) {}

  void open_rows(int64_t n) {
    for (int64_t i = 0; i < n; ++i) rows_[i].clear();
  }
  void open_columns() {
    for (Sums& c : columns_) c.clear();
  }
  bool take(const DistanceTile<T>& tile, const TilePlace& at) {
    if (!bits(tile.least < splat<T>(o_.bounds->reach))) return false;
    const bool two = s_.both() && !o_.bounds->uniform;
    for (int r = 0; r < P::kRows; ++r) {
      const T bound = o_.bounds->negative[at.i0 + r];
      for (int c = 0; c < P::kVectors; ++c) {
        const V d = s_.p->from_squared(tile.d2[r][c]);
        const V excess = bound - d;
        rows_[at.row + r].add(excess, o_.term);
        if (!s_.both()) continue;
        const T* bounds = o_.bounds->negative.get() + at.j0 + c * P::kLanes;
        columns_[c].add(two ? load(bounds) - d : excess, o_.term);
      }
    }
    return true;
  }
  void close_columns(int64_t first) {
    each_column<T>(first, s_.p->y().n, [&](int64_t j, int c, int l) {
      const Sums& sums = columns_[c];
      add(s_.column_anchors[j], sums.violation[l], sums.term[l], int64_t(sums.nonzero[l]));
    });
  }
  void close_rows(int64_t first, int64_t n) {
    for (int64_t i = 0; i < n; ++i) {
      const Sums& sums = rows_[i];
      add(s_.anchors[first + i], wide_sum<T>(sums.violation), wide_sum<T>(sums.term),
          int64_t(wide_sum<T>(sums.nonzero)));
    }
  }

 private:
  void add(AnchorState<T>& anchor, double violation, double term, int64_t nonzero) const {
    const bool apart = o_.term.squared || o_.term.smooth();
    anchor.terms[1].add({apart ? term : violation, violation, 0, nonzero, nonzero});
  }

  ForwardShared<T> s_;
  Options o_;
  Buffer<Sums> rows_;
  Sums columns_[P::kVectors];
};

// What forward leaves for backward.
template <class T>
struct SavedHinge {
  int64_t* nonzero;  // [2][n] active terms of each anchor, if anchors have numbers of their own
  uint8_t* active;   // [panel pairs]

  static constexpr int64_t counts(int64_t n, bool anchor_params) {
    return anchor_params ? 2 * n : 0;
  }
  static constexpr SavedSize size(bool anchor_params, bool self) {
    const int64_t anchor = counts(1, anchor_params) * int64_t{sizeof(int64_t)};
    return with_active<T>({sizeof(SavedHeader), anchor}, self);
  }
  SavedHinge(uint8_t* base, int64_t n, bool anchor_params) {
    nonzero = reinterpret_cast<int64_t*>(base + sizeof(SavedHeader));
    active = reinterpret_cast<uint8_t*>(nonzero + counts(n, anchor_params));
  }
};

// Weights of the negatives: the slopes of their hinges.
template <class T>
struct HingePairGradient {
  using V = typename Tile<T>::V;
  const Prepared<T>* p;
  const HingeBounds<T>* bounds;
  const T* push;  // [x.panels * kWidth]
  HingeTerm<T> term;
  T own = 0, own_bound = 0;

  void row(int64_t i) {
    own = push[i];
    own_bound = bounds->negative[i];
  }
  // Even in tiles with an active pair most vectors have none.
  bool idle(V d2) const { return !bits(d2 < splat<T>(bounds->reach)); }

  V slope(V violation, V coefficient) const {
    return term(variable<1>(violation, 0, coefficient)).by[0];
  }
  V weight(V d2, int64_t j) const {
    const V d = p->from_squared(d2);
    V v = slope(own_bound - d, splat<T>(own));
    if (p->self) v += slope(load(bounds->negative.get() + j) - d, load(push + j));
    return d2 < kInf<T> ? -p->pair_weight(v, d) : V{};
  }
};

template <class T, class Policy>
struct HingeKernels {
  static constexpr bool kParams = Policy::kAnchorParams;
  static constexpr bool kSkipsReferences = true;

  static constexpr SavedSize saved_size(bool self) { return SavedHinge<T>::size(kParams, self); }

  static void forward(const Pairs<T>& pairs, const LossOptions& options, const ForwardOut<T>& out) {
    const Policy policy(options.params);
    const bool stats = out.stat_counts != nullptr;
    ForwardState<T> state(pairs, &out);
    const Prepared<T>& p = state.p;
    SavedHinge<T> saved(out.saved, p.x.n, kParams);
    const HingeBounds<T> bounds(policy, p, pairs.anchor_params);

    AnchorState<T>* anchors = state.anchors.get();
    sweep_positives(p, anchors, [&](AnchorState<T>& a, T d2, int64_t at) {
      const T excess = p.from_squared(d2) - bounds.positive[&a - anchors], h = hinge(excess);
      a.terms[0].add({double(policy.term(excess)), double(h), 0, h > 0, h > 0});
      if (stats) note_hardest_positive(p, a, d2, at);
    });
    const ForwardShared<T> shared = state.shared(saved.active);
    if (stats) {
      sweep_negatives<T, Both<HingeAccumulator<T>, StatsAccumulator<T>>>(
          shared, {{&bounds, policy.term}, {}});
    } else {
      sweep_negatives<T, HingeAccumulator<T>>(shared, {&bounds, policy.term});
    }

    Epilogue<T> end(options.reduction, p.nonfinite, out, Policy::kJoint);
    for (int64_t i = 0; i < p.x.n; ++i) {
      TermSums* terms = anchors[i].terms;
      terms[0].count = p.positives(i);
      terms[1].count = p.negatives(i);
      const double shares[2] = {policy.share(0, terms[0].count, terms[1].count),
                                policy.share(1, terms[0].count, terms[1].count)};
      if constexpr (Policy::kAnchorTerms) {
        const double sum = terms[0].term + terms[1].term;
        const TermSums whole{sum, sum, 1, sum > 0, sum > 0};
        end.add(p.x.order[i], &whole);
        if (out.thresholds) out.thresholds[p.x.order[i]] = farthest_positive(p, anchors[i]);
        continue;
      }
      end.add(p.x.order[i], terms, 2, shares);
      for (int g = 0; kParams && g < 2; ++g) saved.nonzero[2 * i + g] = terms[g].nonzero;
      if (out.thresholds) out.thresholds[p.x.order[i]] = bounds.negative[i];
    }
    end.write();
    if (stats) write_statistics(state, out);
    state.keep_rows(out);
  }

  static void backward(const Pairs<T>& pairs, const LossOptions& options,
                       const BackwardArgs<T>& args) {
    const Policy policy(options.params);
    const SavedHinge<T> saved(const_cast<uint8_t*>(args.saved), pairs.x.n, kParams);
    if (nonfinite_gradients(pairs, args)) return;
    const BackwardRows<T> rows(pairs, args.kept);
    const Prepared<T>& p = rows.get();
    const HingeBounds<T> bounds(policy, p, pairs.anchor_params);
    const Upstream<T> upstream(options, args);
    Buffer<T> pull(p.x.n), push(p.x.panels * Tile<T>::kWidth);
    push.fill(p.x.panels * Tile<T>::kWidth, T(0));
    for (int64_t i = 0; i < p.x.n; ++i) {
      const int64_t count[2] = {p.positives(i), p.negatives(i)};
      T c[2];
      for (int g = 0; g < 2; ++g) {
        const T share = static_cast<T>(policy.share(g, count[0], count[1]));
        const T whole = options.reduction == Reduction::none ? T(share > 0) : share;
        c[g] = Policy::kAnchorTerms ? upstream.at(p.x.order[i], 0, 1)
                                    : whole * upstream.at(p.x.order[i], g, count[g]);
      }
      pull[i] = c[0];
      push[i] = c[1];
      if (args.g_anchor != nullptr) {
        const int64_t* active = saved.nonzero + 2 * i;
        args.g_anchor[p.x.order[i]] = c[1] * T(active[1]) - c[0] * T(active[0]);
      }
    }

    GradientSide<T> gx, gy;
    gx.out = args.gx;
    gy.out = args.gy;
    const auto slope = [&](int64_t i, int64_t, T d) {
      return policy.term(variable<1>(d - bounds.positive[i], 0, pull[i])).by[0];
    };
    positive_gradients(p, slope, gx, gy);
    sweep_backward(rows, saved.active, HingePairGradient<T>{&p, &bounds, push.get(), policy.term},
                   gx, gy);
  }
};

}  // namespace dmlap::cpu::DMLAP_ISA

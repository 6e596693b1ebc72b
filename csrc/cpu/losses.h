// Forward of each loss: sweeps, then the terms, the reduction, the statistics.
#pragma once

#include "forward.h"

namespace dmlap::cpu::DMLAP_ISA {

// The problem of a forward sweep, packed, and what it gathers.
template <class T>
struct ForwardState {
  Prepared<T> p;
  Buffer<AnchorState<T>> anchors;  // [x.n]
  Buffer<double> negative_sum;     // [blocks of x]

  explicit ForwardState(const Pairs<T>& pairs) {
    prepare(p, pairs, true);
    anchors.reset(p.x.n);
    anchors.fill(p.x.n, AnchorState<T>{});
    const int64_t blocks = Blocks(p.x.panels).count;
    negative_sum.reset(blocks);
    negative_sum.fill(blocks, 0.0);
  }

  ForwardShared<T> shared(uint8_t* active) const {
    return {&p,     anchors.get(),      negative_sum.get(),
            active, Blocks(p.x.panels), Blocks(p.y().panels)};
  }

  // Of distances. The sweep of the self case meets every pair once, the statistics count it twice.
  double negative_total() const {
    double s = 0;
    for (int64_t b = 0; b < Blocks(p.x.panels).count; ++b) s += negative_sum[b];
    return p.self ? 2 * s : s;
  }
};

// Sums over anchors of one group of terms, and how the reduction divides them.
struct GroupTotal {
  double term = 0;
  int64_t count = 0;
  int64_t nonzero = 0;

  double denominator(Reduction reduction) const {
    if (reduction == Reduction::sum) return 1;
    const int64_t n = reduction == Reduction::mean ? count : nonzero;
    return n > 0 ? double(n) : 1.0;
  }
};

template <class T>
inline int64_t positives_of(const Prepared<T>& p, int64_t anchor) {
  return p.end[anchor] - p.begin[anchor] - (p.self ? 1 : 0);
}
template <class T>
inline int64_t negatives_of(const Prepared<T>& p, int64_t anchor) {
  return p.y().n - (p.end[anchor] - p.begin[anchor]);
}

template <class T>
inline T poison(const Prepared<T>& p, double value) {
  return p.poisoned ? std::numeric_limits<T>::quiet_NaN() : static_cast<T>(value);
}

// Everything but the loss's own counts: distances and hardest pairs.
template <class T>
inline void write_common_stats(const Prepared<T>& p, const AnchorState<T>* anchors,
                               double negative_sum, const ForwardOut<T>& out) {
  double positive_sum = 0;
  int64_t positives = 0, negatives = 0;
  for (int64_t i = 0; i < p.x.n; ++i) {
    const AnchorState<T>& a = anchors[i];
    const int64_t row = p.x.order[i];
    positive_sum += a.positive_sum;
    positives += positives_of(p, i);
    negatives += negatives_of(p, i);
    out.stat_counts[2 + row] = a.positive_at < 0 ? -1 : p.y().order[a.positive_at];
    out.stat_counts[2 + p.x.n + row] = a.negative_at < 0 ? -1 : p.y().order[a.negative_at];
  }
  const double nan = std::numeric_limits<double>::quiet_NaN();
  out.stat_values[1] = poison(p, positives ? positive_sum / double(positives) : nan);
  out.stat_values[2] = poison(p, negatives ? negative_sum / double(negatives) : nan);
}

template <class T>
inline void note_hardest_positive(const Prepared<T>& p, AnchorState<T>& a, T d2, int64_t at) {
  a.positive_sum += p.from_squared(d2);
  if (d2 > a.hardest_positive) {
    a.hardest_positive = d2;
    a.positive_at = at;
  }
}

template <class T>
inline void forward_triplet_hard(const Pairs<T>& pairs, const LossOptions& options,
                                 const ForwardOut<T>& out) {
  const TripletHard<T> policy(options.params);
  const bool stats = out.stat_counts != nullptr;
  const ForwardState<T> state(pairs);
  const Prepared<T>& p = state.p;
  const Buffer<AnchorState<T>>& anchors = state.anchors;
  SavedTriplet<T> saved(out.saved, p.x.n);

  sweep_positives(p, anchors.get(), [&](AnchorState<T>& a, T d2, int64_t at) {
    note_hardest_positive(p, a, d2, at);
  });
  const ForwardShared<T> shared = state.shared(nullptr);
  if (stats) {
    sweep_negatives<T, NoPolicy, true, true>(shared, {});
  } else {
    sweep_negatives<T, NoPolicy, true, false>(shared, {});
  }

  // The chosen pairs again, from differences.
  Buffer<T> term(p.x.n), hinge(p.x.n);
  parallel_for(p.threads, p.x.n, [&](int64_t i) {
    AnchorState<T>& a = anchors[i];
    const int64_t row = p.x.order[i];
    term[i] = hinge[i] = 0;
    saved.positive[row] = saved.negative[row] = -1;
    saved.pull[row] = saved.push[row] = 0;
    saved.swapped[row] = 0;
    const T d_ap = a.positive_at < 0 ? T(0) : p.from_squared(a.hardest_positive);
    if (out.thresholds) out.thresholds[row] = a.positive_at < 0 ? -kInf<T> : d_ap + policy.margin;
    if (a.positive_at < 0 || a.negative_at < 0) return;
    const T* positive = p.y().row(a.positive_at);
    const T* negative = p.y().row(a.negative_at);
    T d_an = p.from_squared(p.pair(p.x.row(i), negative));
    if (policy.swap) {
      const T d_pn = p.from_squared(p.pair(positive, negative));
      saved.swapped[row] = d_pn < d_an;
      d_an = d_pn < d_an ? d_pn : d_an;
    }
    term[i] = policy.term(d_ap, d_an);
    hinge[i] = policy.hinge(d_ap, d_an);
    const T slope = policy.slope(d_ap, d_an);
    saved.positive[row] = p.y().order[a.positive_at];
    saved.negative[row] = p.y().order[a.negative_at];
    saved.pull[row] = slope * p.factor(d_ap);
    saved.push[row] = slope * p.factor(d_an);
  });

  GroupTotal total;
  double violation = 0;
  int64_t violated = 0;
  for (int64_t i = 0; i < p.x.n; ++i) {
    const bool valid = anchors[i].positive_at >= 0 && anchors[i].negative_at >= 0;
    total.term += term[i];
    total.count += valid;
    total.nonzero += term[i] > 0;
    violation += hinge[i];
    violated += hinge[i] > 0;
    if (options.reduction == Reduction::none) out.loss[p.x.order[i]] = poison(p, term[i]);
  }
  saved.header->denominator[0] = total.denominator(options.reduction);
  saved.header->poisoned = p.poisoned;
  if (options.reduction != Reduction::none) {
    *out.loss = poison(p, total.term / saved.header->denominator[0]);
  }
  if (!stats) return;
  out.stat_counts[0] = total.count;
  out.stat_counts[1] = violated;
  out.stat_values[0] = poison(p, violation);
  write_common_stats(p, anchors.get(), state.negative_total(), out);
}

template <class T, class Policy>
inline void forward_pairwise(const Pairs<T>& pairs, const LossOptions& options,
                             const ForwardOut<T>& out) {
  const Policy policy(options.params);
  const bool stats = out.stat_counts != nullptr;
  const ForwardState<T> state(pairs);
  const Prepared<T>& p = state.p;
  const Buffer<AnchorState<T>>& anchors = state.anchors;
  SavedPairwise<T> saved(out.saved);

  sweep_positives(p, anchors.get(), [&](AnchorState<T>& a, T d2, int64_t at) {
    const T h = policy.positive_violation(p.from_squared(d2));
    a.violation[0] += h;
    a.term[0] += policy.term(h);
    a.nonzero[0] += h > 0;
    if (stats) note_hardest_positive(p, a, d2, at);
  });
  const ForwardShared<T> shared = state.shared(saved.active);
  if (stats) {
    sweep_negatives<T, Policy, true, true>(shared, policy);
  } else {
    sweep_negatives<T, Policy, false, false>(shared, policy);
  }

  GroupTotal total[2];
  double violation = 0;
  for (int64_t i = 0; i < p.x.n; ++i) {
    const AnchorState<T>& a = anchors[i];
    const int64_t count[2] = {positives_of(p, i), negatives_of(p, i)};
    double own = 0;
    for (int g = 0; g < 2; ++g) {
      total[g].term += a.term[g];
      total[g].count += count[g];
      total[g].nonzero += a.nonzero[g];
      violation += a.violation[g];
      if (count[g] > 0) own += a.term[g] / double(count[g]);
    }
    if (options.reduction == Reduction::none) out.loss[p.x.order[i]] = poison(p, own);
    if (out.thresholds) out.thresholds[i] = policy.reach();
  }
  double loss = 0;
  for (int g = 0; g < 2; ++g) {
    saved.header->denominator[g] = total[g].denominator(options.reduction);
    loss += total[g].term / saved.header->denominator[g];
  }
  saved.header->poisoned = p.poisoned;
  if (options.reduction != Reduction::none) *out.loss = poison(p, loss);
  if (!stats) return;
  out.stat_counts[0] = total[0].count + total[1].count;
  out.stat_counts[1] = total[0].nonzero + total[1].nonzero;
  out.stat_values[0] = poison(p, violation);
  write_common_stats(p, anchors.get(), state.negative_total(), out);
}

}  // namespace dmlap::cpu::DMLAP_ISA

// Losses of an anchor's log-sums: multi-similarity, lifted structure, NT-Xent, N-pairs, SupCon,
// circle, proxy-NCA and proxy-anchor.
#pragma once

#include "dmlap/policies/log_sum.h"
#include "engine/finish.h"
#include "losses/log_sum_sweeps.h"

namespace dmlap::cpu::DMLAP_ISA {

// What forward leaves for backward; arrays are indexed by position.
template <class T>
struct SavedLogSums {
  T *pos_lse, *neg_lse;  // [nx] log-sums of the positives and of the negatives
  T *pull, *shift;       // [nx] d term / d pos_lse, d term / d exponent of each positive
  T* push;               // [nx] d term / d neg_lse
  T *nearest_negative,
      *farthest_positive;  // [nx] distance of the nearest negative, of the farthest positive
  T *weighted_lse,
      *weight_lse;  // [nx] of negatives that have weights, and of these: neg_lse, in parts
  T* column_lse;    // [ny] where the references are anchors as well
  uint8_t* active;  // [panel pairs]

  static constexpr int kArrays = 9;

  static constexpr SavedSize size(bool self) {
    return with_active<T>({sizeof(SavedHeader), kArrays * sizeof(T), sizeof(T)}, self);
  }
  SavedLogSums(uint8_t* base, int64_t nx, int64_t ny) {
    pos_lse = reinterpret_cast<T*>(base + sizeof(SavedHeader));
    neg_lse = pos_lse + nx;
    pull = neg_lse + nx;
    shift = pull + nx;
    push = shift + nx;
    nearest_negative = push + nx;
    farthest_positive = nearest_negative + nx;
    weighted_lse = farthest_positive + nx;
    weight_lse = weighted_lse + nx;
    column_lse = weight_lse + nx;
    active = reinterpret_cast<uint8_t*>(column_lse + ny);
  }
};

// Accumulates exponents, a vector at a time: the log of the sum of their exponentials, and their
// sum.
template <class T>
class ExponentSum {
 public:
  void add(T exponent) {
    pending_[count_++] = exponent;
    if (count_ == Tile<T>::kLanes) flush();
  }
  // log sum e^exponent, -inf for none; total: sum of the exponents.
  double log_sum(double& total) {
    flush();
    total = total_;
    return sum_ > 0 ? top_ + std::log(sum_) : -kInf<double>;
  }

 private:
  void flush() {
    using V = typename Tile<T>::V;
    if (count_ == 0) return;
    T high = pending_[0];
    for (int l = 0; l < count_; ++l) {
      high = pending_[l] > high ? pending_[l] : high;
      total_ += pending_[l];
    }
    for (int l = count_; l < Tile<T>::kLanes; ++l) pending_[l] = -kInf<T>;
    const V e = vexp(load(pending_) - high);
    if (sum_ > 0 && high > top_) sum_ *= std::exp(top_ - double(high));
    const double top = sum_ > 0 && top_ > high ? top_ : double(high);
    const double part = wide_sum<T>(e);
    sum_ += top > high ? part * std::exp(double(high) - top) : part;
    top_ = top;
    count_ = 0;
  }

  alignas(64) T pending_[Tile<T>::kLanes];
  int count_ = 0;
  double top_ = 0, sum_ = 0, total_ = 0;
};

// kKept: see ForwardState.
template <class T, class Policy, int64_t kKept = kKeptOfBatch>
struct LogSumKernels {
  static constexpr bool kSkipsReferences = true;

  static constexpr int kGroups = Policy::kGroups;

  static constexpr SavedSize saved_size(bool self) { return SavedLogSums<T>::size(self); }

  static void forward(const Pairs<T>& pairs, const LossOptions& options, const ForwardOut<T>& out) {
    const Policy policy(options.params);
    const bool stats = out.stat_counts != nullptr;
    ForwardState<T> state(pairs, &out, kKept);
    const Prepared<T>& p = state.p;
    const SavedLogSums<T> saved(out.saved, p.x.n, p.y().n);
    if (Policy::kBothEnds) state.count_references();
    if (stats || policy.mined) {
      sweep_positives(p, state.anchors.get(), [&](AnchorState<T>& a, T d2, int64_t at) {
        note_hardest_positive(p, a, d2, at);
      });
    }
    sweep(policy, state, saved, stats);
    for (int64_t i = 0; i < p.x.n; ++i) {
      const AnchorState<T>& a = state.anchors[i];
      saved.neg_lse[i] = a.log_sum();
      saved.nearest_negative[i] = p.from_squared(a.hardest_negative);
      saved.farthest_positive[i] = farthest_positive(p, a);
    }
    if constexpr (Policy::kWeighted) weigh_negatives(policy, state, saved);
    for (int64_t j = 0; Policy::kBothEnds && !p.self && j < p.y().n; ++j) {
      saved.column_lse[j] = state.references[j].log_sum();
    }
    finish(policy, state, options.reduction, saved);
    write_loss(state, options.reduction, saved, out);
    if (stats) write_statistics(state, out);
    state.keep_rows(out);
  }

  static void backward(const Pairs<T>& pairs, const LossOptions& options,
                       const BackwardArgs<T>& args) {
    const Policy policy(options.params);
    const SavedLogSums<T> saved(const_cast<uint8_t*>(args.saved), pairs.x.n, pairs.y.n);
    if (nonfinite_gradients(pairs, args)) return;
    const BackwardRows<T> rows(pairs, args.kept);
    const Prepared<T>& p = rows.get();
    const ExponentRange<T> range(p, policy.negative);
    Buffer<T> pull(p.x.n);
    Anchors x(p.x.panels), y(p.self || !Policy::kBothEnds ? 0 : p.y().panels);
    upstream(policy, p, options, args, saved, pull, x);
    if constexpr (Policy::kBothEnds) both_ends(policy, p, saved, pull, x, y);
    if constexpr (Policy::kWeighted) {
      return weighted_backward(policy, rows, saved, args, pull, x);
    }
    finish_anchors(policy, range, p.x, saved.neg_lse, saved.farthest_positive, x);
    if (!p.self && Policy::kBothEnds) {
      finish_anchors(policy, range, p.y(), saved.column_lse, saved.farthest_positive, y);
    }
    const Anchors* columns = p.self ? &x : (Policy::kBothEnds ? &y : nullptr);
    both_signs(policy, rows, saved, args, pull, gradient_of(policy, p, range, x, columns));
  }

 private:
  // Gives the weights of a side's negatives; padded to whole panels.
  struct Anchors {
    Buffer<T> push, neg_lse, reach;  // [panels * kWidth]
    explicit Anchors(int64_t panels) {
      const int64_t n = panels * Tile<T>::kWidth;
      push.reset(n);
      neg_lse.reset(n);
      reach.reset(n);
      push.fill(n, T(0));
      neg_lse.fill(n, T(0));
      reach.fill(n, -kInf<T>);
    }
  };

  static LogSumPairGradient<T> gradient_of(const Policy& policy, const Prepared<T>& p,
                                           const ExponentRange<T>& range, const Anchors& x,
                                           const Anchors* columns) {
    const T* reach = policy.mined ? x.reach.get() : nullptr;
    return {&p,
            &range,
            x.push.get(),
            x.neg_lse.get(),
            reach,
            columns ? columns->push.get() : nullptr,
            columns ? columns->neg_lse.get() : nullptr,
            reach};
  }

  // The gradients of the positives, and those of the negatives by their pair gradient.
  template <class PairGradient>
  static void both_signs(const Policy& policy, const BackwardRows<T>& rows,
                         const SavedLogSums<T>& saved, const BackwardArgs<T>& args,
                         const Buffer<T>& pull, const PairGradient& pair_gradient) {
    const Prepared<T>& p = rows.get();
    GradientSide<T> gx, gy;
    gx.out = args.gx;
    gy.out = args.gy;
    const auto slope = [&](int64_t i, int64_t j, T d) {
      if (pull[i] == 0) return T(0);
      return pull[i] * positive_slope(policy, p, saved, i, j, d);
    };
    positive_gradients(p, slope, gx, gy);
    sweep_backward(rows, saved.active, pair_gradient, gx, gy);
  }

  // A second sweep, over the weights. What the first one gathered is saved already.
  static void weigh_negatives(const Policy& policy, const ForwardState<T>& state,
                              const SavedLogSums<T>& saved) {
    const Prepared<T>& p = state.p;
    const ExponentRange<T> range(p, policy.weight);
    for (int64_t i = 0; i < p.x.n; ++i) state.anchors[i].clear_exponentials();
    ForwardShared<T> shared = state.shared(nullptr);
    shared.kept = nullptr;
    sweep_negatives<T, LogSumAccumulator<T>>(shared, {&range, nullptr});
    for (int64_t i = 0; i < p.x.n; ++i) {
      saved.weighted_lse[i] = saved.neg_lse[i];
      saved.weight_lse[i] = state.anchors[i].log_sum();
      if (p.negatives(i) == 0) continue;
      saved.neg_lse[i] += T(std::log(double(p.negatives(i)))) - saved.weight_lse[i];
    }
  }

  // neg_lse is a difference of two log-sums, and so is its gradient.
  static void weighted_backward(const Policy& policy, const BackwardRows<T>& rows,
                                const SavedLogSums<T>& saved, const BackwardArgs<T>& args,
                                const Buffer<T>& pull, Anchors& x) {
    const Prepared<T>& p = rows.get();
    const ExponentRange<T> range(p, policy.negative), range_of_weights(p, policy.weight);
    Anchors weights(p.x.panels);
    for (int64_t i = 0; i < p.x.n; ++i) weights.push[i] = -x.push[i];
    finish_anchors(policy, range, p.x, saved.weighted_lse, saved.farthest_positive, x);
    finish_anchors(policy, range_of_weights, p.x, saved.weight_lse, saved.farthest_positive,
                   weights);
    const SumOfGradients<LogSumPairGradient<T>> pair_gradient{
        gradient_of(policy, p, range, x, p.self ? &x : nullptr),
        gradient_of(policy, p, range_of_weights, weights, p.self ? &weights : nullptr)};
    both_signs(policy, rows, saved, args, pull, pair_gradient);
  }

  static bool kept_positive(const Policy& policy, T d, T nearest_negative) {
    return !policy.mined || d + policy.epsilon > nearest_negative;
  }

  // The term with its derivatives by the exponent and by the negatives' log-sum.
  static Dual<T, 2> pair_term(const Policy& policy, T exponent, T neg_lse) {
    return policy.pair(variable<2>(exponent, 0), variable<2>(neg_lse, 1));
  }

  // Log-sum of the negatives in the term of anchor i and reference j.
  static T pair_neg_lse(const Prepared<T>& p, const SavedLogSums<T>& saved, int64_t i, int64_t j) {
    if (!Policy::kBothEnds) return saved.neg_lse[i];
    return log_add(saved.neg_lse[i], p.self ? saved.neg_lse[j] : saved.column_lse[j]);
  }

  static void sweep(const Policy& policy, const ForwardState<T>& state,
                    const SavedLogSums<T>& saved, bool stats) {
    const Prepared<T>& p = state.p;
    const ExponentRange<T> range(p, policy.negative);
    Buffer<T> reach;
    if (policy.mined) {
      reach.reset(p.x.panels * Tile<T>::kWidth);
      reach.fill(p.x.panels * Tile<T>::kWidth, -kInf<T>);
      for (int64_t i = 0; i < p.x.n; ++i) {
        const AnchorState<T>& a = state.anchors[i];
        if (a.positive_at >= 0) reach[i] = p.from_squared(a.hardest_positive) + policy.epsilon;
      }
    }
    const typename LogSumAccumulator<T>::Options options{&range, reach.get()};
    const ForwardShared<T> shared = state.shared(saved.active);
    if (stats || policy.mined) {
      sweep_negatives<T, Both<LogSumAccumulator<T>, StatsAccumulator<T>>>(shared, {options, {}});
    } else {
      sweep_negatives<T, LogSumAccumulator<T>>(shared, options);
    }
  }

  // Terms and their derivatives, anchor by anchor.
  static void finish(const Policy& policy, const ForwardState<T>& state, Reduction reduction,
                     const SavedLogSums<T>& saved) {
    const Prepared<T>& p = state.p;
    parallel_for(p.row_threads, (p.x.n + 31) / 32, [&](int64_t block) {
      const int64_t last = block * 32 + 32 < p.x.n ? block * 32 + 32 : p.x.n;
      for (int64_t i = block * 32; i < last; ++i) {
        if constexpr (Policy::kPairTerms) {
          finish_pairs(policy, p, saved, i, state.anchors[i]);
        } else {
          finish_anchor(policy, p, reduction, saved, i, state.anchors[i]);
        }
      }
    });
  }

  static void finish_anchor(const Policy& policy, const Prepared<T>& p, Reduction reduction,
                            const SavedLogSums<T>& saved, int64_t i, AnchorState<T>& a) {
    ExponentSum<T> sum;
    const int64_t itself = p.itself(i);
    for (int64_t j = p.begin[i]; j < p.end[i]; ++j) {
      if (j == itself) continue;
      const T d = p.from_squared(p.pair(p.x.row(i), p.y().row(j)));
      if (kept_positive(policy, d, saved.nearest_negative[i])) sum.add(policy.positive(d));
    }
    double exponents;
    const double pos_lse = sum.log_sum(exponents);
    const AnchorSums<Dual<double, 3>> anchor{
        variable<3>(pos_lse, 0), variable<3>(double(saved.neg_lse[i]), 1),
        variable<3>(exponents, 2), p.positives(i), p.negatives(i)};
    const auto t = policy.terms(anchor);
    for (int g = 0; g < kGroups; ++g) {
      const double term = t.value[g].value;
      a.terms[g] = {term, term, t.counted[g], term > 0, term > 0};
    }
    const auto& of_positives = t.value[0];
    const auto& of_negatives = t.value[kGroups - 1];
    const bool pulls = takes(reduction, of_positives.value);
    const bool pushes = takes(reduction, of_negatives.value);
    saved.pos_lse[i] = static_cast<T>(pos_lse);
    saved.pull[i] = pulls ? static_cast<T>(of_positives.by[0]) : T(0);
    saved.push[i] = pushes ? static_cast<T>(of_negatives.by[1]) : T(0);
    saved.shift[i] = pulls ? static_cast<T>(of_positives.by[2]) : T(0);
  }

  static void finish_pairs(const Policy& policy, const Prepared<T>& p, const SavedLogSums<T>& saved,
                           int64_t i, AnchorState<T>& a) {
    double push = 0;
    const int64_t itself = p.itself(i);
    for (int64_t j = p.begin[i]; j < p.end[i]; ++j) {
      if (j == itself) continue;
      const T d = p.from_squared(p.pair(p.x.row(i), p.y().row(j)));
      const Dual<T, 2> t = pair_term(policy, policy.positive(d), pair_neg_lse(p, saved, i, j));
      a.terms[0].add({double(t.value), double(t.value), 1, t.value > 0, t.value > 0});
      push += t.by[1];
    }
    saved.pos_lse[i] = saved.pull[i] = saved.shift[i] = 0;
    saved.push[i] = static_cast<T>(push);
  }

  // d term / d d of the positive pair of anchor i and reference j.
  static T positive_slope(const Policy& policy, const Prepared<T>& p, const SavedLogSums<T>& saved,
                          int64_t i, int64_t j, T d) {
    if (!kept_positive(policy, d, saved.nearest_negative[i])) return 0;
    const T e = policy.positive(d);
    const T slope = policy.positive.slope(d);
    if constexpr (Policy::kPairTerms) {
      return pair_term(policy, e, pair_neg_lse(p, saved, i, j)).by[0] * slope;
    } else {
      T w = saved.shift[i];
      if (saved.pull[i] != 0) w += saved.pull[i] * std::exp(e - saved.pos_lse[i]);
      return w * slope;
    }
  }

  static void write_loss(const ForwardState<T>& state, Reduction reduction,
                         const SavedLogSums<T>& saved, const ForwardOut<T>& out) {
    const Prepared<T>& p = state.p;
    Epilogue<T> end(reduction, p.nonfinite, out);
    for (int64_t i = 0; i < p.x.n; ++i) {
      end.add(p.x.order[i], state.anchors[i].terms, kGroups);
      if (out.thresholds) out.thresholds[p.x.order[i]] = saved.farthest_positive[i];
    }
    end.write();
  }

  // Upstream of an anchor's positives, and its push times upstream.
  static void upstream(const Policy&, const Prepared<T>& p, const LossOptions& options,
                       const BackwardArgs<T>& args, const SavedLogSums<T>& saved, Buffer<T>& pull,
                       Anchors& x) {
    const Upstream<T> up(options, args);
    for (int64_t i = 0; i < p.x.n; ++i) {
      const int64_t row = p.x.order[i];
      const int64_t terms = Policy::kPairTerms ? p.positives(i) : 1;
      pull[i] = up.at(row, 0, terms);
      x.push[i] = saved.push[i] * up.at(row, kGroups - 1, terms);
    }
  }

  // Where a term sees the negatives of both ends, push follows from the pairs.
  static void both_ends(const Policy& policy, const Prepared<T>& p, const SavedLogSums<T>& saved,
                        const Buffer<T>& pull, Anchors& x, Anchors& y) {
    const T* column_lse = p.self ? saved.neg_lse : saved.column_lse;
    const auto by_neg_lse = [&](int64_t i, int64_t j, T neg_lse) {
      if (pull[i] == 0 || !(neg_lse > -kInf<T>)) return T(0);
      const T d = p.from_squared(p.pair(p.x.row(i), p.y().row(j)));
      const T both = pair_neg_lse(p, saved, i, j);
      return pull[i] * pair_term(policy, policy.positive(d), both).by[1] * std::exp(neg_lse - both);
    };
    parallel_for(p.row_threads, p.x.n, [&](int64_t i) {
      double push = 0;
      const int64_t itself = p.itself(i);
      for (int64_t j = p.begin[i]; j < p.end[i]; ++j) {
        if (j == itself) continue;
        push += by_neg_lse(i, j, saved.neg_lse[i]);
        if (p.self) push += by_neg_lse(j, i, saved.neg_lse[i]);
      }
      x.push[i] = static_cast<T>(push);
    });
    if (p.self) return;
    for (int64_t i = 0; i < p.x.n; ++i) {
      const int64_t itself = p.itself(i);
      for (int64_t j = p.begin[i]; j < p.end[i]; ++j) {
        if (j != itself) y.push[j] += by_neg_lse(i, j, column_lse[j]);
      }
    }
  }

  static void finish_anchors(const Policy& policy, const ExponentRange<T>& range,
                             const Side<T>& side, const T* neg_lse, const T* farthest_positive,
                             Anchors& a) {
    for (int64_t i = 0; i < side.n; ++i) {
      a.neg_lse[i] = neg_lse[i] > -kInf<T> ? neg_lse[i] : T(0);
      if (!(neg_lse[i] > -kInf<T>)) a.push[i] = 0;
      if (range.bounded) a.push[i] *= std::exp(range.shift - a.neg_lse[i]);
      if (policy.mined) a.reach[i] = farthest_positive[i] + policy.epsilon;
    }
  }
};

}  // namespace dmlap::cpu::DMLAP_ISA

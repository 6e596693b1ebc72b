// Triplets with drawn negatives (1706.07567), anchors one by one.
#pragma once

#include "engine/simd_math.h"
#include "losses/anchor_rows.h"

namespace dmlap::cpu::DMLAP_ISA {

// The triplets of one anchor. Weights and running sums are double for every type of rows.
template <class T>
class WeightedChoice {
  using V = Simd<double>::V;
  static constexpr int64_t L = Simd<double>::kLanes;
  static constexpr int64_t kSegment = 64;

 public:
  Buffer<int64_t> positive, negative;

  WeightedChoice(const Prepared<T>& p, const LossOptions& options)
      : positive(p.y().n),
        negative(p.y().n),
        p_(p),
        draw_(options.params, p.dim),
        segments_((p.y().n + kSegment - 1) / kSegment),
        weight_(segments_ * kSegment),
        before_(segments_ + 1) {}

  int64_t choose(int64_t i, const T* d2) {
    if (!weigh(i, d2)) return 0;
    int64_t count = 0;
    const int64_t itself = p_.itself(i);
    // A batch and a part of it that is compared with all of it draw alike.
    const int64_t number = itself < 0 ? p_.x.order[i] : p_.y().order[itself];
    for (int64_t j = p_.begin[i]; j < p_.end[i]; ++j) {
      if (j == itself) continue;
      positive[count] = j;
      negative[count] = first_beyond(draw_.uniform01(number, count) * before_[segments_]);
      ++count;
    }
    return count;
  }

 private:
  // Weights, up to a common factor, and their running sums. False if all are 0.
  bool weigh(int64_t i, const T* d2) {
    const int64_t n = p_.y().n, padded = segments_ * kSegment;
    const double inf = kInf<double>;
    for (int64_t j = 0; j < n; ++j) weight_[j] = d2[j] < 0 ? 0.0 : double(d2[j]);
    for (int64_t j = p_.begin[i]; j < p_.end[i]; ++j) weight_[j] = inf;
    for (int64_t j = n; j < padded; ++j) weight_[j] = inf;
    V most = V{} - inf;
    for (int64_t j = 0; j < padded; j += L) {
      const V squared = load(weight_.get() + j);
      const V close = squared < draw_.low ? V{} + draw_.low : squared;
      const V rest = 1 - close * 0.25;
      const V log_weight = draw_.closeness * vlog(close) + draw_.farness * vlog(rest);
      const V v = (squared < draw_.high) & (close > 0) & (rest > 0) ? log_weight : V{} - inf;
      store(weight_.get() + j, v);
      most = v > most ? v : most;
    }
    double top = most[0];
    for (int64_t l = 1; l < L; ++l) top = most[l] > top ? most[l] : top;
    if (!(top > -inf)) return false;
    before_[0] = 0;
    for (int64_t s = 0; s < segments_; ++s) {
      V sum{};
      for (int64_t j = s * kSegment; j < (s + 1) * kSegment; j += L) {
        const V w = vexp(load(weight_.get() + j) - top);
        store(weight_.get() + j, w);
        sum += w;
      }
      before_[s + 1] = before_[s] + sum_lanes<double>(sum);
    }
    return true;
  }

  // The first position at which the running sum exceeds the target, which is below the total.
  int64_t first_beyond(double target) const {
    int64_t low = 0, high = segments_ - 1;  // the first segment whose end exceeds it
    while (low < high) {
      const int64_t middle = (low + high) / 2;
      if (before_[middle + 1] > target) {
        high = middle;
      } else {
        low = middle + 1;
      }
    }
    double running = before_[low];
    int64_t last = -1;
    for (int64_t j = low * kSegment; j < (low + 1) * kSegment; ++j) {
      running += weight_[j];
      if (weight_[j] > 0) last = j;
      if (running > target && last == j) return j;
    }
    return last;
  }

  const Prepared<T>& p_;
  DistanceWeights draw_;
  int64_t segments_;
  Buffer<double> weight_;  // [segments][kSegment]
  Buffer<double> before_;  // [segments + 1] sum of the weights before a segment
};

// Draws for every anchor. Stores the triplets of anchors with few positives; adds those of the
// others to `totals`, unless it is null.
template <class T>
inline void mine_distance_weighted(const Prepared<T>& p, const LossOptions& options,
                                   MinedTriplets<T>& mined, TermSums* totals) {
  each_anchor_row<T, RowMiner<T, WeightedChoice<T>>>(
      p, options,
      [&](int64_t i) {
        return few_positives(p, i) > 0 || (totals != nullptr && many_positives(p, i) > 0);
      },
      [&](auto& miner, int64_t i, const T* d2) {
        const int64_t few = few_positives(p, i);
        if (few == 0) return miner.add(i, d2, totals[i]);
        const int64_t n = miner.choose(i, d2);
        for (int64_t m = 0; m < few; ++m) {
          mined.set(p, i, m, n > 0 ? miner.positive(m) : p.begin[i],
                    n > 0 ? miner.negative(m) : -1);
        }
      });
}

template <class T>
struct TripletDistanceWeightedKernels {
  static constexpr bool kSkipsReferences = false;

  static constexpr SavedSize saved_size(bool) { return {sizeof(SavedHeader)}; }

  static void forward(const Pairs<T>& pairs, const LossOptions& options, const ForwardOut<T>& out) {
    const ForwardState<T> state(pairs);
    const Prepared<T>& p = state.p;
    Buffer<TermSums> totals(p.x.n);
    totals.fill(p.x.n, TermSums{});
    MinedTriplets<T> mined(p);
    mine_distance_weighted(p, options, mined, totals.get());
    mined.weigh(p, Triplet<T>(options.params), totals.get());
    finish_triplets(state, options, totals.get(), out);
  }

  static void backward(const Pairs<T>& pairs, const LossOptions& options,
                       const BackwardArgs<T>& args) {
    if (nonfinite_gradients(pairs, args)) return;
    Prepared<T> p;
    prepare(p, pairs, true);
    MinedTriplets<T> mined(p);
    mine_distance_weighted<T>(p, options, mined, nullptr);
    mined.weigh(p, Triplet<T>(options.params), nullptr);
    backward_mined<T, WeightedChoice<T>>(p, mined, options, args);
  }
};

}  // namespace dmlap::cpu::DMLAP_ISA

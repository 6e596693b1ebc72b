// All triplets with the distance of the negative taken from the anchor or from the positive.
#pragma once

#include "class_runs_terms.h"
#include "dmlap/policies/triplet_swap.h"

namespace dmlap::cpu::DMLAP_ISA {

// Of a row and a column: their distance; of a pair of rows as well. Of rows that are no pair -inf,
// so that they violate nothing. kOwn: some anchor is no pair with a reference of another class, so
// that a column may be at the distance +inf of one row of a pair alone.
template <class T, bool kSmooth, bool kOwn>
struct SwapTerms {
  using V = typename Simd<T>::V;
  static constexpr T kNoPair = -kInf<T>;
  static constexpr int kSums = kSmooth ? 4 : 2;  // terms, positive ones; hinges, positive ones
  static constexpr bool kPullInSweep = true;
  static constexpr bool kDifferences = true;

  TripletSwap<T> policy;
  const Prepared<T>* p;

  SwapTerms(const double* params, const Prepared<T>& p) : policy(params), p(&p) {}

  int64_t count(int64_t positives, int64_t negatives) const { return positives * negatives; }
  T threshold_margin() const { return policy.margin; }
  T own(T d2) const { return p->from_squared(d2); }
  V value(V d2) const { return p->from_squared(d2); }

  void add(V a, V b, V own, V* sums) const {
    const V one = V{} + T(1);
    const V violation = this->violation(a, b, own);
    if constexpr (kSmooth) {
      const V term = vsoftplus(violation);
      sums[0] += term;
      sums[1] += term > 0 ? one : V{};
      sums[2] += policy.hinge(violation);
      sums[3] += violation > 0 ? one : V{};
    } else {
      sums[0] += policy.hinge(violation);
      sums[1] += violation > 0 ? one : V{};
    }
  }
  PairTotal total(T, const double* sums) const {
    constexpr int h = kSmooth ? 2 : 0;
    return {sums[0], int64_t(sums[1]), sums[h], int64_t(sums[h + 1])};
  }

  V violation(V a, V b, V own) const {
    const V all = policy.violation(own, a, b);
    if constexpr (!kOwn) return all;
    return (a < kInf<T>)&(b < kInf<T>) ? all : V{} - kInf<T>;
  }
  V slope(V a, V b, V own) const {
    const V violation = this->violation(a, b, own);
    if constexpr (kSmooth) return vsigmoid(violation);
    return violation > 0 ? V{} + T(1) : V{};
  }

  struct Slopes {
    static constexpr T kNoPair = SwapTerms::kNoPair;
    static constexpr int kSums = 1;
    SwapTerms terms;

    explicit Slopes(const SwapTerms& terms) : terms(terms) {}
    T own(T d2) const { return terms.own(d2); }
    V value(V d2) const { return terms.value(d2); }
    void add(V a, V b, V own, V* sums) const { sums[0] += terms.slope(a, b, own); }
  };

  T coefficient(T, double, T c) const { return c; }
  T pull(T own, double sum, T c) const { return T(c * sum) * p->factor(own); }
  V weigh(V a, V b, V own, V coefficient, V& w) const {
    const V slope = coefficient * this->slope(a, b, own);
    w += policy.share(a, b, slope);
    return slope;
  }
  V close(V a, V w) const {
    if (!p->euclidean()) return -w * (2 * p->linear());
    return a > 0 ? -w / a : V{};
  }
};

template <class T>
struct TripletSwapKernels {
  static constexpr bool kSkipsReferences = false;

  static size_t saved_bytes(const Pairs<T>&, const LossOptions&) { return sizeof(SavedHeader); }
  static void forward(const Pairs<T>& pairs, const LossOptions& options, const ForwardOut<T>& out) {
    with_terms(pairs, options, [&](auto terms) {
      forward_runs<T, typename decltype(terms)::Type>(pairs, options, out);
    });
  }
  static void backward(const Pairs<T>& pairs, const LossOptions& options,
                       const BackwardArgs<T>& args) {
    with_terms(pairs, options, [&](auto terms) {
      backward_runs<T, typename decltype(terms)::Type>(pairs, options, args);
    });
  }

 private:
  template <class Terms>
  struct Of {
    using Type = Terms;
  };
  template <class F>
  static void with_terms(const Pairs<T>& pairs, const LossOptions& options, F f) {
    const bool smooth = options.params[1] != 0, own = !pairs.self && pairs.self_index != nullptr;
    if (smooth) return own ? f(Of<SwapTerms<T, true, true>>{}) : f(Of<SwapTerms<T, true, false>>{});
    own ? f(Of<SwapTerms<T, false, true>>{}) : f(Of<SwapTerms<T, false, false>>{});
  }
};

// All triplets: with the swap the kernels above, without it those of Plain.
template <class T, class Plain>
struct WithSwapKernels {
  static constexpr bool kSkipsReferences = false;

  static size_t saved_bytes(const Pairs<T>& pairs, const LossOptions& options) {
    const size_t plain = Plain::saved_bytes(pairs, options);
    const size_t swap = TripletSwapKernels<T>::saved_bytes(pairs, options);
    return plain > swap ? plain : swap;
  }
  static void forward(const Pairs<T>& pairs, const LossOptions& options, const ForwardOut<T>& out) {
    if (options.params[2] != 0) return TripletSwapKernels<T>::forward(pairs, options, out);
    Plain::forward(pairs, options, out);
  }
  static void backward(const Pairs<T>& pairs, const LossOptions& options,
                       const BackwardArgs<T>& args) {
    if (options.params[2] != 0) return TripletSwapKernels<T>::backward(pairs, options, args);
    Plain::backward(pairs, options, args);
  }
};

}  // namespace dmlap::cpu::DMLAP_ISA

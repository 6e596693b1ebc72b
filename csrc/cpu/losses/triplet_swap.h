// All triplets with `swap`: a negative's distance is the smaller of those to anchor and positive.
#pragma once

#include "dmlap/policies/triplet.h"
#include "losses/class_pairs.h"

namespace dmlap::cpu::DMLAP_ISA {

// The value of a row and a column, and of a pair of rows, is their distance; of rows that are no
// pair it is -inf, which violates nothing. kOwn: some anchor forms no pair with a reference of
// another class (itself), so a column may be at distance +inf from one row of a pair only.
template <class T, bool kSmooth, bool kOwn>
struct SwapTerms {
  using V = typename Simd<T>::V;
  static constexpr T kNoPair = -kInf<T>;
  static constexpr int kSums = kSmooth ? 4 : 2;  // terms, positive ones; hinges, positive ones
  static constexpr bool kPullInSweep = true;
  static constexpr bool kDifferences = true;

  Triplet<T> policy;
  const Prepared<T>* p;

  SwapTerms(const double* params, const Prepared<T>& p) : policy(params), p(&p) {}

  int64_t count(int64_t positives, int64_t negatives) const { return positives * negatives; }
  T threshold_margin() const { return policy.margin; }
  T own(T d2) const { return p->from_squared(d2); }
  V value(V d2) const { return p->from_squared(d2); }

  void add(V a, V b, V own, V* sums) const {
    const V one = V{} + T(1);
    const V violation = of_pairs(this->violation(a, b, own), a, b);
    if constexpr (kSmooth) {
      const V term = triplet_term<true>(violation);
      sums[0] += term;
      sums[1] += term > 0 ? one : V{};
      sums[2] += hinge(violation);
      sums[3] += violation > 0 ? one : V{};
    } else {
      sums[0] += hinge(violation);
      sums[1] += violation > 0 ? one : V{};
    }
  }
  TermSums total(T, const double* sums) const {
    constexpr int h = kSmooth ? 2 : 0;
    return {sums[0], sums[h], 0, int64_t(sums[1]), int64_t(sums[h + 1])};
  }

  // N: V or its duals
  template <class N>
  N violation(N a, N b, N own) const {
    return policy.threshold(own) - policy.nearer(a, b);
  }
  V of_pairs(V violation, V a, V b) const {
    if constexpr (!kOwn) return violation;
    return (a < kInf<T>)&(b < kInf<T>) ? violation : V{} - kInf<T>;
  }
  // The term with its derivatives by `own` and by a, both times `seed`.
  Dual<V, 2> derive(V a, V b, V own, V seed) const {
    auto violation =
        this->violation(variable<2>(a, 1, seed), Dual<V, 2>{b, {}}, variable<2>(own, 0, seed));
    violation.value = of_pairs(violation.value, a, b);
    return triplet_term<kSmooth>(violation);
  }

  struct Slopes {
    static constexpr T kNoPair = SwapTerms::kNoPair;
    static constexpr int kSums = 1;
    SwapTerms terms;

    explicit Slopes(const SwapTerms& terms) : terms(terms) {}
    T own(T d2) const { return terms.own(d2); }
    V value(V d2) const { return terms.value(d2); }
    void add(V a, V b, V own, V* sums) const {
      sums[0] += terms.derive(a, b, own, V{} + T(1)).by[0];
    }
  };

  T coefficient(T, double, T c) const { return c; }
  T pull(T own, double sum, T c) const { return T(c * sum) * p->factor(own); }
  V weigh(V a, V b, V own, V coefficient, V& w) const {
    const Dual<V, 2> term = derive(a, b, own, coefficient);
    w -= term.by[1];
    return term.by[0];
  }
  V close(V a, V w) const { return -p->pair_weight(w, a); }
};

template <class T>
struct TripletSwapKernels {
  static constexpr bool kSkipsReferences = false;

  static constexpr SavedSize saved_size(bool) { return {sizeof(SavedHeader)}; }
  static void forward(const Pairs<T>& pairs, const LossOptions& options, const ForwardOut<T>& out) {
    with_terms(pairs, options, [&](auto terms) {
      RunKernels<T, typename decltype(terms)::Type>::forward(pairs, options, out);
    });
  }
  static void backward(const Pairs<T>& pairs, const LossOptions& options,
                       const BackwardArgs<T>& args) {
    with_terms(pairs, options, [&](auto terms) {
      RunKernels<T, typename decltype(terms)::Type>::backward(pairs, options, args);
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

// All triplets: the kernels above with `swap`, those of Plain without.
template <class T, class Plain>
struct WithSwapKernels {
  static constexpr bool kSkipsReferences = false;

  // With the swap, a header.
  static constexpr SavedSize saved_size(bool self) { return Plain::saved_size(self); }
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

// Angular loss: each pair of rows of a class against every column of another class.
#pragma once

#include "dmlap/policies/angular.h"
#include "losses/class_pairs.h"

namespace dmlap::cpu::DMLAP_ISA {

// e^(spread * cosine) of a row and a column. Its product over two rows is a term of the pair's sum.
template <class T>
struct AngularTerms {
  using V = typename Simd<T>::V;
  using Slopes = AngularTerms;
  static constexpr T kNoPair = 0;
  static constexpr int kSums = 1;
  static constexpr bool kPullInSweep = false;
  static constexpr bool kDifferences = false;

  Angular<T> policy;
  const Prepared<T>* p;

  AngularTerms(const double* params, const Prepared<T>& p) : policy(params), p(&p) {}

  int64_t count(int64_t positives, int64_t) const { return positives; }
  T threshold_margin() const { return 0; }
  T own(T d2) const { return 1 - p->from_squared(d2); }
  V value(V d2) const { return vexp(policy.exponent(1 - p->from_squared(d2))); }

  void add(V a, V b, V, V* sums) const { sums[0] += a * b; }
  TermSums total(T own, const double* sums) const {
    const double term = policy.term(double(own), sums[0]);
    return {term, term, 0, term > 0, term > 0};
  }

  T coefficient(T own, double sum, T c) const { return T(c * policy.derive(own, sum).by[1]); }
  // d distance = -d cosine
  T pull(T own, double sum, T c) const { return T(-c * policy.derive(own, sum).by[0]); }
  V weigh(V, V b, V, V coefficient, V& w) const {
    w += coefficient * b;
    return V{};
  }
  V close(V a, V w) const { return -policy.spread * a * w; }
};

template <class T>
using AngularKernels = RunKernels<T, AngularTerms<T>>;

}  // namespace dmlap::cpu::DMLAP_ISA

// Single pairs in losses of log-sums: the exponent of a pair, and the term of a positive pair.
#pragma once

#include "dmlap/dual.h"

namespace dmlap {

// e(d) = rate (d - zero), or with a side: rate [side (d - pivot)]+ (d - zero), where the bracket is
// a constant in the derivative.
template <class T>
struct Exponent {
  T rate = 0, zero = 0;
  int side = 0;
  T pivot = 0;

  template <class V>
  DMLAP_HD V slope(V d) const {
    if (side == 0) return V{} + rate;
    const V h = (d - pivot) * T(side);
    return rate * hinge(h);
  }
  template <class V>
  DMLAP_HD V operator()(V d) const {
    return slope(d) * (d - zero);
  }
};

// Terms of a positive pair, of its exponent and neg_lse = log sum_n e^exponent_n.

// NT-Xent (2002.05709) and N-pairs (Sohn 2016): log(1 + sum_n e^(exponent_n - exponent))
template <class N>
DMLAP_HD N nt_xent_term(N exponent, N neg_lse) {
  return softplus(neg_lse - exponent);
}

// Lifted structure (1511.06452, eq. 4). neg_lse is over the negatives of both ends; without any it
// is -inf and the term 0.
template <class N>
DMLAP_HD N lifted_term(N exponent, N neg_lse) {
  const N h = hinge(exponent + neg_lse);
  return h * h / 2;
}

}  // namespace dmlap

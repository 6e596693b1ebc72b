// What the policies of log-sum-exp losses are written with.
//
// Such a loss sees the negatives of an anchor through zn = log sum_N e^exponent(d), and its
// positives likewise (zp), or each positive by itself. A policy has
//   Exponent<T> positive, negative   exponents as functions of the distance
//   bool mined; T epsilon            whether easy pairs are left out, as in multi-similarity
//   kGroups                          1 or 2 groups of terms an anchor
//   kPairTerms                       a term for each positive pair instead of for each anchor
//   term(anchor) -> SoftTerm         unless kPairTerms
//   pair(exponent, zn) -> PairTerm   if kPairTerms
//   kBothEnds                        the pair also sees the negatives of its positive
#pragma once

#include <cmath>

#include "dmlap/types.h"

namespace dmlap {

// e(d) = rate (d - zero), or with a side: rate [side (d - pivot)]+ (d - zero), whose bracket counts
// as a constant in the derivative.
template <class T>
struct Exponent {
  T rate = 0, zero = 0;
  int side = 0;
  T pivot = 0;

  template <class V>
  DMLAP_HD V slope(V d) const {
    if (side == 0) return V{} + rate;
    const V h = (d - pivot) * T(side);
    return rate * (h < 0 ? V{} : h);
  }
  template <class V>
  DMLAP_HD V operator()(V d) const {
    return slope(d) * (d - zero);
  }
};

// An anchor as its terms see it. zp, zn: -inf where there is nothing to sum.
struct SoftAnchor {
  double zp, zn;
  double exponent_sum;  // of the positives
  int64_t positives, negatives;
};

// Terms of an anchor, and their derivatives by zp, by zn, and by each positive's exponent.
struct SoftTerm {
  double value[2] = {0, 0};
  bool counted[2] = {true, true};
  double by_zp = 0, by_zn = 0, by_exponent = 0;
};

// Term of a positive pair and its derivatives.
template <class T>
struct PairTerm {
  T value, by_exponent, by_zn;
};

template <class T>
DMLAP_HD T softplus(T t) {
  return (t > 0 ? t : T(0)) + std::log1p(std::exp(t > 0 ? -t : t));
}

template <class T>
DMLAP_HD T sigmoid(T t) {
  const T u = std::exp(t > 0 ? -t : t);
  return (t > 0 ? T(1) : u) / (1 + u);
}

// log(e^a + e^b); -inf if both are.
template <class T>
DMLAP_HD T log_add(T a, T b) {
  const T top = a > b ? a : b, low = a > b ? b : a;
  if (top == low) return top + T(0.69314718055994530942);
  return top + std::log1p(std::exp(low - top));
}

template <class T>
struct SoftPolicy {
  static constexpr int kGroups = 1;
  static constexpr bool kPairTerms = false;
  static constexpr bool kBothEnds = false;
  Exponent<T> positive, negative;
  bool mined = false;
  T epsilon = 0;
};

}  // namespace dmlap

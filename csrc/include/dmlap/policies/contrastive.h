// Contrastive loss (Hadsell, Chopra, LeCun 2006): a hinge on every pair.
#pragma once

#include "dmlap/types.h"

namespace dmlap {

// A pairwise policy: the term of a pair depends on its distance alone. V is a scalar or a vector.
template <class T>
struct Contrastive {
  static constexpr int kGroups = 2;

  T pos_margin;
  T neg_margin;
  bool squared;

  DMLAP_HD explicit Contrastive(const double* params)
      : pos_margin(static_cast<T>(params[0])),
        neg_margin(static_cast<T>(params[1])),
        squared(params[2] != 0) {}

  // A negative at this distance or beyond adds nothing.
  DMLAP_HD T reach() const { return neg_margin; }

  template <class V>
  DMLAP_HD V positive_violation(V d) const {
    const V h = d - pos_margin;
    return h < 0 ? V{} : h;
  }

  template <class V>
  DMLAP_HD V negative_violation(V d) const {
    const V h = neg_margin - d;
    return h < 0 ? V{} : h;
  }

  // Term and its derivative as functions of the violation.
  template <class V>
  DMLAP_HD V term(V violation) const {
    return squared ? violation * violation : violation;
  }

  template <class V>
  DMLAP_HD V slope(V violation) const {
    const V one = V{} + T(1);
    return squared ? violation + violation : (violation > 0 ? one : V{});
  }
};

}  // namespace dmlap

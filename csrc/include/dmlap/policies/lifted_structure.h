// Lifted structure losses: generalised (1703.07737, eq. 4) and original (1511.06452, eq. 4).
#pragma once

#include "dmlap/policies/soft.h"

namespace dmlap {

template <class T>
struct LiftedStructure : SoftPolicy<T> {
  DMLAP_HD explicit LiftedStructure(const double* params) {
    this->positive = {T(1), static_cast<T>(params[0])};
    this->negative = {T(-1), static_cast<T>(params[1])};
  }

  DMLAP_HD SoftTerm term(const SoftAnchor& a) const {
    SoftTerm t;
    const double z = (a.positives ? a.zp : 0) + (a.negatives ? a.zn : 0);
    t.value[0] = z < 0 ? 0 : z;
    t.by_zp = z > 0 && a.positives ? 1 : 0;
    t.by_zn = z > 0 && a.negatives ? 1 : 0;
    return t;
  }
};

template <class T>
struct LiftedStructureOriginal : LiftedStructure<T> {
  static constexpr bool kPairTerms = true;
  static constexpr bool kBothEnds = true;

  using LiftedStructure<T>::LiftedStructure;

  // zn: of the negatives of both ends; the logarithm of an empty sum is -inf, and the term 0.
  DMLAP_HD PairTerm<T> pair(T exponent, T zn) const {
    const T z = exponent + zn;
    const T h = z < 0 ? T(0) : z;
    return {h * h / 2, h, h};
  }
};

}  // namespace dmlap

// Circle loss (2002.10857, eq. 6) of cosine similarities s = 1 - d.
#pragma once

#include "dmlap/policies/soft.h"

namespace dmlap {

template <class T>
struct Circle : SoftPolicy<T> {
  // -gamma [1 + m - s]+ (s - (1 - m)) and gamma [s + m]+ (s - m)
  DMLAP_HD explicit Circle(const double* params) {
    const T m = static_cast<T>(params[0]), gamma = static_cast<T>(params[1]);
    this->positive = {gamma, m, 1, -m};
    this->negative = {-gamma, 1 - m, -1, 1 + m};
  }

  DMLAP_HD SoftTerm term(const SoftAnchor& a) const {
    SoftTerm t;
    if (a.positives == 0 || a.negatives == 0) return t;
    t.value[0] = softplus(a.zp + a.zn);
    t.by_zp = t.by_zn = sigmoid(a.zp + a.zn);
    return t;
  }
};

}  // namespace dmlap

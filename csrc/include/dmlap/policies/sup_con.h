// Supervised contrastive loss (2004.11362, eq. 2).
#pragma once

#include "dmlap/policies/soft.h"

namespace dmlap {

template <class T>
struct SupCon : SoftPolicy<T> {
  DMLAP_HD explicit SupCon(const double* params) {
    this->positive = this->negative = {static_cast<T>(-1 / params[0]), T(0)};
  }

  DMLAP_HD SoftTerm term(const SoftAnchor& a) const {
    SoftTerm t;
    if (a.positives == 0) return t;
    const double all = log_add(a.zp, a.zn);
    t.value[0] = all - a.exponent_sum / double(a.positives);
    t.by_zp = std::exp(a.zp - all);
    t.by_zn = std::exp(a.zn - all);
    t.by_exponent = -1 / double(a.positives);
    return t;
  }
};

}  // namespace dmlap

// Proxy-NCA (1703.07464, eq. 4, with the positive in the denominator) and proxy-anchor (2003.13911,
// eq. 4).
#pragma once

#include "dmlap/policies/soft.h"

namespace dmlap {

template <class T>
struct ProxyNCA : SoftPolicy<T> {
  DMLAP_HD explicit ProxyNCA(const double* params) {
    this->positive = this->negative = {static_cast<T>(-params[0]), T(0)};
  }

  DMLAP_HD SoftTerm term(const SoftAnchor& a) const {
    SoftTerm t;
    t.counted[0] = a.positives > 0;
    if (a.positives == 0) return t;
    t.value[0] = softplus(a.zn - a.zp);
    t.by_zn = sigmoid(a.zn - a.zp);
    t.by_zp = -t.by_zn;
    return t;
  }
};

// Anchors are the proxies.
template <class T>
struct ProxyAnchor : SoftPolicy<T> {
  static constexpr int kGroups = 2;

  DMLAP_HD explicit ProxyAnchor(const double* params) {
    const T alpha = static_cast<T>(params[0]);
    this->positive = {alpha, static_cast<T>(params[1])};
    this->negative = {-alpha, static_cast<T>(params[2])};
  }

  DMLAP_HD SoftTerm term(const SoftAnchor& a) const {
    SoftTerm t;
    t.counted[0] = a.positives > 0;
    t.value[0] = softplus(a.zp);
    t.value[1] = softplus(a.zn);
    t.by_zp = sigmoid(a.zp);
    t.by_zn = sigmoid(a.zn);
    return t;
  }
};

}  // namespace dmlap

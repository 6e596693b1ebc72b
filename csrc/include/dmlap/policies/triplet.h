// The term of a triplet (anchor, positive, negative), whatever chose it.
#pragma once

#include <cmath>

#include "dmlap/types.h"

namespace dmlap {

template <class T>
struct Triplet {
  static constexpr int kGroups = 1;

  T margin;
  bool smooth;  // softplus in place of the hinge
  bool swap;    // negative distance = min(d_an, d_pn)

  DMLAP_HD explicit Triplet(const double* params)
      : margin(static_cast<T>(params[0])), smooth(params[1] != 0), swap(params[2] != 0) {}

  DMLAP_HD T hinge(T d_ap, T d_an) const {
    const T t = d_ap - d_an + margin;
    return t < 0 ? T(0) : t;  // a NaN passes
  }

  DMLAP_HD T term(T d_ap, T d_an) const {
    if (!smooth) return hinge(d_ap, d_an);
    const T t = d_ap - d_an + margin;
    return (t > 0 ? t : T(0)) + std::log1p(std::exp(t > 0 ? -t : t));
  }

  // d term / d d_ap = -d term / d d_an.
  DMLAP_HD T slope(T d_ap, T d_an) const {
    const T t = d_ap - d_an + margin;
    if (!smooth) return t > 0 ? T(1) : T(0);
    return t > 0 ? 1 / (1 + std::exp(-t)) : std::exp(t) / (1 + std::exp(t));
  }
};

}  // namespace dmlap

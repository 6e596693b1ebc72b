// SoftTriple (1909.05235): softmax over classes that have several centres each.
#pragma once

#include "dmlap/types.h"

namespace dmlap {

// The similarity of a sample to a class is the mean of its similarities to the class's centres,
// weighted by their softmax. V is a scalar or a vector.
template <class T>
struct SoftTriple {
  T la;
  T sharpness;  // 1 / gamma
  T margin;

  DMLAP_HD explicit SoftTriple(const double* params)
      : la(static_cast<T>(params[0])),
        sharpness(static_cast<T>(1 / params[1])),
        margin(static_cast<T>(params[2])) {}

  template <class V>
  DMLAP_HD V exponent(V similarity) const {
    return sharpness * similarity;
  }

  // of a class, before the margin of the sample's own class
  template <class V>
  DMLAP_HD V logit(V similarity) const {
    return la * similarity;
  }
  DMLAP_HD T own_offset() const { return la * margin; }

  // d logit / d similarity to a centre, given the centre's softmax weight `share` and the class's
  // similarity `mean`.
  template <class V>
  DMLAP_HD V slope(V share, V similarity, V mean) const {
    return la * share * (T(1) + sharpness * (similarity - mean));
  }
};

}  // namespace dmlap

// Triplets of an anchor, a positive and a negative, the negative as near as it is to either.
#pragma once

#include "dmlap/types.h"

namespace dmlap {

// All functions are of the violation d_ap - min(d_an, d_pn) + margin. V is a scalar or a vector.
// The minimum and its gradient are those of torch.minimum.
template <class T>
struct TripletSwap {
  T margin;

  DMLAP_HD explicit TripletSwap(const double* params) : margin(static_cast<T>(params[0])) {}

  template <class V>
  DMLAP_HD V violation(V d_ap, V d_an, V d_pn) const {
    return (d_ap + margin) - nearer(d_an, d_pn);
  }
  template <class V>
  DMLAP_HD static V nearer(V d_an, V d_pn) {
    return d_an < d_pn ? d_an : d_pn;
  }
  template <class V>
  DMLAP_HD V hinge(V violation) const {
    return violation > 0 ? violation : V{};
  }
  // The anchor's share in a slope: all of it, none, or half where both distances are the same.
  template <class V>
  DMLAP_HD static V share(V d_an, V d_pn, V slope) {
    const V half = slope * T(0.5);
    return (d_an < d_pn ? half : V{}) + (d_an <= d_pn ? half : V{});
  }
};

}  // namespace dmlap

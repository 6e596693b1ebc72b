// Triplets of an anchor, a positive and a negative: their term, `swap`, and the weights for drawing
// negatives.
#pragma once

#include "dmlap/dual.h"

namespace dmlap {

// The term of a violation: a hinge, or its softplus.
template <bool kSmooth, class N>
DMLAP_HD N triplet_term(N violation) {
  if constexpr (kSmooth) {
    return softplus(violation);
  } else {
    return hinge(violation);
  }
}

template <class T>
struct Triplet {
  T margin;
  bool smooth;
  bool swap;

  DMLAP_HD explicit Triplet(const double* params)
      : margin(static_cast<T>(params[0])), smooth(params[1] != 0), swap(params[2] != 0) {}

  // With `swap`, the smaller of the negative's distances to the anchor and to the positive.
  template <class N>
  DMLAP_HD static N nearer(N d_an, N d_pn) {
    return minimum(d_an, d_pn);
  }

  // A nearer negative violates the triplet.
  template <class N>
  DMLAP_HD N threshold(N d_ap) const {
    return d_ap + margin;
  }
  // By how much. Unlike a threshold, it does not round when both distances are large.
  template <class N>
  DMLAP_HD N violation(N d_ap, N d_n) const {
    return d_ap - d_n + margin;
  }
  template <class N>
  DMLAP_HD N term(N violation) const {
    return smooth ? triplet_term<true>(violation) : triplet_term<false>(violation);
  }

  // Derivatives of the term by d_ap, d_an and d_pn; d_pn is +inf without `swap`.
  DMLAP_HD Dual<T, 3> derive(T d_ap, T d_an, T d_pn) const {
    const auto d_n = nearer(variable<3>(d_an, 1), variable<3>(d_pn, 2));
    return term(violation(variable<3>(d_ap, 0), d_n));
  }
};

// Distance-weighted negatives (1706.07567): drawn with probability ~ 1 / density of the distances
// of unit vectors; counter-based, so that a seed means the same draws everywhere.
struct DistanceWeights {
  double low, high;  // squared: smaller distances count as `low`; from `high` on the weight is 0
  double closeness, farness;  // log w = closeness * log d^2 + farness * log(1 - d^2 / 4)
  uint64_t seed;

  // params: those of Triplet, then cutoff, nonzero_loss_cutoff, seed.
  DMLAP_HD DistanceWeights(const double* params, int64_t dim)
      : low(params[3] * params[3]),
        high(params[4] * params[4]),
        closeness((2.0 - double(dim)) / 2),
        farness((3.0 - double(dim)) / 2),
        seed(static_cast<uint64_t>(params[5])) {}

  DMLAP_HD static uint64_t splitmix64(uint64_t z) {
    z += 0x9E3779B97F4A7C15u;
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
    return z ^ (z >> 31);
  }
  // The random number in [0, 1) of the k-th positive of an anchor.
  DMLAP_HD double uniform01(int64_t anchor, int64_t k) const {
    const uint64_t own = splitmix64(splitmix64(seed) ^ uint64_t(anchor));
    return double(splitmix64(own ^ uint64_t(k)) >> 11) * 0x1p-53;
  }
};

}  // namespace dmlap

// Distance-weighted negatives (1706.07567): drawn with probability ~ 1 / density of the distances
// of unit vectors; counter-based, so that a seed means the same draws everywhere.
#pragma once

#include <cmath>

#include "dmlap/policies/triplet.h"

namespace dmlap {

struct DistanceWeights {
  double low, high;           // squared: distances below count as it, from `high` on nothing does
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
  // The number in [0, 1) of the k-th positive of an anchor.
  DMLAP_HD double uniform01(int64_t anchor, int64_t k) const {
    const uint64_t own = splitmix64(splitmix64(seed) ^ uint64_t(anchor));
    return double(splitmix64(own ^ uint64_t(k)) >> 11) * 0x1p-53;
  }
};

}  // namespace dmlap

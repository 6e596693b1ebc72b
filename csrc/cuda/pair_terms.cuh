// Terms of positive pairs against the negatives of their ends.
#pragma once

#include "dmlap/cuda/sweeps.h"
#include "dmlap/policies/soft.h"

namespace dmlap::cuda {

// At a positive's exponent e, the log-sum zn of this end and, for lifted, that of the other:
//   nt_xent  log(1 + e^(e + zn))
//   lifted   [e + log(e^zn + e^other)]+^2 / 2, which is 0 where both are -inf
// `by_exponent` counts this end's half: the other end has its own.
__device__ inline PairTerm<float> pair_term(PairKind kind, float e, float zn, float other) {
  if (kind == PairKind::nt_xent) {
    const float share = sigmoid(e + zn);
    return {softplus(e + zn), share, share};
  }
  if (zn == -INFINITY && other == -INFINITY) return {0, 0, 0};
  const float both = log_add(zn, other);
  const float h = fmaxf(e + both, 0.f);
  return {h * h / 2, h, zn == -INFINITY ? 0.f : h * expf(zn - both)};
}

}  // namespace dmlap::cuda

// Terms of positive pairs against the negatives of their ends.
#pragma once

#include "dmlap/cuda/sweeps.h"
#include "dmlap/policies/exponent.h"

namespace dmlap::cuda {

struct PairTerm {
  float value, by_exponent, by_neg_lse;
};

// A term and its derivatives at exponent e, given neg_lse of this end and, for lifted, of the other
// (-inf for none). For nt_xent e is the negated exponent of the positive. `by_exponent` is this
// end's half; the other end adds its own.
__device__ inline PairTerm pair_term(PairKind kind, float e, float neg_lse, float other) {
  const Dual<float, 2> at = variable<2>(e, 0), own = variable<2>(neg_lse, 1);
  const Dual<float, 2> term = kind == PairKind::nt_xent
                                  ? nt_xent_term(-at, own)
                                  : lifted_term(at, log_add(own, Dual<float, 2>{other, {}}));
  return {term.value, term.by[0], term.by[1]};
}

}  // namespace dmlap::cuda

// Weights of pairs: d loss / d distance. A kind has
//   Numbers load(table, n, i)                  what an end of a pair brings along
//   float weight(in, row, column, d, positive)  of a pair; an end without a table has no part
#pragma once

#include "dmlap/policies/hinge.h"
#include "pair_terms.cuh"
#include "runtime.cuh"

namespace dmlap::cuda {

// The weight is a sum over the ends.
template <class Kind>
struct EachEnd {
  template <class Numbers>
  __device__ static float weight(const Weights& in, const Numbers& row, const Numbers& column,
                                 float d, bool positive) {
    float w = 0;
    if (in.rows != nullptr) w += Kind::part(in, row, d, positive);
    if (in.columns != nullptr) w += Kind::part(in, column, d, positive);
    return w;
  }
};

template <bool kSquared>
struct HingeWeights : EachEnd<HingeWeights<kSquared>> {
  struct Numbers {
    float positive_bound, negative_bound, positive_scale, negative_scale;
  };
  __device__ static Numbers load(const float* table, int64_t n, int64_t i) {
    return {table[i], table[n + i], table[2 * n + i], table[3 * n + i]};
  }
  __device__ static float part(const Weights&, const Numbers& a, float d, bool positive) {
    const float h = positive ? d - a.positive_bound : a.negative_bound - d;
    if (!(h > 0)) return 0;
    const float scale = positive ? a.positive_scale : -a.negative_scale;
    return HingeTerm<float>{kSquared}(variable<1>(h, 0, scale)).by[0];
  }
};

template <bool kMined>
struct ExponentialWeights : EachEnd<ExponentialWeights<kMined>> {
  struct Numbers {
    float pos_lse, neg_lse, by_pos_lse, by_neg_lse, by_exponent, above, below;
  };
  __device__ static Numbers load(const float* table, int64_t n, int64_t i) {
    return {table[i],
            table[n + i],
            table[2 * n + i],
            table[3 * n + i],
            table[4 * n + i],
            kMined ? table[5 * n + i] : -INFINITY,
            kMined ? table[6 * n + i] : INFINITY};
  }
  __device__ static float part(const Weights& in, const Numbers& a, float d, bool positive) {
    // Where a factor is 0 the exponential may be that of nothing: infinite.
    if (positive) {
      if (!(d > a.above)) return 0;
      const float share = a.by_pos_lse == 0 ? 0.f : a.by_pos_lse * expf(in.positive(d) - a.pos_lse);
      return (share + a.by_exponent) * in.positive.slope(d);
    }
    if (!(d < a.below) || a.by_neg_lse == 0) return 0;
    return a.by_neg_lse * expf(in.negative(d) - a.neg_lse) * in.negative.slope(d);
  }
};

struct LogisticWeights : EachEnd<LogisticWeights> {
  struct Numbers {
    float weight;
  };
  __device__ static Numbers load(const float* table, int64_t, int64_t i) { return {table[i]}; }
  __device__ static float part(const Weights& in, const Numbers& a, float d, bool positive) {
    const Exponent<float>& e = positive ? in.positive : in.negative;
    return a.weight * sigmoid(e(d)) * e.slope(d);
  }
};

struct PairNumbers {
  float neg_lse, weight, by_neg_lse;
};

__device__ inline PairNumbers load_pair_numbers(const float* table, int64_t n, int64_t i) {
  return {table[i], table[n + i], table[2 * n + i]};
}

__device__ inline float negative_part(const Weights& in, const PairNumbers& a, float d) {
  return a.by_neg_lse == 0 ? 0.f
                           : a.by_neg_lse * expf(in.negative(d) - a.neg_lse) * in.negative.slope(d);
}

struct NTXentWeights : EachEnd<NTXentWeights> {
  using Numbers = PairNumbers;
  __device__ static Numbers load(const float* table, int64_t n, int64_t i) {
    return load_pair_numbers(table, n, i);
  }
  __device__ static float part(const Weights& in, const Numbers& a, float d, bool positive) {
    if (!positive) return negative_part(in, a, d);
    const PairTerm term = pair_term(PairKind::nt_xent, in.positive(d), a.neg_lse, -INFINITY);
    return a.weight * term.by_exponent * in.positive.slope(d);
  }
};

struct LiftedWeights {
  using Numbers = PairNumbers;
  __device__ static Numbers load(const float* table, int64_t n, int64_t i) {
    return load_pair_numbers(table, n, i);
  }
  __device__ static float weight(const Weights& in, const Numbers& a, const Numbers& b, float d,
                                 bool positive) {
    if (!positive) return negative_part(in, a, d) + negative_part(in, b, d);
    const PairTerm term = pair_term(PairKind::lifted, in.positive(d), a.neg_lse, b.neg_lse);
    return (a.weight + b.weight) * term.by_exponent * in.positive.slope(d);
  }
};

}  // namespace dmlap::cuda

#include "pair_terms.cuh"

#include "sweep.cuh"

namespace dmlap::cuda {

namespace {

struct PairTerms {
  struct State {
    float total, by_neg_lse;
    int nonzero;
  };
  struct Params {
    float neg_lse;
  };

  PairTermsIn in;
  PairTermsOut out;

  __device__ static State empty() { return {}; }
  __device__ Params params(int64_t i) const { return {in.neg_lse[i]}; }

  __device__ void visit(State& s, const Params& p, const Strip& strip) const {
    State here = {};
    strip.each([&](float d, int j, bool positive) {
      if (!positive) return;
      const float other = in.neg_lse_of_columns == nullptr ? -INFINITY : in.neg_lse_of_columns[j];
      const float weight = in.weight_of_columns == nullptr ? 1.f : in.weight_of_columns[j];
      const PairTerm term = pair_term(in.kind, in.exponent(d), p.neg_lse, other);
      here.total += term.value;
      here.nonzero += term.value > 0;
      here.by_neg_lse += weight * term.by_neg_lse;
    });
    merge(s, here);
  }

  __device__ static void merge(State& s, const State& other) {
    s.total += other.total;
    s.by_neg_lse += other.by_neg_lse;
    s.nonzero += other.nonzero;
  }

  __device__ void write(int64_t i, const State& s) const {
    out.total[i] = s.total;
    out.by_neg_lse[i] = s.by_neg_lse;
    out.nonzero[i] = s.nonzero;
  }
};

}  // namespace

int launch_pair_terms(const Sides& s, const PairTermsIn& in, const PairTermsOut& out,
                      void* workspace, const Queue& queue) {
  return launch_sweep(s, PairTerms{in, out}, true, workspace, queue);
}

}  // namespace dmlap::cuda

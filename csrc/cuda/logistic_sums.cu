// Sums over all pairs of an anchor of log(1 + e^exponent).
#include "sweep.cuh"

namespace dmlap::cuda {

namespace {

struct Logistic {
  struct State {
    float sum;
  };
  struct Params {};

  Exponent<float> positive, negative;
  float* out;

  __device__ static State empty() { return {}; }
  __device__ Params params(int64_t) const { return {}; }

  __device__ void visit(State& s, const Params&, const Strip& strip) const {
    State here = {};
    strip.each([&](float d, int, bool pulled) {
      here.sum += softplus(pulled ? positive(d) : negative(d));
    });
    merge(s, here);
  }

  __device__ static void merge(State& s, const State& other) { s.sum += other.sum; }
  __device__ void write(int64_t i, const State& s) const { out[i] = s.sum; }
};

}  // namespace

int launch_logistic_sums(const Sides& s, const Exponent<float>& positive,
                         const Exponent<float>& negative, float* out, void* workspace,
                         const Queue& queue) {
  return launch_sweep(s, Logistic{positive, negative, out}, false, workspace, queue);
}

}  // namespace dmlap::cuda

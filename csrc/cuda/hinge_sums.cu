// Sums of hinges on single pairs.
#include "dmlap/policies/hinge.h"
#include "sweep.cuh"

namespace dmlap::cuda {

namespace {

struct Hinges {
  struct State {
    float positive, negative;              // as the loss takes them
    float positive_hinge, negative_hinge;  // plain
    int positive_active, negative_active;
  };
  struct Params {
    float positive, negative;
  };

  HingeBounds bounds;
  HingeOut out;

  __device__ static State empty() { return {}; }
  __device__ Params params(int64_t i) const { return {bounds.positive[i], bounds.negative[i]}; }

  __device__ void visit(State& s, const Params& bound, const Strip& strip) const {
    State here = {};
    strip.each([&](float d, int, bool positive) {
      const float h = positive ? d - bound.positive : bound.negative - d;
      if (!(h > 0)) return;
      const float taken = HingeTerm<float>{bounds.squared}(h);
      (positive ? here.positive : here.negative) += taken;
      (positive ? here.positive_hinge : here.negative_hinge) += h;
      (positive ? here.positive_active : here.negative_active) += 1;
    });
    merge(s, here);
  }

  __device__ static void merge(State& s, const State& other) {
    s.positive += other.positive;
    s.negative += other.negative;
    s.positive_hinge += other.positive_hinge;
    s.negative_hinge += other.negative_hinge;
    s.positive_active += other.positive_active;
    s.negative_active += other.negative_active;
  }

  __device__ void write(int64_t i, const State& s) const {
    out.positive[i] = s.positive;
    out.negative[i] = s.negative;
    out.positive_hinge[i] = s.positive_hinge;
    out.negative_hinge[i] = s.negative_hinge;
    out.positive_active[i] = s.positive_active;
    out.negative_active[i] = s.negative_active;
  }
};

}  // namespace

int launch_hinge_sums(const Sides& s, const HingeBounds& bounds, const HingeOut& out,
                      void* workspace, const Queue& queue) {
  return launch_sweep(s, Hinges{bounds, out}, false, workspace, queue);
}

}  // namespace dmlap::cuda

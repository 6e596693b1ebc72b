// Log-sums of exponentials over positives and over negatives.
#include "log_sum.cuh"
#include "sweep.cuh"

namespace dmlap::cuda {

namespace {

struct LogSums {
  struct State {
    LogSum positive, negative;
    float exponent_sum;
  };
  struct Params {
    float above, below;
  };

  LogSumsIn in;
  LogSumsOut out;

  __device__ static State empty() { return {{-INFINITY, 0}, {-INFINITY, 0}, 0}; }
  __device__ Params params(int64_t i) const {
    if (in.positive_above == nullptr) return {-INFINITY, INFINITY};
    return {in.positive_above[i], in.negative_below[i]};
  }

  __device__ void visit(State& s, const Params& p, const Strip& strip) const {
    // The largest exponents first: then each pair costs one exponential.
    State here = empty();
    strip.each([&](float d, int, bool positive) {
      if (positive && d > p.above) {
        here.positive.top = fmaxf(here.positive.top, in.positive(d));
      } else if (!positive && d < p.below) {
        here.negative.top = fmaxf(here.negative.top, in.negative(d));
      }
    });
    strip.each([&](float d, int, bool positive) {
      if (positive && d > p.above) {
        const float e = in.positive(d);
        here.exponent_sum += e;
        here.positive.sum += expf(e - here.positive.top);
      } else if (!positive && d < p.below) {
        here.negative.sum += expf(in.negative(d) - here.negative.top);
      }
    });
    merge(s, here);
  }

  __device__ static void merge(State& s, const State& other) {
    s.positive.add(other.positive);
    s.negative.add(other.negative);
    s.exponent_sum += other.exponent_sum;
  }

  __device__ void write(int64_t i, const State& s) const {
    out.pos_lse[i] = s.positive.value();
    out.neg_lse[i] = s.negative.value();
    out.exponent_sum[i] = s.exponent_sum;
  }
};

}  // namespace

int launch_log_sums(const Sides& s, const LogSumsIn& in, const LogSumsOut& out, void* workspace,
                    const Queue& queue) {
  return launch_sweep(s, LogSums{in, out}, false, workspace, queue);
}

}  // namespace dmlap::cuda

// Farthest positives and nearest negatives.
#include "sweep.cuh"

namespace dmlap::cuda {

namespace {

struct Extremes {
  struct State {
    float positive, negative;
    int positive_column, negative_column;  // -1: none yet
    float positive_sum, negative_sum;
  };
  struct Params {};

  ExtremesOut out;

  __device__ static State empty() { return {-INFINITY, INFINITY, -1, -1, 0, 0}; }
  __device__ static Params params(int64_t) { return {}; }

  // Equal distances go to the lower column.
  __device__ static void offer_positive(State& s, float d, int j) {
    if (j < 0 || (s.positive_column >= 0 &&
                  (d < s.positive || (d == s.positive && j > s.positive_column)))) {
      return;
    }
    s.positive = d;
    s.positive_column = j;
  }
  __device__ static void offer_negative(State& s, float d, int j) {
    if (j < 0 || (s.negative_column >= 0 &&
                  (d > s.negative || (d == s.negative && j > s.negative_column)))) {
      return;
    }
    s.negative = d;
    s.negative_column = j;
  }

  __device__ void visit(State& s, const Params&, const Strip& strip) const {
    float positive_sum = 0, negative_sum = 0;
    strip.each([&](float d, int j, bool positive) {
      if (positive) {
        offer_positive(s, d, j);
        positive_sum += d;
      } else {
        offer_negative(s, d, j);
        negative_sum += d;
      }
    });
    s.positive_sum += positive_sum;
    s.negative_sum += negative_sum;
  }

  __device__ static void merge(State& s, const State& other) {
    offer_positive(s, other.positive, other.positive_column);
    offer_negative(s, other.negative, other.negative_column);
    s.positive_sum += other.positive_sum;
    s.negative_sum += other.negative_sum;
  }

  __device__ void write(int64_t i, const State& s) const {
    out.positive[i] = s.positive;
    out.negative[i] = s.negative;
    out.positive_column[i] = s.positive_column;
    out.negative_column[i] = s.negative_column;
    if (out.positive_sum != nullptr) {
      out.positive_sum[i] = s.positive_sum;
      out.negative_sum[i] = s.negative_sum;
    }
  }
};

}  // namespace

int64_t sweep_workspace(const Sides& s) {
  return split_columns(s, false).groups * s.rows * static_cast<int64_t>(kStateBytes);
}

int launch_extremes(const Sides& s, const ExtremesOut& out, void* workspace, const Queue& queue) {
  return launch_sweep(s, Extremes{out}, false, workspace, queue);
}

}  // namespace dmlap::cuda

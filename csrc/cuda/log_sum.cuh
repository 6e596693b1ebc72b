// Sums of exponentials that neither overflow nor vanish.
#pragma once

#include <cmath>

#include "runtime.cuh"

namespace dmlap::cuda {

// log(sum * e^top). An empty sum has top = -inf.
struct LogSum {
  float top, sum;

  __device__ void add(const LogSum& other) {
    if (other.top == -INFINITY) return;
    if (top < other.top) {
      sum = sum * expf(top - other.top) + other.sum;
      top = other.top;
    } else {
      sum += other.sum * expf(other.top - top);
    }
  }
  __device__ float value() const { return top == -INFINITY ? top : top + logf(sum); }
};

}  // namespace dmlap::cuda

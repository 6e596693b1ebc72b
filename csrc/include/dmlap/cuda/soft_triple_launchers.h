// Launchers of SoftTriple, whose references are centres of classes.
// dmlap_kernels/backends/device/sweeps.py says what they compute, sweeps.h what every launcher
// does.
#pragma once

#include <cstdint>

#include "dmlap/cuda/sides.h"
#include "dmlap/policies/soft_triple.h"

namespace dmlap::cuda {

struct SoftTripleIn {
  SoftTriple<float> policy;
  const int* first;  // [cols]; centres [first, last) are of the class of a centre
  const int* last;
};

// Bytes of workspace that the forward sweep needs.
int64_t soft_triple_workspace(const Sides& s);
// out [3][rows]: terms, the logarithm of the sum over the other classes, the logit of the own one.
int launch_soft_triple(const Sides& s, const SoftTripleIn& in, float* out, void* workspace,
                       const Queue& queue);

struct SoftTripleKept {
  SoftTripleIn forward;
  const float* other;  // [anchors], both as the forward sweep left them
  const float* own;
  const float* weight;  // [anchors], of the terms
  bool centres;         // whether the gradient is at the centres: rows and columns are exchanged
};
// As launch_gradient, for the terms times their weights.
int launch_soft_triple_gradient(const Sides& s, const SoftTripleKept& kept, float* out,
                                float* workspace, const Queue& queue);

}  // namespace dmlap::cuda

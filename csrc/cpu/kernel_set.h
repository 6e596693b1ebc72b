// Fills the table of kernels of one instruction set. A translation unit defines DMLAP_ISA and
// includes this.
#pragma once

#include "class_runs_angular.h"
#include "class_runs_soft_triple.h"
#include "class_runs_swap.h"
#include "hinge.h"
#include "kernels.h"
#include "n_pairs.h"
#include "nearest.h"
#include "scores.h"
#include "soft.h"
#include "triplet_hard.h"
#include "triplets_all_backward.h"
#include "triplets_distance_weighted.h"
#include "triplets_semihard.h"

namespace dmlap::cpu::DMLAP_ISA {

// Calls f with the kernels of a loss: an empty struct of static saved_bytes, forward and backward,
// and kSkipsReferences: whether backward does without BackwardArgs::gy.
template <class T, class F>
inline void with_kernels(Loss loss, F f) {
  switch (loss) {
#define DMLAP_CASE(name, ...) \
  case Loss::name: return f(__VA_ARGS__{});
    DMLAP_LOSSES(DMLAP_CASE)
#undef DMLAP_CASE
  }
}

template <class T>
size_t saved_bytes(const Pairs<T>& pairs, const LossOptions& options) {
  size_t bytes = 0;
  with_kernels<T>(options.loss, [&](auto k) { bytes = k.saved_bytes(pairs, options); });
  return bytes;
}

template <class T>
void forward(const Pairs<T>& pairs, const LossOptions& options, const ForwardOut<T>& out) {
  with_kernels<T>(options.loss, [&](auto k) { k.forward(pairs, options, out); });
}

// Losses that cannot leave out the gradient of the references write it where nobody looks.
template <class T>
void backward(const Pairs<T>& pairs, const LossOptions& options, const BackwardArgs<T>& args) {
  with_kernels<T>(options.loss, [&](auto k) {
    if (pairs.self || args.gy != nullptr || k.kSkipsReferences) {
      return k.backward(pairs, options, args);
    }
    const Buffer<T> unwanted(pairs.y.n * pairs.dim);
    BackwardArgs<T> all = args;
    all.gy = unwanted.get();
    k.backward(pairs, options, all);
  });
}

template <class T>
constexpr Kernels<T> table() {
  return {saved_bytes<T>, forward<T>, backward<T>, nearest<T>, class_scores<T>};
}

}  // namespace dmlap::cpu::DMLAP_ISA

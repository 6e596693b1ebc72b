// Fills the table of kernels of one instruction set. A translation unit defines DMLAP_ISA and
// includes this.
#pragma once

#include "backward.h"
#include "kernels.h"
#include "nearest.h"
#include "scores.h"

namespace dmlap::cpu::DMLAP_ISA {

// One line a loss, in each of the three.
template <class T>
size_t saved_bytes(const Pairs<T>& pairs, const LossOptions& options) {
  switch (options.loss) {
    case Loss::triplet_hard: return SavedTriplet<T>::bytes(pairs.x.n);
    case Loss::contrastive: return SavedPairwise<T>::bytes(pairs.x.n, pairs.y.n, pairs.self);
  }
  return 0;
}

template <class T>
void forward(const Pairs<T>& pairs, const LossOptions& options, const ForwardOut<T>& out) {
  switch (options.loss) {
    case Loss::triplet_hard: return forward_triplet_hard(pairs, options, out);
    case Loss::contrastive: return forward_pairwise<T, Contrastive<T>>(pairs, options, out);
  }
}

template <class T>
void backward(const Pairs<T>& pairs, const LossOptions& options, const BackwardArgs<T>& args) {
  switch (options.loss) {
    case Loss::triplet_hard: return backward_triplet_hard(pairs, options, args);
    case Loss::contrastive: return backward_pairwise<T, Contrastive<T>>(pairs, options, args);
  }
}

template <class T>
constexpr Kernels<T> table() {
  return {saved_bytes<T>, forward<T>, backward<T>, nearest<T>, class_scores<T>};
}

}  // namespace dmlap::cpu::DMLAP_ISA

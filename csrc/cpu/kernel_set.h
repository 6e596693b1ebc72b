// Fills the table of kernels of one instruction set. A translation unit defines DMLAP_ISA and
// includes this.
#pragma once

#include "kernels.h"
#include "losses/angular_kernels.h"
#include "losses/hinge_kernels.h"
#include "losses/log_sum_kernels.h"
#include "losses/n_pairs.h"
#include "losses/soft_triple_kernels.h"
#include "losses/triplet_all.h"
#include "losses/triplet_distance_weighted.h"
#include "losses/triplet_hard.h"
#include "losses/triplet_semihard.h"
#include "losses/triplet_swap.h"
#include "search/class_scores.h"
#include "search/nearest.h"
#include "wide.h"

namespace dmlap::cpu::DMLAP_ISA {

// Calls f with the kernels of a loss: an empty struct of static saved_size, forward and backward,
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
SavedSize saved_size(Loss loss, bool self) {
  SavedSize size;
  with_kernels<T>(loss, [&](auto k) { size = k.saved_size(self); });
  return size;
}

inline bool needs_double(const Pairs<double>&, bool) { return false; }
inline bool needs_double(const Pairs<float>& pairs, bool nonfinite) {
  return nonfinite && can_widen(pairs);
}

template <class T>
void forward(const Pairs<T>& pairs, const LossOptions& options, const ForwardOut<T>& out) {
  with_kernels<T>(options.loss, [&](auto k) { k.forward(pairs, options, out); });
  if (!needs_double(pairs, nonfinite(out.saved))) return;
  if constexpr (sizeof(T) == sizeof(float)) {
    with_kernels<double>(options.loss,
                         [&](auto k) { forward_wide<decltype(k)>(pairs, options, out); });
  }
}

// Losses that cannot leave out the gradient of the references write it where nobody looks.
template <class T>
void backward(const Pairs<T>& pairs, const LossOptions& options, const BackwardArgs<T>& args) {
  if (needs_double(pairs, nonfinite(args.saved))) {
    if constexpr (sizeof(T) == sizeof(float)) {
      with_kernels<double>(options.loss,
                           [&](auto k) { backward_wide<decltype(k)>(pairs, options, args); });
    }
    return;
  }
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
void nearest(const Pairs<T>& pairs, int64_t k, T* distances, int64_t* indices) {
  if (!needs_double(pairs, find_nearest(pairs, k, distances, indices))) return;
  if constexpr (sizeof(T) == sizeof(float)) {
    const WidePairs wide(pairs);
    const Buffer<double> found(pairs.x.n * k);
    find_nearest(wide.pairs, k, found.get(), indices);
    convert(found.get(), pairs.x.n * k, distances);
  }
}

template <class T>
void class_scores(const Pairs<T>& pairs, const T* thresholds, int64_t first, int64_t count, T* mean,
                  T* least, int64_t classes) {
  if (!needs_double(pairs, find_scores(pairs, thresholds, first, count, mean, least))) return;
  if constexpr (sizeof(T) == sizeof(float)) {
    const WidePairs wide(pairs);
    const Buffer<double> bounds(pairs.x.n), means(count * classes), low(count * classes);
    convert(thresholds, pairs.x.n, bounds.get());
    find_scores(wide.pairs, bounds.get(), first, count, means.get(), low.get());
    convert(means.get(), count * classes, mean);
    convert(low.get(), count * classes, least);
  }
}

template <class T>
constexpr Kernels<T> table() {
  return {saved_size<T>, forward<T>, backward<T>, nearest<T>, class_scores<T>};
}

}  // namespace dmlap::cpu::DMLAP_ISA

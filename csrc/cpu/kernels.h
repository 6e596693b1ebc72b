// The table of kernels that each instruction set fills, and the choice among the tables.
#pragma once

#include <cstddef>

#include "dmlap/types.h"

namespace dmlap::cpu {

template <class T>
struct Kernels {
  // Bytes of ForwardOut::saved.
  size_t (*saved_bytes)(const Pairs<T>&, const LossOptions&);
  void (*forward)(const Pairs<T>&, const LossOptions&, const ForwardOut<T>&);
  void (*backward)(const Pairs<T>&, const LossOptions&, const BackwardArgs<T>&);
  // distances, indices: [x.n][k]
  void (*nearest)(const Pairs<T>&, int64_t k, T* distances, int64_t* indices);
  // Anchors' classes first .. first + count - 1 (ascending labels) against all classes of y:
  // mean_violation, min_distance: [count][classes of y]. thresholds: [x.n]
  void (*class_scores)(const Pairs<T>&, const T* thresholds, int64_t first, int64_t count,
                       T* mean_violation, T* min_distance);
};

struct KernelSet {
  const char* name;
  Kernels<float> f32;
  Kernels<double> f64;
};

const KernelSet& kernels_baseline();
const KernelSet& kernels_avx2();
const KernelSet& kernels_avx512();

constexpr int kMaxLevels = 3;

// The levels that were compiled and run on this processor, best first; returns how many.
int available_levels(const KernelSet** out);

// The best available level, or the one that DMLAP_SIMD names; settled at the first call.
// Throws std::runtime_error if DMLAP_SIMD names no available level.
const KernelSet& kernels();

}  // namespace dmlap::cpu

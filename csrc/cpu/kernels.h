// The table of kernels that each instruction set fills, and the choice among the tables.
#pragma once

#include <cstddef>

#include "dmlap/losses.h"

namespace dmlap::cpu {

// How many bytes a forward sweep leaves for the backward sweep. Callers that know no sizes yet,
// only symbols, take it apart.
struct SavedSize {
  int64_t constant = 0, anchor = 0, reference = 0;  // bytes, of each anchor, of each reference
  int64_t panel = 0;      // rows of a panel; a byte for each two panels, none if 0
  bool triangle = false;  // of the pairs of panels, only those on and above the diagonal

  size_t bytes(int64_t nx, int64_t ny) const {
    int64_t n = constant + anchor * nx + reference * ny;
    if (panel > 0) {
      const int64_t rows = (nx + panel - 1) / panel, columns = (ny + panel - 1) / panel;
      n += triangle ? columns * (columns + 1) / 2 : rows * columns;
    }
    return static_cast<size_t>(n);
  }
};

template <class T>
struct Kernels {
  // Of ForwardOut::saved.
  SavedSize (*saved_size)(Loss, bool self);
  void (*forward)(const Pairs<T>&, const LossOptions&, const ForwardOut<T>&);
  void (*backward)(const Pairs<T>&, const LossOptions&, const BackwardArgs<T>&);
  // distances, indices: [x.n][k]
  void (*nearest)(const Pairs<T>&, int64_t k, T* distances, int64_t* indices);
  // Anchors' classes first .. first + count - 1 (ascending labels) against all `classes` of y:
  // mean_violation, min_distance: [count][classes]. thresholds: [x.n]
  void (*class_scores)(const Pairs<T>&, const T* thresholds, int64_t first, int64_t count,
                       T* mean_violation, T* min_distance, int64_t classes);
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

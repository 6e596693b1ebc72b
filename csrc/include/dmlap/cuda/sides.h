// The pair problem as CUDA kernels read it: device pointers and sizes.
#pragma once

#include <cstdint>

#include "dmlap/types.h"

namespace dmlap::cuda {

// The precision of products of float32.
enum class Precision : int {
  highest,  // three products in tf32: as accurate as float32
  high,     // tf32: 10 bits of mantissa
  medium    // bf16: 7 bits of mantissa
};

// Anchors x and columns y in label order, as `Sides` of dmlap_kernels/backends/device/packing.py
// describes them. `dim` is a multiple of 16 and rows are aligned to 16 bytes.
struct Sides {
  const float* x;        // [rows][dim]
  const float* y;        // [cols][dim]
  const float* x_norms;  // [rows]
  const float* y_norms;  // [cols]
  const int* first;      // [rows]; columns [first, last) have the anchor's label
  const int* last;
  const int* col_first;  // [cols]; the anchors of the column's label
  const int* col_last;
  int64_t rows, cols, dim;
  bool self;
  Distance distance;
  Precision precision;
  // With references: [rows], the column that is the anchor itself, -1 for none; with exchanged
  // sides [cols], the row that is the column itself. Null if no anchor is a reference.
  const int* itself = nullptr;
  const int* col_itself = nullptr;
};

// Where kernels are enqueued: a device and its stream (cudaStream_t).
struct Queue {
  int device;
  void* stream;
};

}  // namespace dmlap::cuda

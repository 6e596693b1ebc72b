#pragma once

#include <cstdint>

// Batch-hard mining: for every anchor its farthest positive and its nearest negative.
namespace dmlap::cuda {

// All pointers are device pointers; rows are contiguous.
struct HardestPairs {
  const float* x;             // (anchors, dim)
  const float* y;             // (refs, dim); x itself in the self case
  const int64_t* labels;      // (anchors,)
  const int64_t* ref_labels;  // (refs,)
  int64_t anchors;
  int64_t refs;
  int64_t dim;
  bool self_case;      // the pair (i, i) does not exist
  float* positive_d2;  // (anchors,) squared distance to the farthest positive, 0 without one
  float* negative_d2;  // (anchors,) squared distance to the nearest negative, 0 without one
  int64_t* positive;   // (anchors,) index of the farthest positive, -1 without one
  int64_t* negative;   // (anchors,) index of the nearest negative, -1 without one
};

// Bytes of device memory that launch_hardest_pairs needs as scratch, 8-byte aligned.
int64_t hardest_pairs_workspace(int64_t anchors, int64_t refs);

// Enqueues on `stream` (a cudaStream_t) of `device` and returns at once, without synchronising.
// Ties go to the lower label, then to the lower index; the result is the same from run to run.
// Returns a cudaError_t, 0 on success.
int launch_hardest_pairs(const HardestPairs& problem, void* workspace, int device, void* stream);

}  // namespace dmlap::cuda

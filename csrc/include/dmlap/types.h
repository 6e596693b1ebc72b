// What a caller hands to the kernels: raw pointers, sizes, options. No framework, no containers.
#pragma once

#include <cstdint>

#ifdef __CUDACC__
#define DMLAP_HD __host__ __device__ __forceinline__
#else
// Always inline: a copy compiled for one instruction set must never serve another.
#define DMLAP_HD inline __attribute__((always_inline))
#endif

namespace dmlap {

// dot: minus the inner product; its "squared distance" is -2 x.y.
enum class Distance : int { euclidean = 0, sqeuclidean = 1, cosine = 2, dot = 3 };
enum class Reduction : int { mean = 0, mean_nonzero = 1, sum = 2, none = 3 };

// Row-major embeddings with int64 labels; rows are `stride` elements apart.
template <class T>
struct Rows {
  const T* data = nullptr;          // [n][stride], the first `dim` of each row
  const int64_t* labels = nullptr;  // [n]; null if unused
  int64_t n = 0;
  int64_t stride = 0;
};

// A pair problem: anchors x against references y; `self` when the anchors are the references.
template <class T>
struct Pairs {
  Rows<T> x, y;
  int64_t dim = 0;
  bool self = true;
  Distance distance = Distance::euclidean;
  bool normalize = false;
  int threads = 1;
  const T* anchor_params = nullptr;  // null, or [x.n]: one number of the loss for each anchor
  // Null, or with references [x.n]: the row of y that is the anchor itself, -1 for none. That pair
  // is neither positive nor negative.
  const int64_t* self_index = nullptr;
};

// What a forward sweep may keep for the backward sweep of the same call. Optional for backward;
// each loss has its own kind.
struct Kept {
  void (*destroy)(Kept*);
};

// Outputs of a forward sweep. `saved` is opaque: the backward sweep reads it.
template <class T>
struct ForwardOut {
  T* loss = nullptr;               // [1], or [x.n] for Reduction::none
  uint8_t* saved = nullptr;        // [saved_bytes]
  int64_t* stat_counts = nullptr;  // null, or [2 + 2 x.n]: constraints, violated, hardest p, n
  T* stat_values = nullptr;        // null, or [3]: violation, mean positive, mean negative distance
  T* thresholds = nullptr;         // null, or [x.n]: bound of each anchor's negatives
  Kept** kept = nullptr;           // null, or where to put it; the caller destroys it
};

template <class T>
struct BackwardArgs {
  const uint8_t* saved = nullptr;
  const T* grad = nullptr;     // [1], or [x.n] for Reduction::none
  T* gx = nullptr;             // [x.n][dim]
  T* gy = nullptr;             // [y.n][dim]; null in the self case, or if not wanted
  T* g_anchor = nullptr;       // null, or [x.n]: gradient at Pairs::anchor_params
  const Kept* kept = nullptr;  // null, or what the forward sweep kept
};

}  // namespace dmlap

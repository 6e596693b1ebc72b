// Launchers of losses in which each positive pair of an anchor meets negatives.
// dmlap_kernels/backends/device/sweeps.py says what they compute, sweeps.h what every launcher
// does.
//
// A positive's rank is its number among its anchor's positives, in column order. Backward stores
// numbers of each positive pair, and goes through windows of ranks to bound that memory.
#pragma once

#include <cstdint>

#include "dmlap/cuda/sides.h"
#include "dmlap/policies/angular.h"
#include "dmlap/policies/triplet.h"

namespace dmlap::cuda {

// The positives with ranks [base, base + ranks) of every anchor.
struct Window {
  int64_t base, ranks;
};

enum class Mining : int { semihard = 0, distance_weighted = 1 };

struct MinedIn {
  Mining mining;
  Triplet<float> rule;
  DistanceWeights draw;
  const int64_t* numbers;  // [rows], of the anchors, which seed their draws
  Window window;
  const float* weight;  // [rows], of each anchor's terms; null: forward
};
struct MinedOut {
  double* sums;  // [rows][5], is added to; forward alone
  // Backward alone, all [ranks][rows]: of each triplet the `pair_factor` of its pairs (the last
  // null without swap), and its negative, -1 for none.
  float* anchor_positive;
  float* anchor_negative;
  float* positive_negative;
  int* negative;
};
// `among` are the references as anchors of themselves.
int launch_mined(const Sides& s, const Sides& among, const MinedIn& in, const MinedOut& out,
                 const Queue& queue);

struct MinedPairs {
  Window window;
  const int64_t* largest;  // [1], the most positives of an anchor
  const float* anchor_positive;
  const float* anchor_negative;
  const float* positive_negative;
  const int* negative;
};
// Adds to the gradient of the anchors, out [rows][dim], or of the references, out [cols][dim]; in
// the self case both calls add to the same one.
int launch_mined_gradient(const Sides& s, const MinedPairs& pairs, bool references, float* out,
                          const Queue& queue);

// What a positive pair adds with each of its anchor's negatives.
enum class WindowKind : int {
  triplets = 0,  // a triplet
  swapped = 1,   // a triplet with swap
  angular = 2    // a part of the pair's term
};
struct WindowRule {
  WindowKind kind;
  Triplet<float> triplet;
  Angular<float> angular;

  // Whether the distance between positive and negative counts.
  DMLAP_HD bool third() const { return kind != WindowKind::triplets; }
};

struct WindowSumsIn {
  WindowRule rule;
  Window window;
  const float* weight;  // [rows], of each anchor's terms; null: forward
};
struct WindowSumsOut {
  double* sums;  // [rows][5], is added to; forward alone
  // Backward alone, all [ranks][rows]: the distances of positive pairs, d loss / d distance, and
  // for angular d loss / d of the sum over negatives in the pair's term.
  float* distance;
  float* by_distance;
  float* by_sum;
};
// `among` are the references as anchors of themselves.
int launch_window_sums(const Sides& s, const Sides& among, const WindowSumsIn& in,
                       const WindowSumsOut& out, const Queue& queue);

// The rows that a gradient belongs to, and the columns that they meet.
enum class WindowRows : int {
  both = 0,        // anchors that are references
  anchors = 1,     // the columns are references
  references = 2,  // the columns are anchors
  positives = 3    // references with references: the pairs of a positive and a negative
};
struct WindowPairs {
  WindowRule rule;
  Window window;
  const int64_t* largest;  // [1], the most positives of an anchor
  WindowRows rows;
  const float* weight;  // [anchors]
  const float* distance;
  const float* by_distance;
  const float* by_sum;
};
// Adds to parts [gradient_splits(rows)][rows][dim]. `s` and `among` as above; `rows` has the rows
// of the gradient and the columns that they meet.
int launch_window_gradient(const Sides& rows, const Sides& s, const Sides& among,
                           const WindowPairs& pairs, float* parts, const Queue& queue);

}  // namespace dmlap::cuda

// Launchers of losses in which each positive pair of an anchor meets negatives; what they compute
// is said in dmlap_kernels/backends/device/sweeps.py, what launchers do in sweeps.h.
//
// The positives of an anchor have numbers, their slots, in the order of columns. Backward goes
// through windows of slots, because what belongs to a positive pair is kept for a window alone.
#pragma once

#include <cstdint>

#include "dmlap/cuda/sides.h"
#include "dmlap/policies/angular.h"
#include "dmlap/policies/triplet.h"

namespace dmlap::cuda {

// Slots [base, base + slots) of every anchor.
struct Window {
  int64_t base, slots;
};

enum class Mining : int { semihard = 0, distance_weighted = 1 };

struct MinedIn {
  Mining mining;
  Triplet<float> rule;
  DistanceWeights draw;
  const int64_t* numbers;  // [rows]; what the anchors are called in a draw
  Window window;
  const float* weight;  // [rows], of each anchor's terms; null: forward
};
struct MinedOut {
  double* sums;  // [rows][5], is added to; forward alone
  // Backward alone, all [slots][rows]: the factors of the pairs of a triplet as `pair_factor` has
  // them (the last null without swap), and its negative, -1 where there is none.
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
// Adds to a gradient, out [rows][dim] or of the references [cols][dim]; both take the same one in
// the self case.
int launch_mined_gradient(const Sides& s, const MinedPairs& pairs, bool references, float* out,
                          const Queue& queue);

// What a positive pair and each of its anchor's negatives add.
enum class SlotKind : int {
  triplets = 0,  // a triplet
  swapped = 1,   // a triplet with swap
  angular = 2    // a part of the pair's term
};
struct SlotRule {
  SlotKind kind;
  Triplet<float> triplet;
  Angular<float> angular;

  // Whether the distance of the positive and the negative plays a part.
  DMLAP_HD bool third() const { return kind != SlotKind::triplets; }
};

struct SlotSumsIn {
  SlotRule rule;
  Window window;
  const float* weight;  // [rows], of each anchor's terms; null: forward
};
struct SlotSumsOut {
  double* sums;  // [rows][5], is added to; forward alone
  // Backward alone, all [slots][rows]: distances of positive pairs, d loss / d of them, and for
  // angular d loss / d of the sum over negatives that the pair's term sees.
  float* distance;
  float* by_distance;
  float* by_sum;
};
// `among` are the references as anchors of themselves.
int launch_slot_sums(const Sides& s, const Sides& among, const SlotSumsIn& in,
                     const SlotSumsOut& out, const Queue& queue);

// Which rows a gradient is at, and so what columns they meet.
enum class SlotRows : int {
  both = 0,        // anchors that are references
  anchors = 1,     // the columns are references
  references = 2,  // the columns are anchors
  positives = 3    // references, with references: the pairs of a positive and a negative
};
struct SlotPairs {
  SlotRule rule;
  Window window;
  const int64_t* largest;  // [1], the most positives of an anchor
  SlotRows rows;
  const float* weight;  // [anchors]
  const float* distance;
  const float* by_distance;
  const float* by_sum;
};
// Adds to parts [gradient_splits(rows)][rows][dim]. `s` and `among` as above, `rows` are the rows
// and the columns that they meet.
int launch_slot_gradient(const Sides& rows, const Sides& s, const Sides& among,
                         const SlotPairs& pairs, float* parts, const Queue& queue);

}  // namespace dmlap::cuda

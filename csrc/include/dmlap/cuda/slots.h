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
#include "dmlap/policies/triplet_distance_weighted.h"
#include "dmlap/policies/triplet_swap.h"

namespace dmlap::cuda {

// Slots [base, base + slots) of every anchor.
struct Window {
  int64_t base, slots;
};

struct TripletRule {
  Triplet<float> term;
  TripletSwap<float> swap;

  explicit TripletRule(const double* params) : term(params), swap(params) {}
};

enum class Mining : int { semihard = 0, distance_weighted = 1 };

struct MinedIn {
  Mining mining;
  TripletRule rule;
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
// Adds to the gradients gx [rows][dim] and gy [cols][dim], which are the same in the self case.
int launch_mined_gradient(const Sides& s, const MinedPairs& pairs, float* gx, float* gy,
                          const Queue& queue);

}  // namespace dmlap::cuda

// Launchers of the sweeps; what they compute is said in dmlap_kernels/backends/device/sweeps.py.
// They select the device, allocate nothing and wait for nothing; a cudaError_t comes back.
#pragma once

#include <cstddef>
#include <cstdint>

#include "dmlap/cuda/sides.h"
#include "dmlap/policies/exponent.h"

namespace dmlap::cuda {

// Most that a forward sweep keeps of an anchor and a group of columns.
constexpr size_t kStateBytes = 24;

// Bytes of device memory that a forward sweep needs as workspace.
int64_t sweep_workspace(const Sides& s);

struct ExtremesOut {
  float* positive;  // all [rows]
  int* positive_column;
  float* negative;
  int* negative_column;
  float* positive_sum;  // null where sums are not asked for
  float* negative_sum;
};
int launch_extremes(const Sides& s, const ExtremesOut& out, void* workspace, const Queue& queue);

struct HingeBounds {
  const float* positive;  // [rows]
  const float* negative;
  bool squared;
};
struct HingeOut {
  float* positive;  // all [rows]
  float* negative;
  float* positive_hinge;
  float* negative_hinge;
  int* positive_active;
  int* negative_active;
};
int launch_hinge_sums(const Sides& s, const HingeBounds& bounds, const HingeOut& out,
                      void* workspace, const Queue& queue);

// out [rows]
int launch_logistic_sums(const Sides& s, const Exponent<float>& positive,
                         const Exponent<float>& negative, float* out, void* workspace,
                         const Queue& queue);

struct LogSumsIn {
  Exponent<float> positive, negative;
  const float* positive_above;  // [rows], or null: all positives
  const float* negative_below;  // [rows], or null: all negatives
};
struct LogSumsOut {
  float* pos_lse;  // all [rows]
  float* neg_lse;
  float* exponent_sum;
};
int launch_log_sums(const Sides& s, const LogSumsIn& in, const LogSumsOut& out, void* workspace,
                    const Queue& queue);

enum class PairKind : int { nt_xent = 0, lifted = 1 };
struct PairTermsIn {
  PairKind kind;
  Exponent<float> exponent;
  const float* neg_lse;             // [rows]
  const float* neg_lse_of_columns;  // [cols], for lifted
  const float* weight_of_columns;   // [cols], or null: 1
};
struct PairTermsOut {
  float* total;  // all [rows]
  int* nonzero;
  float* by_neg_lse;
};
int launch_pair_terms(const Sides& s, const PairTermsIn& in, const PairTermsOut& out,
                      void* workspace, const Queue& queue);

// What gives the weight of a pair: the part of its row, plus that of its column.
enum class WeightKind : int {
  hinge = 0,
  squared_hinge = 1,
  exponential = 2,
  mined = 3,
  nt_xent = 4,
  lifted = 5,
  logistic = 6
};
struct Weights {
  WeightKind kind;
  const float* rows;     // [numbers of the kind][rows], or null
  const float* columns;  // [numbers of the kind][cols], or null
  Exponent<float> positive, negative;
};

// Parts that the columns are split into.
int gradient_splits(const Sides& s);
// The gradient at x into out [rows][dim]; workspace [splits][rows][dim] where splits > 1.
int launch_gradient(const Sides& s, const Weights& weights, float* out, float* workspace,
                    const Queue& queue);

struct ClassScores {
  const float* thresholds;  // [rows]
  const int64_t* ends_x;    // [classes_x]; the classes of the anchors end before these rows
  const int64_t* ends_y;    // [classes_y]; likewise of the columns
  int64_t classes_x, classes_y;
  float* sums;      // [classes_x][classes_y], cleared
  float* smallest;  // likewise, filled with infinity
};
int launch_class_scores(const Sides& s, const ClassScores& scores, const Queue& queue);

// Parts that the columns are split into.
int nearest_groups(const Sides& s);
// Both [groups][rows][k]; the results are in the first group.
int launch_nearest(const Sides& s, int k, float* distances, int* columns, const Queue& queue);

}  // namespace dmlap::cuda

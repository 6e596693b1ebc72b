// Margin loss (1706.07567): hinges about a boundary beta that each anchor brings along.
#pragma once

#include "dmlap/types.h"

namespace dmlap {

// A hinge policy, see `Contrastive`.
template <class T>
struct Margin {
  static constexpr bool kAnchorParams = true;
  static constexpr bool kJoint = true;
  static constexpr bool squared = false;

  T margin;

  DMLAP_HD explicit Margin(const double* params) : margin(static_cast<T>(params[0])) {}

  DMLAP_HD T positive_bound(T beta) const { return beta - margin; }
  DMLAP_HD T negative_bound(T beta) const { return beta + margin; }

  // The terms are those of the triplets: a positive counts once for each negative, and vice versa.
  DMLAP_HD double share(int group, int64_t positives, int64_t negatives) const {
    return double(group == 0 ? negatives : positives);
  }
};

}  // namespace dmlap

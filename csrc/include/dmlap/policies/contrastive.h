// Contrastive loss (Hadsell, Chopra, LeCun 2006): a hinge on every pair.
#pragma once

#include "dmlap/types.h"

namespace dmlap {

// A hinge policy: [d - positive bound]+ and [negative bound - d]+, with bounds that an anchor's
// number may shift, and the share that an anchor's terms have in the loss.
template <class T>
struct Contrastive {
  static constexpr bool kAnchorParams = false;
  // Whether both groups of terms are divided by one common count.
  static constexpr bool kJoint = false;

  T pos_margin;
  T neg_margin;
  bool squared;

  DMLAP_HD explicit Contrastive(const double* params)
      : pos_margin(static_cast<T>(params[0])),
        neg_margin(static_cast<T>(params[1])),
        squared(params[2] != 0) {}

  DMLAP_HD T positive_bound(T) const { return pos_margin; }
  DMLAP_HD T negative_bound(T) const { return neg_margin; }

  // Weight of an anchor's positive (0) and negative (1) terms.
  DMLAP_HD double share(int, int64_t, int64_t) const { return 1; }
};

}  // namespace dmlap

// Hinges on single pairs: contrastive and margin loss. A policy has two bounds (a positive beyond
// its bound violates, and a negative before its bound), the term of a violation, and
//   kAnchorParams     whether each anchor has a number of its own that gives its bounds
//   kJoint            whether both groups of terms are divided by one common count
//   share(group, positives, negatives)   weight of an anchor's positive (0) and negative (1) terms
#pragma once

#include "dmlap/dual.h"

namespace dmlap {

struct HingeTerm {
  bool squared;

  template <class N>
  DMLAP_HD N operator()(N violation) const {
    const N h = hinge(violation);
    return squared ? h * h : h;
  }
};

// Contrastive loss (Hadsell, Chopra, LeCun 2006).
template <class T>
struct Contrastive {
  static constexpr bool kAnchorParams = false;
  static constexpr bool kJoint = false;

  T pos_margin;
  T neg_margin;
  HingeTerm term;

  DMLAP_HD explicit Contrastive(const double* params)
      : pos_margin(static_cast<T>(params[0])),
        neg_margin(static_cast<T>(params[1])),
        term{params[2] != 0} {}

  DMLAP_HD T positive_bound(T) const { return pos_margin; }
  DMLAP_HD T negative_bound(T) const { return neg_margin; }
  DMLAP_HD double share(int, int64_t, int64_t) const { return 1; }
};

// Margin loss (1706.07567): the bounds lie on both sides of the anchor's boundary beta.
template <class T>
struct Margin {
  static constexpr bool kAnchorParams = true;
  static constexpr bool kJoint = true;

  T margin;
  HingeTerm term{false};

  DMLAP_HD explicit Margin(const double* params) : margin(static_cast<T>(params[0])) {}

  DMLAP_HD T positive_bound(T beta) const { return beta - margin; }
  DMLAP_HD T negative_bound(T beta) const { return beta + margin; }

  // Terms count as in triplets: a positive once for each negative, and vice versa.
  DMLAP_HD double share(int group, int64_t positives, int64_t negatives) const {
    return double(group == 0 ? negatives : positives);
  }
};

}  // namespace dmlap

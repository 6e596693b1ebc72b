// Terms of single pairs: contrastive, margin and SigLIP's loss. A policy has the bounds beyond
// which a positive and before which a negative pair violates, the term of a violation, and
//   kAnchorParams     whether each anchor brings a number along, from which its bounds follow
//   kJoint            whether both groups of terms are divided by one common count
//   kAnchorTerms      whether what an anchor has of all its pairs is one term
//   share(group, positives, negatives)   weight of an anchor's positive (0) and negative (1) terms
#pragma once

#include "dmlap/dual.h"

namespace dmlap {

// A violation's hinge, its square or, with a rate, the smooth log(1 + e^(rate violation)), which is
// positive for every pair.
template <class T>
struct HingeTerm {
  bool squared = false;
  T rate = 0;

  DMLAP_HD bool smooth() const { return rate > 0; }

  template <class N>
  DMLAP_HD N operator()(N violation) const {
    if (smooth()) return softplus(violation * rate);
    const N h = hinge(violation);
    return squared ? h * h : h;
  }
};

// Contrastive loss (Hadsell, Chopra, LeCun 2006).
template <class T>
struct Contrastive {
  static constexpr bool kAnchorParams = false;
  static constexpr bool kJoint = false;
  static constexpr bool kAnchorTerms = false;

  T pos_margin;
  T neg_margin;
  HingeTerm<T> term;

  DMLAP_HD explicit Contrastive(const double* params)
      : pos_margin(static_cast<T>(params[0])),
        neg_margin(static_cast<T>(params[1])),
        term{params[2] != 0} {}

  DMLAP_HD T positive_bound(T) const { return pos_margin; }
  DMLAP_HD T negative_bound(T) const { return neg_margin; }
  DMLAP_HD double share(int, int64_t, int64_t) const { return 1; }
};

// Margin loss (1706.07567): the bounds lie about a boundary beta that each anchor brings along.
template <class T>
struct Margin {
  static constexpr bool kAnchorParams = true;
  static constexpr bool kJoint = true;
  static constexpr bool kAnchorTerms = false;

  T margin;
  HingeTerm<T> term;

  DMLAP_HD explicit Margin(const double* params) : margin(static_cast<T>(params[0])) {}

  DMLAP_HD T positive_bound(T beta) const { return beta - margin; }
  DMLAP_HD T negative_bound(T beta) const { return beta + margin; }

  // The terms are those of the triplets: a positive counts once for each negative, and vice versa.
  DMLAP_HD double share(int group, int64_t positives, int64_t negatives) const {
    return double(group == 0 ? negatives : positives);
  }
};

// SigLIP's sigmoid loss (2303.15343): log(1 + e^(-z (t s + b))) with z = 1 for positives and -1 for
// negatives, whose exponents are t (d - bound) and t (bound - d).
template <class T>
struct SigLIP {
  static constexpr bool kAnchorParams = false;
  static constexpr bool kJoint = false;
  static constexpr bool kAnchorTerms = true;

  HingeTerm<T> term;
  T bound;

  DMLAP_HD explicit SigLIP(const double* params)
      : term{false, static_cast<T>(params[0])}, bound(static_cast<T>(params[1])) {}

  DMLAP_HD T positive_bound(T) const { return bound; }
  DMLAP_HD T negative_bound(T) const { return bound; }
  DMLAP_HD double share(int, int64_t, int64_t) const { return 1; }
};

}  // namespace dmlap

// Losses of log-sums. A term is of an anchor's pos_lse = log sum_p e^exponent(d_p) over its
// positives and neg_lse over its negatives, or of neg_lse and a single positive. A policy has
//
//   Exponent<T> positive, negative     the exponents, as functions of the distance
//   bool mined; T epsilon              whether easy pairs are left out, as in multi-similarity
//   kGroups                            1 or 2 groups of terms; the second is of the negatives
//   terms(AnchorSums) -> AnchorTerms   unless kPairTerms
//   kPairTerms, pair(exponent, neg_lse)  a term for each positive pair instead
//   kBothEnds                          neg_lse is over the negatives of both rows of the pair
//   kWeighted, Exponent<T> weight      negatives have weights, see WithHardness
//
// A term states its value, for plain numbers and for duals. It must handle anchors without
// positives or negatives, whose log-sums are -inf.
#pragma once

#include "dmlap/policies/exponent.h"

namespace dmlap {

// What the terms of an anchor are made of.
template <class N>
struct AnchorSums {
  N pos_lse, neg_lse;  // -inf for an empty sum
  N exponent_sum;      // of the positives
  int64_t positives, negatives;
};

template <class N>
struct AnchorTerms {
  N value[2] = {};
  bool counted[2] = {true, true};
};

template <class T>
struct LogSumPolicy {
  static constexpr int kGroups = 1;
  static constexpr bool kPairTerms = false;
  static constexpr bool kBothEnds = false;
  static constexpr bool kWeighted = false;
  Exponent<T> positive, negative;
  bool mined = false;
  T epsilon = 0;
};

// Multi-similarity (1904.06627), with or without its miner.
template <class T>
struct MultiSimilarity : LogSumPolicy<T> {
  double alpha, beta;

  DMLAP_HD explicit MultiSimilarity(const double* params) : alpha(params[0]), beta(params[1]) {
    const T threshold = static_cast<T>(params[2]);
    this->positive = {static_cast<T>(alpha), threshold};
    this->negative = {static_cast<T>(-beta), threshold};
    this->mined = params[3] != 0;
    this->epsilon = static_cast<T>(params[4]);
  }

  template <class N>
  DMLAP_HD AnchorTerms<N> terms(const AnchorSums<N>& a) const {
    return {{softplus(a.pos_lse) / alpha + softplus(a.neg_lse) / beta}};
  }
};

// Lifted structure, generalised (1703.07737, eq. 4).
template <class T>
struct LiftedStructure : LogSumPolicy<T> {
  DMLAP_HD explicit LiftedStructure(const double* params) {
    this->positive = {T(1), static_cast<T>(params[0])};
    this->negative = {T(-1), static_cast<T>(params[1])};
  }

  template <class N>
  DMLAP_HD AnchorTerms<N> terms(const AnchorSums<N>& a) const {
    const N of_positives = a.positives ? a.pos_lse : N{};
    const N of_negatives = a.negatives ? a.neg_lse : N{};
    return {{hinge(of_positives + of_negatives)}};
  }
};

// Lifted structure, original (1511.06452, eq. 4).
template <class T>
struct LiftedStructureOriginal : LiftedStructure<T> {
  static constexpr bool kPairTerms = true;
  static constexpr bool kBothEnds = true;

  using LiftedStructure<T>::LiftedStructure;

  template <class N>
  DMLAP_HD N pair(N exponent, N neg_lse) const {
    return lifted_term(exponent, neg_lse);
  }
};

// NT-Xent (2002.05709).
template <class T>
struct NTXent : LogSumPolicy<T> {
  static constexpr bool kPairTerms = true;

  DMLAP_HD explicit NTXent(const double* params) : NTXent(T(1 / params[0])) {}

  template <class N>
  DMLAP_HD N pair(N exponent, N neg_lse) const {
    return nt_xent_term(exponent, neg_lse);
  }

 protected:
  DMLAP_HD explicit NTXent(T rate) { this->positive = this->negative = {-rate, T(0)}; }
};

// N-pairs (Sohn 2016): NT-Xent at temperature 1.
template <class T>
struct NPairs : NTXent<T> {
  DMLAP_HD explicit NPairs(const double*) : NTXent<T>(T(1)) {}
};

// Supervised contrastive (2004.11362, eq. 2).
template <class T>
struct SupCon : LogSumPolicy<T> {
  DMLAP_HD explicit SupCon(const double* params) {
    this->positive = this->negative = {static_cast<T>(-1 / params[0]), T(0)};
  }

  template <class N>
  DMLAP_HD AnchorTerms<N> terms(const AnchorSums<N>& a) const {
    if (a.positives == 0) return {};
    return {{log_add(a.pos_lse, a.neg_lse) - a.exponent_sum / double(a.positives)}};
  }
};

// A loss whose n negatives count by their hardness (2010.04592, section 3): by e^(hardness e), with
// e the exponent of the plain loss, over the mean of these weights. So neg_lse is log n + log sum
// e^((1 + hardness) e) - log sum e^(hardness e).
template <class T, class Plain>
struct WithHardness : Plain {
  static constexpr bool kWeighted = true;
  Exponent<T> weight;

  DMLAP_HD explicit WithHardness(const double* params) : Plain(params), weight(this->negative) {
    const double rate = this->negative.rate, hardness = params[1];
    this->negative.rate = static_cast<T>(rate * (1 + hardness));
    weight.rate = static_cast<T>(rate * hardness);
  }
};

// Circle (2002.10857, eq. 6) of cosine similarities s = 1 - d.
template <class T>
struct Circle : LogSumPolicy<T> {
  // -gamma [1 + m - s]+ (s - (1 - m)) and gamma [s + m]+ (s - m)
  DMLAP_HD explicit Circle(const double* params) {
    const T m = static_cast<T>(params[0]), gamma = static_cast<T>(params[1]);
    this->positive = {gamma, m, 1, -m};
    this->negative = {-gamma, 1 - m, -1, 1 + m};
  }

  template <class N>
  DMLAP_HD AnchorTerms<N> terms(const AnchorSums<N>& a) const {
    if (a.positives == 0 || a.negatives == 0) return {};
    return {{softplus(a.pos_lse + a.neg_lse)}};
  }
};

// Proxy-NCA (1703.07464, eq. 4, with the positive in the denominator).
template <class T>
struct ProxyNCA : LogSumPolicy<T> {
  DMLAP_HD explicit ProxyNCA(const double* params) {
    this->positive = this->negative = {static_cast<T>(-params[0]), T(0)};
  }

  template <class N>
  DMLAP_HD AnchorTerms<N> terms(const AnchorSums<N>& a) const {
    if (a.positives == 0) return {{}, {false}};
    return {{softplus(a.neg_lse - a.pos_lse)}};
  }
};

// CosFace (1801.09414, eq. 4): the margin is a share of the positives' exponents.
template <class T>
struct CosFace : ProxyNCA<T> {
  DMLAP_HD explicit CosFace(const double* params) : ProxyNCA<T>(params) {
    this->positive.zero = static_cast<T>(-params[1]);
  }
};

// ArcFace (1801.07698, eq. 3), of params scale, cos m, sin m and m sin m. The cosine to a class of
// several proxies is the logarithm of the mean of e^(scale cos), by scale.
template <class T>
struct ArcFace : ProxyNCA<T> {
  double scale, cos_margin, sin_margin, drop;

  DMLAP_HD explicit ArcFace(const double* params)
      : ProxyNCA<T>(params),
        scale(params[0]),
        cos_margin(params[1]),
        sin_margin(params[2]),
        drop(params[3]) {}

  template <class N>
  DMLAP_HD AnchorTerms<N> terms(const AnchorSums<N>& a) const {
    if (a.positives == 0) return {{}, {false}};
    const double proxies = std::log(double(a.positives));
    const N d = -(a.pos_lse + -proxies) / scale;
    return {{softplus(a.neg_lse + with_margin(d) * scale + -proxies)}};
  }

 private:
  // 1 - cos(theta + m) of d = 1 - cos theta. Beyond theta + m = pi, where it would fall again,
  // d + m sin m.
  template <class N>
  DMLAP_HD N with_margin(const N& d) const {
    if (plain(d) > 1 + cos_margin) return d + drop;
    const N sin_squared = d * (-d + 2.0);
    const N sine = plain(sin_squared) > 0 ? sqrt(sin_squared) : N{};
    return (d + -1.0) * cos_margin + sine * sin_margin + 1.0;
  }
};

// Proxy-anchor (2003.13911, eq. 4); anchors are the proxies.
template <class T>
struct ProxyAnchor : LogSumPolicy<T> {
  static constexpr int kGroups = 2;

  DMLAP_HD explicit ProxyAnchor(const double* params) {
    const T alpha = static_cast<T>(params[0]);
    this->positive = {alpha, static_cast<T>(params[1])};
    this->negative = {-alpha, static_cast<T>(params[2])};
  }

  template <class N>
  DMLAP_HD AnchorTerms<N> terms(const AnchorSums<N>& a) const {
    return {{softplus(a.pos_lse), softplus(a.neg_lse)}, {a.positives > 0, true}};
  }
};

}  // namespace dmlap

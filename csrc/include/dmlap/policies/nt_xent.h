// NT-Xent (2002.05709) and N-pairs (Sohn 2016): each positive against the anchor's negatives.
#pragma once

#include "dmlap/policies/soft.h"

namespace dmlap {

template <class T>
struct NTXent : SoftPolicy<T> {
  static constexpr bool kPairTerms = true;

  DMLAP_HD explicit NTXent(const double* params) : NTXent(T(1 / params[0])) {}

  // log(1 + sum_n e^(exponent_n - exponent_p))
  DMLAP_HD PairTerm<T> pair(T exponent, T zn) const {
    const T share = sigmoid(zn - exponent);
    return {softplus(zn - exponent), -share, share};
  }

 protected:
  DMLAP_HD explicit NTXent(T rate) { this->positive = this->negative = {-rate, T(0)}; }
};

template <class T>
struct NPairs : NTXent<T> {
  DMLAP_HD explicit NPairs(const double*) : NTXent<T>(T(1)) {}
};

}  // namespace dmlap

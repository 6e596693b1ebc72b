// Multi-similarity loss (1904.06627), with or without its miner.
#pragma once

#include "dmlap/policies/soft.h"

namespace dmlap {

template <class T>
struct MultiSimilarity : SoftPolicy<T> {
  double alpha, beta;

  DMLAP_HD explicit MultiSimilarity(const double* params) : alpha(params[0]), beta(params[1]) {
    const T threshold = static_cast<T>(params[2]);
    this->positive = {static_cast<T>(alpha), threshold};
    this->negative = {static_cast<T>(-beta), threshold};
    this->mined = params[3] != 0;
    this->epsilon = static_cast<T>(params[4]);
  }

  DMLAP_HD SoftTerm term(const SoftAnchor& a) const {
    SoftTerm t;
    t.value[0] = softplus(a.zp) / alpha + softplus(a.zn) / beta;
    t.by_zp = sigmoid(a.zp) / alpha;
    t.by_zn = sigmoid(a.zn) / beta;
    return t;
  }
};

}  // namespace dmlap

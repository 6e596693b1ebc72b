// Angular loss (1708.01682): a positive pair against the negatives near its two rows.
#pragma once

#include "dmlap/dual.h"

namespace dmlap {

// The term of a pair at cosine s is log(1 + e^(-pull s) sum_n E_in E_pn) with E = e^(spread cos).
// An angle of at most 70 degrees keeps E_in E_pn within the range of a float.
template <class T>
struct Angular {
  T spread;  // 4 tan(alpha)^2
  T pull;    // 2 (1 + tan(alpha)^2)

  DMLAP_HD explicit Angular(const double* params)
      : Angular(std::tan(params[0] * 0.017453292519943295)) {}
  DMLAP_HD explicit Angular(double tangent)
      : spread(static_cast<T>(4 * tangent * tangent)),
        pull(static_cast<T>(2 * (1 + tangent * tangent))) {}

  template <class V>
  DMLAP_HD V exponent(V cosine) const {
    return spread * cosine;
  }
  // N: double or its duals
  template <class N>
  DMLAP_HD N term(N cosine, N sum) const {
    using std::exp;
    using std::log1p;
    return log1p(exp(cosine * -double(pull)) * sum);
  }
  // Derivatives of the term by the pair's own cosine and by the sum.
  DMLAP_HD Dual<double, 2> derive(double cosine, double sum) const {
    return term(variable<2>(cosine, 0), variable<2>(sum, 1));
  }
};

}  // namespace dmlap

// Angular loss (1708.01682): a positive pair against what is near both of its rows.
#pragma once

#include <cmath>

#include "dmlap/types.h"

namespace dmlap {

// The term of a pair at cosine s is log(1 + e^(-pull s) sum_n E_in E_pn) with E = e^(spread cos).
// An angle of at most 70 degrees keeps E E within the range of a float.
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
  DMLAP_HD double term(T cosine, double sum) const {
    return std::log1p(std::exp(-double(pull) * double(cosine)) * sum);
  }
  // d term / d sum
  DMLAP_HD double share(T cosine, double sum) const {
    return 1 / (std::exp(double(pull) * double(cosine)) + sum);
  }
  // d term / d cosine of the pair itself
  DMLAP_HD double slope(T cosine, double sum) const {
    return -double(pull) * sum * share(cosine, sum);
  }
};

}  // namespace dmlap

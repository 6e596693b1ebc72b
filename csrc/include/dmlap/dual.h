// Dual numbers: a value with its derivatives. A loss states the value of a term as a template over
// the type of its numbers; with duals it also gives the derivatives.
#pragma once

#include <cmath>

#include "dmlap/types.h"

namespace dmlap {

// A value and its derivatives by n variables. V: a scalar or a SIMD vector.
template <class V, int n>
struct Dual {
  V value;
  V by[n];

  // With scalars. Friends, so that they do not hide the operators of plain numbers.
  friend DMLAP_HD Dual exp(const Dual& x) {
    const V e = std::exp(x.value);
    return chain(x, e, e);
  }
  friend DMLAP_HD Dual sqrt(const Dual& x) {
    const V root = std::sqrt(x.value);
    return chain(x, root, 1 / (2 * root));
  }
  friend DMLAP_HD Dual log1p(const Dual& x) {
    return chain(x, std::log1p(x.value), 1 / (1 + x.value));
  }
};

// The k-th of n variables. Derivatives come out multiplied by `seed`.
template <int n, class V>
DMLAP_HD Dual<V, n> variable(V value, int k, V seed) {
  Dual<V, n> x{value, {}};
  x.by[k] = seed;
  return x;
}
template <int n, class V>
DMLAP_HD Dual<V, n> variable(V value, int k) {
  return variable<n>(value, k, V{} + 1);
}

// f(x), given the value f and the derivative `slope`.
template <class V, int n>
DMLAP_HD Dual<V, n> chain(const Dual<V, n>& x, V f, V slope) {
  Dual<V, n> y{f, {}};
  for (int k = 0; k < n; ++k) y.by[k] = slope * x.by[k];
  return y;
}

template <class V, int n>
DMLAP_HD Dual<V, n> operator-(const Dual<V, n>& a) {
  Dual<V, n> y{-a.value, {}};
  for (int k = 0; k < n; ++k) y.by[k] = -a.by[k];
  return y;
}
template <class V, int n>
DMLAP_HD Dual<V, n> operator+(const Dual<V, n>& a, const Dual<V, n>& b) {
  Dual<V, n> y{a.value + b.value, {}};
  for (int k = 0; k < n; ++k) y.by[k] = a.by[k] + b.by[k];
  return y;
}
template <class V, int n>
DMLAP_HD Dual<V, n> operator-(const Dual<V, n>& a, const Dual<V, n>& b) {
  Dual<V, n> y{a.value - b.value, {}};
  for (int k = 0; k < n; ++k) y.by[k] = a.by[k] - b.by[k];
  return y;
}
template <class V, int n>
DMLAP_HD Dual<V, n> operator*(const Dual<V, n>& a, const Dual<V, n>& b) {
  Dual<V, n> y{a.value * b.value, {}};
  for (int k = 0; k < n; ++k) y.by[k] = a.value * b.by[k] + a.by[k] * b.value;
  return y;
}

// With constants.
template <class V, int n, class S>
DMLAP_HD Dual<V, n> operator+(Dual<V, n> a, S s) {
  a.value = a.value + s;
  return a;
}
template <class V, int n, class S>
DMLAP_HD Dual<V, n> operator*(const Dual<V, n>& a, S s) {
  Dual<V, n> y{a.value * s, {}};
  for (int k = 0; k < n; ++k) y.by[k] = a.by[k] * s;
  return y;
}
template <class V, int n, class S>
DMLAP_HD Dual<V, n> operator/(const Dual<V, n>& a, S s) {
  Dual<V, n> y{a.value / s, {}};
  for (int k = 0; k < n; ++k) y.by[k] = a.by[k] / s;
  return y;
}

// The value of a plain number or a dual, to decide by.
template <class V>
DMLAP_HD V plain(V x) {
  return x;
}
template <class V, int n>
DMLAP_HD V plain(const Dual<V, n>& x) {
  return x.value;
}

// The functions below take plain numbers and duals. Vectors specialise this.
template <class V>
struct Elementary {
  DMLAP_HD static V softplus(V t) {
    return (t > 0 ? t : V(0)) + std::log1p(std::exp(t > 0 ? -t : t));
  }
  DMLAP_HD static V sigmoid(V t) {
    const V u = std::exp(t > 0 ? -t : t);
    return (t > 0 ? V(1) : u) / (1 + u);
  }
};

// log(1 + e^t)
template <class V>
DMLAP_HD V softplus(V t) {
  return Elementary<V>::softplus(t);
}
// 1 / (1 + e^-t)
template <class V>
DMLAP_HD V sigmoid(V t) {
  return Elementary<V>::sigmoid(t);
}
template <class V, int n>
DMLAP_HD Dual<V, n> softplus(const Dual<V, n>& t) {
  return chain(t, softplus(t.value), sigmoid(t.value));
}

// [t]+; NaN stays NaN. The derivative at 0 is 0.
template <class V>
DMLAP_HD V hinge(V t) {
  return t < 0 ? V{} : t;
}
template <class V, int n>
DMLAP_HD Dual<V, n> hinge(const Dual<V, n>& t) {
  Dual<V, n> y{hinge(t.value), {}};
  for (int k = 0; k < n; ++k) y.by[k] = t.value > 0 ? t.by[k] : V{};
  return y;
}

// The smaller one. Ties share the derivative, as in torch.minimum.
template <class V>
DMLAP_HD V minimum(V a, V b) {
  return a < b ? a : b;
}
template <class V, int n>
DMLAP_HD Dual<V, n> minimum(const Dual<V, n>& a, const Dual<V, n>& b) {
  Dual<V, n> y{minimum(a.value, b.value), {}};
  for (int k = 0; k < n; ++k) {
    const V half = (a.by[k] + b.by[k]) / 2, smaller = a.value < b.value ? a.by[k] : b.by[k];
    y.by[k] = a.value == b.value ? half : smaller;
  }
  return y;
}

// log(e^a + e^b) of scalars. If both are -inf, it is -inf with derivatives 0.
template <class V>
DMLAP_HD V log_add(V a, V b) {
  const V top = a > b ? a : b, low = a > b ? b : a;
  if (top == low) return top + V(0.69314718055994530942);
  return top + std::log1p(std::exp(low - top));
}
template <class V, int n>
DMLAP_HD Dual<V, n> log_add(const Dual<V, n>& a, const Dual<V, n>& b) {
  const V sum = log_add(a.value, b.value);
  const bool none = sum == V(-INFINITY);
  const V of_a = none ? V(0) : std::exp(a.value - sum),
          of_b = none ? V(0) : std::exp(b.value - sum);
  Dual<V, n> y{sum, {}};
  for (int k = 0; k < n; ++k) y.by[k] = of_a * a.by[k] + of_b * b.by[k];
  return y;
}

}  // namespace dmlap

// Prints the terms of every policy with their derivatives, by duals and by central differences of
// the plain values, for anchors with and without positives and negatives. The losses are those of
// losses.h; only a kind of policy that is new must be told of.
#include <cstdio>
#include <initializer_list>
#include <limits>
#include <type_traits>

#include "dmlap/losses.h"
#include "dmlap/policies/angular.h"
#include "dmlap/policies/hinge.h"
#include "dmlap/policies/log_sum.h"
#include "dmlap/policies/triplet.h"

using namespace dmlap;

namespace {

constexpr double kInf = std::numeric_limits<double>::infinity();

// f: of n numbers, plain ones or duals.
template <int n, class F>
void show(const char* name, const char* what, const double (&at)[n], F f) {
  Dual<double, n> x[n];
  for (int k = 0; k < n; ++k) x[k] = variable<n>(at[k], k);
  const Dual<double, n> term = f(x);
  std::printf("%s %s %.17g %.17g", name, what, f(at), term.value);
  for (int k = 0; k < n; ++k) {
    constexpr double kStep = 1e-6;
    double up[n], down[n];
    for (int l = 0; l < n; ++l) {
      up[l] = at[l] + (l == k ? kStep : 0);
      down[l] = at[l] - (l == k ? kStep : 0);
    }
    std::printf(" %.17g:%.17g", term.by[k], (f(up) - f(down)) / (2 * kStep));
  }
  std::printf("\n");
}

template <class Policy>
void anchors(const char* name, const Policy& policy) {
  const struct {
    const char* what;
    double pos_lse, neg_lse, exponents;
    int64_t positives, negatives;
  } cases[] = {
      {"both", 0.7, -1.3, 2.1, 3, 4},        {"large", 500, 900, 700, 2, 2},
      {"small", -900, -500, -700, 2, 2},     {"no-negatives", 0.7, -kInf, 2.1, 3, 0},
      {"no-positives", -kInf, 0.4, 0, 0, 4}, {"alone", -kInf, -kInf, 0, 0, 0},
  };
  for (const auto& c : cases) {
    for (int g = 0; g < Policy::kGroups; ++g) {
      const double at[3] = {c.pos_lse, c.neg_lse, c.exponents};
      show(name, c.what, at, [&](const auto& x) {
        using N = std::remove_cv_t<std::remove_reference_t<decltype(x[0])>>;
        return policy.terms(AnchorSums<N>{x[0], x[1], x[2], c.positives, c.negatives}).value[g];
      });
    }
  }
}

template <class Policy>
void pairs(const char* name, const Policy& policy) {
  const auto term = [&](const auto& x) { return policy.pair(x[0], x[1]); };
  show<2>(name, "both", {0.6, 0.9}, term);
  show<2>(name, "small", {-3.0, 1.0}, term);
  show<2>(name, "no-negatives", {0.6, -kInf}, term);
}

using T = double;
constexpr double kParams[kMaxParams] = {0.25, 0.8, 0.3, 1, 0.1};

// What losses.h names, by what it can show of a policy; in the library these run the sweeps.
struct Elsewhere {
  static void show_terms(const char*) {}
};
constexpr int64_t kKeptOfProxies = 0;
template <class, class Policy, int64_t = 0>
struct LogSumKernels {
  static void show_terms(const char* name) {
    if constexpr (Policy::kPairTerms) {
      pairs(name, Policy(kParams));
    } else {
      anchors(name, Policy(kParams));
    }
  }
};
template <class, class Policy>
struct HingeKernels {
  static void show_terms(const char* name) {
    const auto term = [](const auto& x) { return Policy(kParams).term(x[0]); };
    show<1>(name, "violated", {0.4}, term);
    show<1>(name, "kept", {-0.4}, term);
    show<1>(name, "no-pair", {-kInf}, term);
  }
};
template <class>
struct NPairsKernels : LogSumKernels<T, NPairs<T>> {};
template <class>
struct AngularKernels {
  static void show_terms(const char* name) {
    const double degrees[kMaxParams] = {40};
    const auto term = [&](const auto& x) { return Angular<T>(degrees).term(x[0], x[1]); };
    show<2>(name, "both", {0.3, 5.0}, term);
    show<2>(name, "no-negatives", {0.3, 0.0}, term);
  }
};
enum class Mining { hard, easy_positive, easy_positive_semihard };
// The triplets' terms are those of the hard ones.
template <class, Mining = Mining::hard>
struct TripletHardKernels : Elsewhere {};
template <class U>
struct TripletHardKernels<U, Mining::hard> {
  static void show_terms(const char* name) {
    for (const double smooth : {0, 1}) {
      const double params[kMaxParams] = {0.2, smooth, 1};
      const Triplet<T> policy(params);
      const auto term = [&](const auto& x) {
        return policy.term(policy.violation(x[0], policy.nearer(x[1], x[2])));
      };
      show<3>(name, "anchor-nearer", {0.9, 0.6, 0.8}, term);
      show<3>(name, "positive-nearer", {0.9, 0.8, 0.6}, term);
      show<3>(name, "tie", {0.9, 0.7, 0.7}, term);
      show<3>(name, "no-swap", {0.9, 0.7, kInf}, term);
      show<3>(name, "kept", {0.1, 0.9, 0.8}, term);
    }
  }
};
template <class>
struct TripletSemihardKernels : Elsewhere {};
template <class>
struct TripletAllKernels;
template <class, class>
struct WithSwapKernels : Elsewhere {};
template <class>
struct TripletDistanceWeightedKernels : Elsewhere {};
// Has no policy of a term.
template <class>
struct SoftTripleKernels : Elsewhere {};

}  // namespace

int main() {
#define DMLAP_SHOW(name, ...) __VA_ARGS__::show_terms(#name);
  DMLAP_LOSSES(DMLAP_SHOW)
}

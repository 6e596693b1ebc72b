// Prints the terms of every policy with their derivatives, by duals and by central differences of
// the plain values, for anchors with and without positives and negatives.
#include <cstdio>
#include <initializer_list>
#include <limits>
#include <type_traits>

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

}  // namespace

int main() {
  const double mined[8] = {2, 50, 0.5, 1, 0.1}, one[8] = {0.25, 0.8, 0.3};
  anchors("multi_similarity", MultiSimilarity<double>(mined));
  anchors("lifted_structure", LiftedStructure<double>(one));
  anchors("sup_con", SupCon<double>(one));
  anchors("circle", Circle<double>(one));
  anchors("proxy_nca", ProxyNCA<double>(one));
  anchors("proxy_anchor", ProxyAnchor<double>(one));
  pairs("nt_xent", NTXent<double>(one));
  pairs("n_pairs", NPairs<double>(one));
  pairs("lifted_structure_original", LiftedStructureOriginal<double>(one));
  for (const bool squared : {false, true}) {
    const auto term = [&](const auto& x) { return HingeTerm{squared}(x[0]); };
    show<1>("hinge", "violated", {0.4}, term);
    show<1>("hinge", "kept", {-0.4}, term);
    show<1>("hinge", "no-pair", {-kInf}, term);
  }
  for (const double smooth : {0, 1}) {
    const double params[8] = {0.2, smooth, 1};
    const Triplet<double> policy(params);
    const auto term = [&](const auto& x) {
      return policy.term(policy.violation(x[0], policy.nearer(x[1], x[2])));
    };
    show<3>("triplet", "anchor-nearer", {0.9, 0.6, 0.8}, term);
    show<3>("triplet", "positive-nearer", {0.9, 0.8, 0.6}, term);
    show<3>("triplet", "tie", {0.9, 0.7, 0.7}, term);
    show<3>("triplet", "no-swap", {0.9, 0.7, kInf}, term);
    show<3>("triplet", "kept", {0.1, 0.9, 0.8}, term);
  }
  const double degrees[8] = {40};
  const Angular<double> angular(degrees);
  const auto term = [&](const auto& x) { return angular.term(x[0], x[1]); };
  show<2>("angular", "both", {0.3, 5.0}, term);
  show<2>("angular", "no-negatives", {0.3, 0.0}, term);
}

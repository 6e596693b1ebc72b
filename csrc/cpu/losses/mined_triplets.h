// Mined triplets, one per positive pair: their terms, and their gradient by a gather and a scatter
// per triplet.
#pragma once

#include "dmlap/policies/triplet.h"
#include "engine/backward.h"
#include "engine/finish.h"
#include "losses/positive_windows.h"

namespace dmlap::cpu::DMLAP_ISA {

// A triplet. With `swap` the negative's distance is the smaller of those to the anchor and to the
// positive; without it d_pn is +inf.
template <class T>
struct ChosenTriplet {
  T d_n, violation, term;
  T pull;     // d term / d d_ap
  T push;     // -d term / d d_an
  T between;  // -d term / d d_pn

  ChosenTriplet(const Triplet<T>& policy, T d_ap, T d_an, T d_pn)
      : d_n(policy.nearer(d_an, d_pn)), violation(policy.violation(d_ap, d_n)) {
    const Dual<T, 3> t = policy.derive(d_ap, d_an, d_pn);
    term = t.value;
    pull = t.by[0];
    push = -t.by[1];
    between = -t.by[2];
  }
  TermSums terms() const {
    return {double(term), double(hinge(violation)), 1, term > 0, violation > 0};
  }
};

// Writes the loss of the triplets and the statistics asked for. terms: [x.n]
template <class T>
inline void finish_triplets(const ForwardState<T>& state, const LossOptions& options,
                            const TermSums* terms, const ForwardOut<T>& out) {
  const Prepared<T>& p = state.p;
  Epilogue<T> end(options.reduction, p.nonfinite, out);
  for (int64_t i = 0; i < p.x.n; ++i) end.add(p.x.order[i], terms + i);
  end.write();
  if (out.stat_counts != nullptr) sweep_statistics(state, T(options.params[0]), out);
}

// The triplets of anchors with few positives. Rows are numbered as the caller has them.
template <class T>
struct MinedTriplets {
  int64_t anchors = 0;
  Buffer<int64_t> first;     // [anchors + 1] of the triplets of an anchor, in label order
  Buffer<int64_t> anchor;    // [anchors] its row of x
  Buffer<int64_t> positive;  // [triplets] row of y
  Buffer<int64_t> negative;  // [triplets] row of y, -1 where none was found
  Buffer<T> pull;            // [triplets] d term / d d_ap * factor of the pair (anchor, positive)
  Buffer<T> push;            // [triplets] the same for (anchor, negative)
  Buffer<T> between;         // [triplets] and for (positive, negative), with `swap`

  // Allocates for the triplets of each anchor's few(anchor) positives.
  explicit MinedTriplets(const Prepared<T>& p) : anchors(p.x.n), first(p.x.n + 1), anchor(p.x.n) {
    first[0] = 0;
    for (int64_t i = 0; i < anchors; ++i) {
      anchor[i] = p.x.order[i];
      first[i + 1] = first[i] + few_positives(p, i);
    }
    positive.reset(size());
    negative.reset(size());
    pull.reset(size());
    push.reset(size());
    between.reset(size());
  }

  int64_t size() const { return first[anchors]; }
  int64_t bytes() const {
    return anchors * int64_t{2 * sizeof(int64_t)} +
           size() * int64_t{2 * sizeof(int64_t) + 3 * sizeof(T)};
  }

  // Stores triplet m of an anchor, given by positions in label order; negative_at may be -1.
  void set(const Prepared<T>& p, int64_t i, int64_t m, int64_t positive_at, int64_t negative_at) {
    positive[first[i] + m] = p.y().order[positive_at];
    negative[first[i] + m] = negative_at < 0 ? -1 : p.y().order[negative_at];
  }

  // Terms and weights, from differences of rows. `totals` may be null.
  void weigh(const Prepared<T>& p, const Triplet<T>& policy, TermSums* totals) {
    parallel_for(p.threads, (anchors + 31) / 32, [&](int64_t block) {
      const int64_t last = block * 32 + 32 < anchors ? block * 32 + 32 : anchors;
      for (int64_t i = block * 32; i < last; ++i) {
        for (int64_t m = first[i]; m < first[i + 1]; ++m) {
          weigh_one(p, policy, p.x.row(i), m, totals == nullptr ? nullptr : totals + i);
        }
      }
    });
  }

 private:
  void weigh_one(const Prepared<T>& p, const Triplet<T>& policy, const T* a, int64_t m,
                 TermSums* totals) {
    pull[m] = push[m] = between[m] = 0;
    if (negative[m] < 0) return;
    const Side<T>& y = p.y();
    const T* b = y.rows + positive[m] * y.stride;
    const T* e = y.rows + negative[m] * y.stride;
    const T d_ap = p.from_squared(p.pair(a, b));
    const T d_an = p.from_squared(p.pair(a, e));
    const T d_pn = policy.swap ? p.from_squared(p.pair(b, e)) : kInf<T>;
    const ChosenTriplet<T> t(policy, d_ap, d_an, d_pn);
    pull[m] = t.pull * p.factor(d_ap);
    push[m] = t.push * p.factor(t.d_n);
    between[m] = t.between * p.factor(t.d_n);
    if (totals != nullptr) totals->add(t.terms());
  }
};

// Mined triplets, kept so that backward need not mine again.
template <class T>
struct KeptTriplets : Kept {
  MinedTriplets<T> mined;

  explicit KeptTriplets(const Prepared<T>& p)
      : Kept{[](Kept* k) { delete static_cast<KeptTriplets*>(k); }}, mined(p) {}

  // They may take about half the size of the inputs. Anchors with many positives keep none.
  bool fits(const Prepared<T>& p) const {
    const int64_t rows = p.x.n + (p.self ? 0 : p.y_storage.n);
    const int64_t limit = rows * p.dim * int64_t{sizeof(T)} / 2 + (int64_t{16} << 20);
    return mined.bytes() <= limit && !any_many_positives(p);
  }
};

constexpr int64_t kFeatureSlice = 64;

// Calls f(first feature, width) for slices of the features. One thread has each slice, so that
// scattered sums have a fixed order.
template <class F>
inline void feature_slices(int threads, int64_t dim, F f) {
  parallel_for(threads, (dim + kFeatureSlice - 1) / kFeatureSlice, [&](int64_t slice) {
    const int64_t k0 = slice * kFeatureSlice;
    f(k0, dim - k0 < kFeatureSlice ? dim - k0 : kFeatureSlice);
  });
}

// Writes the gradient of mined triplets, at the normalised rows, to gx and gy. `upstream(anchor,
// row)` is d loss / d term.
template <class T, class F>
inline void scatter_triplets(const Prepared<T>& p, const MinedTriplets<T>& mined,
                             const BackwardArgs<T>& args, F upstream) {
  const int64_t dim = p.dim;
  const Side<T>& y = p.y();
  T* gy = args.gy == nullptr ? args.gx : args.gy;
  const int threads = double(p.x.n + mined.size()) * double(dim) < (1 << 15) ? 1 : p.threads;
  feature_slices(threads, dim, [&](int64_t k0, int64_t width) {
    for (int64_t i = 0; i < p.x.n; ++i) fill(args.gx + i * dim + k0, width, T(0));
    if (args.gy != nullptr) {
      for (int64_t j = 0; j < y.n; ++j) fill(args.gy + j * dim + k0, width, T(0));
    }
    for (int64_t i = 0; i < mined.anchors; ++i) {
      if (mined.first[i] == mined.first[i + 1]) continue;
      const int64_t row = mined.anchor[i];
      const T c = upstream(i, row);
      const T* a = p.x.rows + row * p.x.stride + k0;
      T* ga = args.gx + row * dim + k0;
      for (int64_t m = mined.first[i]; m < mined.first[i + 1]; ++m) {
        if (mined.negative[m] < 0) continue;
        const T pull = c * mined.pull[m], push = c * mined.push[m], between = c * mined.between[m];
        const T* b = y.rows + mined.positive[m] * y.stride + k0;
        const T* e = y.rows + mined.negative[m] * y.stride + k0;
        T* gb = gy + mined.positive[m] * dim + k0;
        T* ge = gy + mined.negative[m] * dim + k0;
        if (pull != 0) scatter_pair(p, a, b, pull, width, ga, gb);
        if (push != 0) scatter_pair(p, a, e, -push, width, ga, ge);
        if (between != 0) scatter_pair(p, b, e, -between, width, gb, ge);
      }
    }
  });
}

}  // namespace dmlap::cpu::DMLAP_ISA

// Batch-hard triplets: the nearest negatives by one sweep; backward gathers and scatters.
#pragma once

#include "losses/mined_triplets.h"

namespace dmlap::cpu::DMLAP_ISA {

// By anchor row: the rows of its triplet and their pair weights.
template <class T>
struct SavedTriplet {
  int64_t* positive;  // [n] row of y, -1 where the anchor has no term
  int64_t* negative;  // [n]
  T* pull;            // [n] d term / d d_ap * factor of the pair (anchor, positive)
  T* push;            // [n] the same for (anchor, negative)
  T* between;         // [n] and for (positive, negative), with `swap`

  static constexpr SavedSize size() {
    return {sizeof(SavedHeader), 2 * sizeof(int64_t) + 3 * sizeof(T)};
  }
  SavedTriplet(uint8_t* base, int64_t n) {
    positive = reinterpret_cast<int64_t*>(base + sizeof(SavedHeader));
    negative = positive + n;
    pull = reinterpret_cast<T*>(negative + n);
    push = pull + n;
    between = push + n;
  }
};

template <class T>
struct TripletHardKernels {
  static constexpr bool kSkipsReferences = true;

  static constexpr SavedSize saved_size(bool) { return SavedTriplet<T>::size(); }

  static void forward(const Pairs<T>& pairs, const LossOptions& options, const ForwardOut<T>& out) {
    const Triplet<T> policy(options.params);
    const bool stats = out.stat_counts != nullptr;
    const ForwardState<T> state(pairs);
    const Prepared<T>& p = state.p;
    const Buffer<AnchorState<T>>& anchors = state.anchors;
    SavedTriplet<T> saved(out.saved, p.x.n);

    sweep_positives(p, anchors.get(), [&](AnchorState<T>& a, T d2, int64_t at) {
      note_hardest_positive(p, a, d2, at);
    });
    const ForwardShared<T> shared = state.shared(nullptr);
    if (stats) {
      sweep_negatives<T, StatsAccumulator<T>>(shared);
    } else {
      sweep_negatives<T, NearestAccumulator<T>>(shared);
    }

    // The chosen pairs are recomputed from differences.
    parallel_for(p.row_threads, p.x.n, [&](int64_t i) {
      AnchorState<T>& a = anchors[i];
      const int64_t row = p.x.order[i];
      saved.positive[row] = saved.negative[row] = -1;
      saved.pull[row] = saved.push[row] = saved.between[row] = 0;
      const T d_ap = a.positive_at < 0 ? T(0) : p.from_squared(a.hardest_positive);
      if (out.thresholds)
        out.thresholds[row] = a.positive_at < 0 ? -kInf<T> : policy.threshold(d_ap);
      if (a.positive_at < 0 || a.negative_at < 0) return;
      const T* positive = p.y().row(a.positive_at);
      const T* negative = p.y().row(a.negative_at);
      const T d_an = p.from_squared(p.pair(p.x.row(i), negative));
      const T d_pn = policy.swap ? p.from_squared(p.pair(positive, negative)) : kInf<T>;
      const ChosenTriplet<T> t(policy, d_ap, d_an, d_pn);
      a.terms[0] = t.terms();
      saved.positive[row] = p.y().order[a.positive_at];
      saved.negative[row] = p.y().order[a.negative_at];
      saved.pull[row] = t.pull * p.factor(d_ap);
      saved.push[row] = t.push * p.factor(t.d_n);
      saved.between[row] = t.between * p.factor(t.d_n);
    });

    Epilogue<T> end(options.reduction, p.nonfinite, out);
    for (int64_t i = 0; i < p.x.n; ++i) end.add(p.x.order[i], &anchors[i].terms[0]);
    end.write();
    if (stats) write_statistics(state, out);
  }

  // One triplet per anchor: gather and scatter in O(B * D). Threads own slices of the features, so
  // each element is summed in the order of the anchors.
  static void backward(const Pairs<T>& pairs, const LossOptions& options,
                       const BackwardArgs<T>& args) {
    const int64_t n = pairs.x.n, dim = pairs.dim;
    const SavedTriplet<T> saved(const_cast<uint8_t*>(args.saved), n);
    if (nonfinite_gradients(pairs, args)) return;
    Pairs<T> unlabelled = pairs;
    unlabelled.x.labels = unlabelled.y.labels = nullptr;
    Prepared<T> p;
    prepare(p, unlabelled, false);
    const Side<T>& y = p.y();
    T* gy = pairs.self ? args.gx : args.gy;
    const Upstream<T> upstream(options, args);
    constexpr int64_t kSlice = 64;
    const int threads = double(n) * double(dim) < (1 << 15) ? 1 : pairs.threads;
    parallel_for(threads, (dim + kSlice - 1) / kSlice, [&](int64_t slice) {
      const int64_t k0 = slice * kSlice, width = dim - k0 < kSlice ? dim - k0 : kSlice;
      for (int64_t i = 0; i < n; ++i) fill(args.gx + i * dim + k0, width, T(0));
      if (args.gy != nullptr) {
        for (int64_t j = 0; j < pairs.y.n; ++j) fill(args.gy + j * dim + k0, width, T(0));
      }
      for (int64_t i = 0; i < n; ++i) {
        if (saved.positive[i] < 0) continue;
        const T c = upstream.at(i, 0, 1);
        const T pull = c * saved.pull[i], push = c * saved.push[i], between = c * saved.between[i];
        const int64_t ip = saved.positive[i], in = saved.negative[i];
        const T* a = p.x.rows + i * p.x.stride + k0;
        const T* b = y.rows + ip * y.stride + k0;
        const T* e = y.rows + in * y.stride + k0;
        T* ga = args.gx + i * dim + k0;
        T* gb = gy == nullptr ? nullptr : gy + ip * dim + k0;
        T* ge = gy == nullptr ? nullptr : gy + in * dim + k0;
        if (pull != 0) scatter_pair(p, a, b, pull, width, ga, gb);
        if (push != 0) scatter_pair(p, a, e, -push, width, ga, ge);
        if (between != 0 && gy != nullptr) scatter_pair(p, b, e, -between, width, gb, ge);
      }
    });
    if (!p.unit) return;
    through_normalize(p.x, dim, args.gx, p.row_threads);
    if (args.gy != nullptr) through_normalize(p.y_storage, dim, args.gy, p.row_threads);
  }
};

}  // namespace dmlap::cpu::DMLAP_ISA

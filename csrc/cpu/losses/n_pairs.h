// N-pairs of a batch: the first row of each class against the second rows of all classes.
#pragma once

#include "losses/log_sum_kernels.h"

namespace dmlap::cpu::DMLAP_ISA {

// Copies of the rows that take part; class c has label c on both sides.
template <class T>
struct FirstPairs {
  int64_t n = 0;
  Buffer<int64_t> anchor, positive;  // [n] rows
  Buffer<int64_t> label;             // [n] 0, 1, ...
  Buffer<T> x, y;                    // [n][dim]

  explicit FirstPairs(const Pairs<T>& pairs) {
    const int64_t rows = pairs.x.n;
    Buffer<int64_t> order(rows);
    sort_by_label(pairs.x.labels, rows, order.get());
    anchor.reset(rows);
    positive.reset(rows);
    label.reset(rows);
    const int64_t* labels = pairs.x.labels;
    for (int64_t i = 0; i + 1 < rows; ++i) {
      const bool first = i == 0 || labels[order[i]] != labels[order[i - 1]];
      if (!first || labels[order[i]] != labels[order[i + 1]]) continue;
      anchor[n] = order[i];
      positive[n] = order[i + 1];
      label[n] = n;
      ++n;
    }
    x.reset(n * pairs.dim);
    y.reset(n * pairs.dim);
    for (int64_t i = 0; i < n; ++i) {
      copy(pairs.x.data + anchor[i] * pairs.x.stride, pairs.dim, x.get() + i * pairs.dim);
      copy(pairs.x.data + positive[i] * pairs.x.stride, pairs.dim, y.get() + i * pairs.dim);
    }
  }

  // The problem of these rows, anchors against references.
  Pairs<T> problem(const Pairs<T>& whole) const {
    Pairs<T> p = whole;
    p.x = {x.get(), label.get(), n, whole.dim};
    p.y = {y.get(), label.get(), n, whole.dim};
    p.self = false;
    return p;
  }

  static void copy(const T* from, int64_t n, T* to) {
    for (int64_t k = 0; k < n; ++k) to[k] = from[k];
  }
};

// The chosen rows, which are copies, and what is kept of their problem.
template <class T>
struct KeptPairs : Kept {
  FirstPairs<T> chosen;
  Kept* inner = nullptr;

  explicit KeptPairs(const Pairs<T>& pairs)
      : Kept{[](Kept* k) { delete static_cast<KeptPairs*>(k); }}, chosen(pairs) {}
  ~KeptPairs() {
    if (inner != nullptr) inner->destroy(inner);
  }
};

template <class T>
struct NPairsKernels {
  static constexpr bool kSkipsReferences = true;

  using Inner = LogSumKernels<T, NPairs<T>, kKeptOfProxies>;

  // The self case becomes anchors against references, at most half of the rows each.
  static constexpr SavedSize saved_size(bool) { return Inner::saved_size(false); }

  static void forward(const Pairs<T>& pairs, const LossOptions& options, const ForwardOut<T>& out) {
    if (!pairs.self) return Inner::forward(pairs, options, out);
    Keeping<KeptPairs<T>> kept(new KeptPairs<T>(pairs));
    const FirstPairs<T>& chosen = kept->chosen;
    const bool each = options.reduction == Reduction::none;
    Buffer<T> loss(each ? chosen.n : 0);
    Buffer<int64_t> counts(2 + 2 * chosen.n);
    T values[3];
    ForwardOut<T> inner = out;
    inner.thresholds = nullptr;
    if (out.kept != nullptr) inner.kept = &kept->inner;
    if (each) inner.loss = loss.get();
    if (out.stat_counts) {
      inner.stat_counts = counts.get();
      inner.stat_values = values;
    }
    Inner::forward(chosen.problem(pairs), options, inner);
    // Rows that take no part may hold non-finite numbers.
    const bool nonfinite = any_nonfinite(pairs);
    const T none = or_nan<T>(nonfinite, 0);
    if (each) {
      fill(out.loss, pairs.x.n, none);
      for (int64_t i = 0; i < chosen.n; ++i) out.loss[chosen.anchor[i]] += loss[i];
    } else {
      *out.loss += none;
    }
    reinterpret_cast<SavedHeader*>(out.saved)->nonfinite = nonfinite;
    if (out.stat_counts) {
      // Statistics of distances and hardest pairs are of the whole batch.
      sweep_statistics(ForwardState<T>(pairs), T(0), out);
      out.stat_counts[0] = counts[0];
      out.stat_counts[1] = counts[1];
      out.stat_values[0] = values[0] + none;
    }
    if (kept->inner != nullptr) kept.hand_over(out.kept);
  }

  static void backward(const Pairs<T>& pairs, const LossOptions& options,
                       const BackwardArgs<T>& args) {
    if (!pairs.self) return Inner::backward(pairs, options, args);
    if (nonfinite_gradients(pairs, args)) return;
    if (args.kept == nullptr) return backward(pairs, options, args, FirstPairs<T>(pairs), nullptr);
    const auto* kept = static_cast<const KeptPairs<T>*>(args.kept);
    backward(pairs, options, args, kept->chosen, kept->inner);
  }

 private:
  static void backward(const Pairs<T>& pairs, const LossOptions& options,
                       const BackwardArgs<T>& args, const FirstPairs<T>& chosen, const Kept* kept) {
    const int64_t n = chosen.n, dim = pairs.dim;
    Buffer<T> gx(n * dim), gy(n * dim), grad(n);
    BackwardArgs<T> inner = args;
    inner.kept = kept;
    inner.gx = gx.get();
    inner.gy = gy.get();
    if (options.reduction == Reduction::none) {
      for (int64_t i = 0; i < n; ++i) grad[i] = args.grad[chosen.anchor[i]];
      inner.grad = grad.get();
    }
    Inner::backward(chosen.problem(pairs), options, inner);
    fill(args.gx, pairs.x.n * dim, T(0));
    for (int64_t i = 0; i < n; ++i) {
      FirstPairs<T>::copy(gx.get() + i * dim, dim, args.gx + chosen.anchor[i] * dim);
      FirstPairs<T>::copy(gy.get() + i * dim, dim, args.gx + chosen.positive[i] * dim);
    }
  }
};

}  // namespace dmlap::cpu::DMLAP_ISA

// Forward and backward of the losses over pairs of rows of a class and columns.
#pragma once

#include "class_runs_large.h"
#include "class_runs_small.h"

namespace dmlap::cpu::DMLAP_ISA {

// The pairs of rows that lie within a panel.
template <class T, class Terms>
struct SmallPairs {
  const RunProblem<T>& problem;
  PairPlaces<T> places;
  Buffer<T> own;  // [places]

  SmallPairs(const RunProblem<T>& problem, const Terms& terms)
      : problem(problem), places(problem.layout) {
    own_values(problem, places, terms, own);
  }

  bool none() const { return places.count == PairPlaces<T>::kStride; }

  template <class Make>
  void sweep(Make make) const {
    const Prepared<T>& p = problem.p;
    const SmallShared<T> shared{&problem, &places, own.get(), Blocks(p.x.panels),
                                Blocks(p.y().panels)};
    Schedule schedule(shared.rows.count, shared.columns.count, p.self);
    schedule.run(p.threads, [&](int) { return make(shared); });
  }

  // sums: [places][kSums]
  template <class Summed>
  void sum(const Summed& terms, Buffer<double>& sums) const {
    sums.reset(places.count * Summed::kSums);
    sums.fill(places.count * Summed::kSums, 0.0);
    sweep([&](const SmallShared<T>& shared) {
      return SmallForward<T, Summed>(shared, terms, sums.get());
    });
  }
};

template <class T, class Terms>
inline void small_forward(const RunProblem<T>& problem, const Terms& terms, PairTotal* totals) {
  constexpr int64_t W = Tile<T>::kWidth;
  const SmallPairs<T, Terms> pairs(problem, terms);
  if (pairs.none()) return;
  Buffer<double> sums;
  pairs.sum(terms, sums);
  parallel_for(problem.p.threads, problem.layout.panels, [&](int64_t panel) {
    each_pair(problem, pairs.places, panel, [&](int64_t place, int i, int q) {
      const PairTotal total = terms.total(pairs.own[place], sums.get() + place * Terms::kSums);
      if (problem.is_anchor(panel * W + i)) totals[panel * W + i].add(total);
      if (problem.is_anchor(panel * W + q)) totals[panel * W + q].add(total);
    });
  });
}

template <class T, class Terms>
inline void small_backward(const RunProblem<T>& problem, const Terms& terms, const T* upstream,
                           GradientSide<T>& gx, GradientSide<T>& gy) {
  constexpr int64_t W = Tile<T>::kWidth;
  const Prepared<T>& p = problem.p;
  const SmallPairs<T, Terms> pairs(problem, terms);
  if (pairs.none()) return;
  Buffer<double> sums;
  if constexpr (Terms::kPullInSweep) {
    sums.reset(pairs.places.count);
    sums.fill(pairs.places.count, 0.0);
  } else {
    pairs.sum(typename Terms::Slopes(terms), sums);
  }
  Buffer<T> coefficient(pairs.places.count);
  coefficient.fill(pairs.places.count, T(0));
  parallel_for(p.threads, problem.layout.panels, [&](int64_t panel) {
    each_pair(problem, pairs.places, panel, [&](int64_t place, int i, int q) {
      const T c = upstream[panel * W + i] + upstream[panel * W + q];
      coefficient[place] = terms.coefficient(pairs.own[place], sums[place], c);
    });
  });
  pairs.sweep([&](const SmallShared<T>& shared) {
    return SmallBackward<T, Terms>(shared, terms, coefficient.get(), sums.get(), gx, gy);
  });
  parallel_for(p.threads, problem.layout.panels, [&](int64_t panel) {
    each_pair(problem, pairs.places, panel, [&](int64_t place, int i, int q) {
      const int64_t a = panel * W + i, b = panel * W + q;
      const T c = Terms::kPullInSweep ? T(1) : upstream[a] + upstream[b];
      const T w = terms.pull(pairs.own[place], sums[place], c);
      if (w == 0) return;
      pull_row<T, Terms>(p, a, b, w, gx.out + p.x.order[a] * p.dim);
      pull_row<T, Terms>(p, b, a, w, gx.out + p.x.order[b] * p.dim);
    });
  });
}

template <class T, class Terms>
inline void forward_runs(const Pairs<T>& pairs, const LossOptions& options,
                         const ForwardOut<T>& out) {
  const RunProblem<T> problem(pairs);
  const Prepared<T>& p = problem.p;
  const Terms terms(options.params, p);
  Buffer<PairTotal> totals(p.x.n);
  totals.fill(p.x.n, PairTotal{});
  small_forward(problem, terms, totals.get());
  large_forward(problem, terms, totals.get());

  GroupTotal total;
  PairTotal all;
  for (int64_t at = 0; at < p.x.n; ++at) {
    if (p.x.rank[at] == INT32_MAX || !problem.is_anchor(at)) continue;
    const int64_t row = p.x.order[at];
    const int64_t count = terms.count(problem.positives[row], problem.negatives[row]);
    all.add(totals[at]);
    total.count += count;
    if (options.reduction != Reduction::none) continue;
    out.loss[row] = poison(p, count > 0 ? totals[at].term / double(count) : 0.0);
  }
  total.term = all.term;
  total.nonzero = all.nonzero;
  SavedHeader* header = reinterpret_cast<SavedHeader*>(out.saved);
  header->denominator[0] = total.denominator(options.reduction);
  header->poisoned = p.poisoned;
  if (options.reduction != Reduction::none) {
    *out.loss = poison(p, total.term / header->denominator[0]);
  }
  if (out.stat_counts == nullptr) return;
  run_statistics(pairs, terms.threshold_margin(), out);
  out.stat_counts[0] = total.count;
  out.stat_counts[1] = all.violated;
  out.stat_values[0] = poison(p, all.violation);
}

template <class T, class Terms>
inline void backward_runs(const Pairs<T>& pairs, const LossOptions& options,
                          const BackwardArgs<T>& args) {
  const SavedHeader& header = *reinterpret_cast<const SavedHeader*>(args.saved);
  if (poison_gradients(pairs, header, args)) return;
  RunProblem<T> problem(pairs);
  const Prepared<T>& p = problem.p;
  const Terms terms(options.params, p);
  Buffer<T> coefficient(p.x.n);
  const Upstream<T> upstream{args.grad, options.reduction, &header};
  for (int64_t at = 0; at < p.x.n; ++at) {
    const int64_t row = p.x.order[at];
    coefficient[at] = 0;
    if (p.x.rank[at] == INT32_MAX || !problem.is_anchor(at)) continue;
    const int64_t count = terms.count(problem.positives[row], problem.negatives[row]);
    coefficient[at] = upstream.at(row, 0, count);
  }
  const int64_t nx = pairs.x.n, ny = p.self ? 0 : pairs.y.n;
  GradientSide<T> gx, references;
  GradientSide<T>& gy = p.self ? gx : references;
  gx.reset(p.x.panels, p.packed_dim);
  if (p.self) {
    gx.out = args.gx;
    fill(gx.out, nx * p.dim, T(0));
  } else {
    // Rows of y are rows and columns: what they gather as columns is kept apart.
    gx.make_own(nx + ny, p.dim);
    references.reset(p.y().panels, p.packed_dim);
    references.out = args.gy;
    fill(args.gy, ny * p.dim, T(0));
  }
  small_backward(problem, terms, coefficient.get(), gx, gy);
  large_backward(problem, terms, coefficient.get(), gx, gy);

  add_weighted(p, p.x, problem.layout.used.get(), gx);
  if (!p.self) {
    add_weighted(p, p.y(), nullptr, references);
    for (int64_t i = 0; i < nx * p.dim; ++i) args.gx[i] = gx.out[i];
    for (int64_t i = 0; i < ny * p.dim; ++i) args.gy[i] += gx.out[nx * p.dim + i];
  }
  if (!p.unit) return;
  runs_through_normalize(problem.p, nx, args.gx);
  if (!p.self) through_normalize(p.y_storage, p.dim, args.gy, p.threads);
}

template <class T, class Terms>
struct RunKernels {
  static constexpr bool kSkipsReferences = false;

  static size_t saved_bytes(const Pairs<T>&, const LossOptions&) { return sizeof(SavedHeader); }
  static void forward(const Pairs<T>& pairs, const LossOptions& options, const ForwardOut<T>& out) {
    forward_runs<T, Terms>(pairs, options, out);
  }
  static void backward(const Pairs<T>& pairs, const LossOptions& options,
                       const BackwardArgs<T>& args) {
    backward_runs<T, Terms>(pairs, options, args);
  }
};

}  // namespace dmlap::cpu::DMLAP_ISA

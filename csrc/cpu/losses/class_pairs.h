// Losses of two rows of a class and a column of another: classes that fit into a panel, and the
// entries of forward and backward for all sizes.
#pragma once

#include "losses/class_pairs_large.h"

namespace dmlap::cpu::DMLAP_ISA {

template <class T>
struct SmallShared {
  const RunProblem<T>* problem;
  const PairPlaces<T>* places;
  const T* own;  // [places]
  Blocks rows, columns;
};

// Which of two panels have pairs of rows.
template <class T>
struct SmallPanels {
  bool rows, columns;

  SmallPanels(const RunProblem<T>& problem, int64_t px, int64_t py) {
    rows = problem.layout.longest[px] > 1;
    columns = problem.p.self && px != py && problem.layout.longest[py] > 1;
  }
};

// Sums over all columns, sums [places][kSums].
template <class T, class Terms>
class SmallForward {
  using P = Tile<T>;
  using V = typename P::V;
  static constexpr int W = P::kWidth;
  static constexpr int K = Terms::kSums;
  struct Sums {
    V of[K];
  };

 public:
  SmallForward(const SmallShared<T>& shared, const Terms& terms, double* sums)
      : s_(shared), terms_(terms), sums_(sums) {
    const RunLayout<T>& layout = s_.problem->layout;
    const Blocks blocks(layout.panels);
    int64_t most = 0, longest = 1;
    for (int64_t b = 0; b < blocks.count; ++b) {
      const int64_t n = s_.places->first[blocks.end(b)] - s_.places->first[blocks.begin(b)];
      most = n > most ? n : most;
    }
    for (int64_t panel = 0; panel < layout.panels; ++panel) {
      longest = layout.longest[panel] > longest ? layout.longest[panel] : longest;
    }
    row_sums_.reset(most);
    column_sums_.reset((longest - 1) * P::kVectors);
  }

  void operator()(int64_t block_x, int64_t block_y) {
    const int64_t first = s_.rows.begin(block_x), stop = s_.rows.end(block_x);
    first_place_ = s_.places->first[first];
    for (int64_t i = 0; i < s_.places->first[stop] - first_place_; ++i) row_sums_[i] = Sums{};
    for (int64_t py = s_.columns.begin(block_y); py < s_.columns.end(block_y); ++py) {
      const int apart = s_.problem->p.self ? s_.problem->layout.longest[py] : 0;
      for (int i = 0; i < (apart - 1) * P::kVectors; ++i) column_sums_[i] = Sums{};
      for (int64_t px = first; px < stop && !(s_.problem->p.self && px > py); ++px) panel(px, py);
      give_columns(py, apart);
    }
    for (int64_t px = first; px < stop; ++px) give_rows(px);
  }

 private:
  void panel(int64_t px, int64_t py) {
    const SmallPanels<T> with(*s_.problem, px, py);
    if (!with.rows && !with.columns) return;
    const Prepared<T>& p = s_.problem->p;
    buffer_.fill(p, px, s_.problem->layout.used[px], py, s_.problem->overlap(px, py),
                 [&](V d2) { return terms_.value(d2); });
    if (with.rows) row_runs(px);
    if (with.columns) column_runs(px, py);
  }

  void row_runs(int64_t px) {
    const RunLayout<T>& layout = s_.problem->layout;
    for (int i = 0; i < layout.used[px]; ++i) {
      V a[P::kVectors];
      for (int c = 0; c < P::kVectors; ++c) a[c] = buffer_.at(i, c);
      for (int q = i + 1; q < layout.end[px * W + i]; ++q) {
        const int64_t place = s_.places->at(px, q - i, i);
        const V own = splat<T>(s_.own[place]);
        Sums sums = row_sums_[place - first_place_];
        for (int c = 0; c < P::kVectors; ++c) terms_.add(a[c], buffer_.at(q, c), own, sums.of);
        row_sums_[place - first_place_] = sums;
      }
    }
  }

  void column_runs(int64_t px, int64_t py) {
    const int used = s_.problem->layout.used[px];
    for (int apart = 1; apart < s_.problem->layout.longest[py]; ++apart) {
      Sums* held = column_sums_.get() + (apart - 1) * P::kVectors;
      const T* own = s_.own + s_.places->at(py, apart, 0);
      Sums sums[P::kVectors];
      V owns[P::kVectors];
      for (int c = 0; c < P::kVectors; ++c) {
        sums[c] = held[c];
        owns[c] = load(own + c * P::kLanes);
      }
      for (int r = 0; r < used; ++r) {
        for (int c = 0; c < P::kVectors; ++c) {
          const T* at = buffer_.row(r) + c * P::kLanes;
          terms_.add(load(at), load(at + apart), owns[c], sums[c].of);
        }
      }
      for (int c = 0; c < P::kVectors; ++c) held[c] = sums[c];
    }
  }

  void give_columns(int64_t py, int longest) {
    for (int apart = 1; apart < longest; ++apart) {
      double* to = sums_ + s_.places->at(py, apart, 0) * K;
      for (int j = 0; j < W; ++j) {
        const Sums& sums = column_sums_[(apart - 1) * P::kVectors + j / P::kLanes];
        for (int k = 0; k < K; ++k) to[j * K + k] += sums.of[k][j % P::kLanes];
      }
    }
  }

  void give_rows(int64_t px) {
    each_pair(*s_.problem, *s_.places, px, [&](int64_t place, int, int) {
      const Sums& sums = row_sums_[place - first_place_];
      for (int k = 0; k < K; ++k) sums_[place * K + k] += wide_sum<T>(sums.of[k]);
    });
  }

  SmallShared<T> s_;
  Terms terms_;
  double* sums_;
  int64_t first_place_ = 0;
  PairBuffer<T> buffer_;
  Buffer<Sums> row_sums_, column_sums_;
};

// coefficients: [places]. pulls: null, or [places], to which d loss / d (own distance) is added.
template <class T, class Terms>
class SmallBackward {
  using P = Tile<T>;
  using V = typename P::V;
  static constexpr int W = P::kWidth;
  static constexpr int64_t S = PairPlaces<T>::kStride;

 public:
  SmallBackward(const SmallShared<T>& shared, const Terms& terms, const T* coefficients,
                double* pulls, GradientSide<T>& x, GradientSide<T>& y)
      : s_(shared),
        terms_(terms),
        coefficients_(coefficients),
        pulls_(pulls),
        x_(x),
        y_(y),
        panels_(shared.problem->p, x, y, takes_differences<Terms>(shared.problem->p)) {}

  void operator()(int64_t block_x, int64_t block_y) {
    const bool self = s_.problem->p.self;
    for (int64_t py = s_.columns.begin(block_y); py < s_.columns.end(block_y); ++py) {
      for (int64_t px = s_.rows.begin(block_x); px < s_.rows.end(block_x); ++px) {
        if (self && px > py) break;
        panel(px, py);
      }
    }
  }

 private:
  void panel(int64_t px, int64_t py) {
    const SmallPanels<T> with(*s_.problem, px, py);
    if (!with.rows && !with.columns) return;
    const Prepared<T>& p = s_.problem->p;
    const int used = s_.problem->layout.used[px];
    buffer_.fill(p, px, used, py, s_.problem->overlap(px, py),
                 [&](V d2) { return terms_.value(d2); });
    if (with.rows) {
      row_runs(px);
    } else {
      fill(weights_.row(0), used * W, T(0));
    }
    if (with.columns) column_runs(px, py);
    if (!close_weights(terms_, buffer_, weights_, used)) return;
    if (takes_differences<Terms>(p) && buffer_.has_recomputed) {
      const auto out = [&](int r) { return x_.out + p.x.order[px * W + r] * p.dim; };
      take_recomputed(p, buffer_, weights_, px, used, py, out, y_.out);
    }
    panels_.add(panel_pair_of(*s_.problem, px, px, py), weights_.row(0));
  }

  void row_runs(int64_t px) {
    const RunLayout<T>& layout = s_.problem->layout;
    for (int i = 0; i < layout.used[px]; ++i) {
      V a[P::kVectors], w[P::kVectors] = {};
      for (int c = 0; c < P::kVectors; ++c) a[c] = buffer_.at(i, c);
      for (int q = layout.begin[px * W + i]; q < layout.end[px * W + i]; ++q) {
        if (q == i) continue;
        const int64_t place = q > i ? s_.places->at(px, q - i, i) : s_.places->at(px, i - q, q);
        const V own = splat<T>(s_.own[place]), coefficient = splat<T>(coefficients_[place]);
        V slope{};
        for (int c = 0; c < P::kVectors; ++c) {
          slope += terms_.weigh(a[c], buffer_.at(q, c), own, coefficient, w[c]);
        }
        if (Terms::kPullInSweep && q > i) pulls_[place] += wide_sum<T>(slope);
      }
      for (int c = 0; c < P::kVectors; ++c) store(weights_.row(i) + c * P::kLanes, w[c]);
    }
  }

  void column_runs(int64_t px, int64_t py) {
    const int used = s_.problem->layout.used[px], longest = s_.problem->layout.longest[py];
    const int64_t first = s_.places->first[py];
    for (int c = 0; c < P::kVectors; ++c) {
      const T* own = s_.own + first + c * P::kLanes;
      const T* coefficient = coefficients_ + first + c * P::kLanes;
      V slopes[W] = {};
      for (int r = 0; r < used; ++r) {
        const T* at = buffer_.row(r) + c * P::kLanes;
        const V a = load(at);
        V w = weights_.at(r, c);
        for (int apart = 1; apart < longest; ++apart) {
          const int64_t k = (apart - 1) * S;
          slopes[apart] +=
              terms_.weigh(a, load(at + apart), load(own + k), load(coefficient + k), w);
          terms_.weigh(a, load(at - apart), load(own + k - apart), load(coefficient + k - apart),
                       w);
        }
        store(weights_.row(r) + c * P::kLanes, w);
      }
      for (int apart = 1; Terms::kPullInSweep && apart < longest; ++apart) {
        double* to = pulls_ + s_.places->at(py, apart, c * P::kLanes);
        for (int l = 0; l < P::kLanes; ++l) to[l] += slopes[apart][l];
      }
    }
  }

  SmallShared<T> s_;
  Terms terms_;
  const T* coefficients_;
  double* pulls_;
  GradientSide<T>& x_;
  GradientSide<T>& y_;
  PairBuffer<T> buffer_, weights_;
  PanelGradient<T> panels_;
};

// The pairs of rows within a panel.
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
inline void small_forward(const RunProblem<T>& problem, const Terms& terms, TermSums* totals) {
  constexpr int64_t W = Tile<T>::kWidth;
  const SmallPairs<T, Terms> pairs(problem, terms);
  if (pairs.none()) return;
  Buffer<double> sums;
  pairs.sum(terms, sums);
  parallel_for(problem.p.threads, problem.layout.panels, [&](int64_t panel) {
    each_pair(problem, pairs.places, panel, [&](int64_t place, int i, int q) {
      const TermSums total = terms.total(pairs.own[place], sums.get() + place * Terms::kSums);
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
struct RunKernels {
  static constexpr bool kSkipsReferences = false;

  static constexpr SavedSize saved_size(bool) { return {sizeof(SavedHeader)}; }

  static void forward(const Pairs<T>& pairs, const LossOptions& options, const ForwardOut<T>& out) {
    const RunProblem<T> problem(pairs);
    const Prepared<T>& p = problem.p;
    const Terms terms(options.params, p);
    Buffer<TermSums> totals(p.x.n);
    totals.fill(p.x.n, TermSums{});
    small_forward(problem, terms, totals.get());
    large_forward(problem, terms, totals.get());

    Epilogue<T> end(options.reduction, p.nonfinite, out);
    for (int64_t at = 0; at < p.x.n; ++at) {
      if (p.x.rank[at] == INT32_MAX || !problem.is_anchor(at)) continue;
      const int64_t row = p.x.order[at];
      totals[at].count = terms.count(problem.positives[row], problem.negatives[row]);
      end.add(row, totals.get() + at);
    }
    end.write();
    if (out.stat_counts == nullptr) return;
    sweep_statistics(ForwardState<T>(pairs), terms.threshold_margin(), out);
  }

  static void backward(const Pairs<T>& pairs, const LossOptions& options,
                       const BackwardArgs<T>& args) {
    if (nonfinite_gradients(pairs, args)) return;
    RunProblem<T> problem(pairs);
    const Prepared<T>& p = problem.p;
    const Terms terms(options.params, p);
    Buffer<T> coefficient(p.x.n);
    const Upstream<T> upstream(options, args);
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
      // Rows of y are both rows and columns. Their sums as columns are separate.
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
};

}  // namespace dmlap::cpu::DMLAP_ISA

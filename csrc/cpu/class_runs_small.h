// Classes that fit into a panel: their pairs of rows against every column, two panels at a time. In
// the self case both panels are rows and columns.
#pragma once

#include "class_runs_pairs.h"

namespace dmlap::cpu::DMLAP_ISA {

template <class T>
struct SmallShared {
  const RunProblem<T>* problem;
  const PairPlaces<T>* places;
  const T* own;  // [places]
  Blocks rows, columns;
};

// Which of two panels have pairs of rows to serve.
template <class T>
struct SmallPanels {
  bool rows, columns;

  SmallPanels(const RunProblem<T>& problem, int64_t px, int64_t py) {
    rows = problem.layout.longest[px] > 1;
    columns = problem.p.self && px != py && problem.layout.longest[py] > 1;
  }
};

// sums: [places][kSums], over all columns.
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

// coefficients: [places]; pulls: null, or [places] to which d loss / d (own distance) is added.
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
        products_(shared.problem->p, shared.problem->layout, x, y,
                  takes_differences<Terms>(shared.problem->p)) {}

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
    if (takes_differences<Terms>(p) && buffer_.has_near) {
      const auto out = [&](int r) { return x_.out + p.x.order[px * W + r] * p.dim; };
      take_near(p, buffer_, weights_, px, used, py, out, y_.out);
    }
    products_.apply(weights_, px, px, py);
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
  WeightedPanels<T> products_;
};

}  // namespace dmlap::cpu::DMLAP_ISA

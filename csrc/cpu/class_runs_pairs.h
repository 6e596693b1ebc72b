// Losses over (row, row of its class, column of another class): what the rows, the columns and
// their pairs are.
//
// A loss gives a struct of terms. `a` and `b` are what it keeps of the pairs of two rows of one
// class with a column, `own` is what it keeps of the pair of rows itself:
//   value(d2) -> V            a or b of squared distances, +inf where there is no pair
//   own(d2) -> T              of a pair of rows
//   kNoPair                      the `own` of rows that are no pair
//   kSums, add(a, b, own, sums)  what is summed over the columns of a pair of rows
//   total(own, sums) -> PairTotal
//   Slopes                       terms whose first sum is what coefficient and pull need
//   coefficient(own, sum, c) -> T    c: upstream of the pair's terms
//   pull(own, sum, c) -> T           the weight of the pair of rows itself
//   kPullInSweep                 what weigh returns sums up to c * sum, so that Slopes can wait
//   weigh(a, b, own, coefficient, w) -> V   adds to w, which makes the weight of (row of a, column)
//   close(a, w) -> V             that weight
//   kDifferences                 weights are d loss / d (x_i - x_j) over (x_i - x_j), else over
//   -x_j
#pragma once

#include "class_runs.h"

namespace dmlap::cpu::DMLAP_ISA {

// Of the terms of one pair of rows or of one anchor.
struct PairTotal {
  double term = 0;
  int64_t nonzero = 0;
  double violation = 0;
  int64_t violated = 0;

  void add(const PairTotal& o) {
    term += o.term;
    nonzero += o.nonzero;
    violation += o.violation;
    violated += o.violated;
  }
};

// Rows: the anchors, then the references if there are any. Columns: the references.
template <class T>
struct RunProblem {
  Prepared<T> p;
  RunLayout<T> layout;
  int64_t anchors;                       // rows below this are anchors
  const int64_t* self_index;             // null, or [anchors]: Pairs::self_index
  Buffer<int64_t> positives, negatives;  // [rows] of an anchor, by row

  explicit RunProblem(const Pairs<T>& pairs)
      : anchors(pairs.x.n), self_index(pairs.self ? nullptr : pairs.self_index) {
    Pairs<T> all = pairs;
    if (!pairs.self) join(pairs, all);
    prepare(p, all, true);
    positives.reset(p.x.n);
    negatives.reset(p.x.n);
    for (int64_t i = 0; i < p.x.n; ++i) {
      positives[p.x.order[i]] = p.positives(i);
      negatives[p.x.order[i]] = p.negatives(i);
    }
    align_runs(p, layout);
  }

  bool is_anchor(int64_t at) const { return p.x.order[at] < anchors; }
  // Whether two positions of one class hold an anchor and a positive of it.
  bool is_pair(int64_t a, int64_t b) const {
    if (p.self) return a != b;
    const int64_t i = p.x.order[a], j = p.x.order[b];
    if ((i < anchors) == (j < anchors)) return false;
    const int64_t anchor = i < j ? i : j, reference = (i < j ? j : i) - anchors;
    return self_index == nullptr || self_index[anchor] != reference;
  }

  // Whether two panels share a class.
  bool overlap(int64_t px, int64_t py) const {
    constexpr int64_t W = Tile<T>::kWidth;
    const Side<T>& y = p.y();
    const int64_t n = rows_in(y, p.self ? layout.used.get() : nullptr, py);
    const int32_t* x_rank = p.x.rank.get() + px * W;
    const int32_t* y_rank = y.rank.get() + py * W;
    return x_rank[0] <= y_rank[n - 1] && x_rank[layout.used[px] - 1] >= y_rank[0];
  }

 private:
  void join(const Pairs<T>& pairs, Pairs<T>& all) {
    const int64_t n = pairs.x.n + pairs.y.n;
    rows_.reset(n * pairs.dim);
    labels_.reset(n);
    for (int64_t i = 0; i < n; ++i) {
      const bool first = i < pairs.x.n;
      const Rows<T>& from = first ? pairs.x : pairs.y;
      const int64_t row = first ? i : i - pairs.x.n;
      labels_[i] = from.labels[row];
      for (int64_t k = 0; k < pairs.dim; ++k) {
        rows_[i * pairs.dim + k] = from.data[row * from.stride + k];
      }
    }
    all.x = {rows_.get(), labels_.get(), n, pairs.dim};
    if (pairs.self_index == nullptr) return;
    own_.reset(n);
    for (int64_t i = 0; i < n; ++i) own_[i] = i < pairs.x.n ? pairs.self_index[i] : -1;
    all.self_index = own_.get();
  }

  Buffer<T> rows_;
  Buffer<int64_t> labels_, own_;
};

// A place for every pair of rows of a class that lies in one panel: by panel, by the distance
// 1, 2, ... of their lanes, by the first lane. Lanes whose partner is of another class have places
// as well, and so do some behind the last lane and before the first panel.
template <class T>
struct PairPlaces {
  static constexpr int64_t kStride = (Tile<T>::kVectors + 1) * Tile<T>::kLanes;

  Buffer<int64_t> first;  // [panels]
  int64_t count = 0;

  explicit PairPlaces(const RunLayout<T>& layout) : first(layout.panels + 1) {
    count = kStride;
    for (int64_t panel = 0; panel < layout.panels; ++panel) {
      first[panel] = count;
      count += layout.longest[panel] > 1 ? (layout.longest[panel] - 1) * kStride : 0;
    }
    first[layout.panels] = count;
  }
  int64_t at(int64_t panel, int apart, int64_t lane) const {
    return first[panel] + (apart - 1) * kStride + lane;
  }
};

// Calls f(place, lane, lane of the partner) for the pairs of rows within a panel.
template <class T, class F>
inline void each_pair(const RunProblem<T>& problem, const PairPlaces<T>& places, int64_t panel,
                      F f) {
  constexpr int64_t W = Tile<T>::kWidth;
  const RunLayout<T>& layout = problem.layout;
  if (layout.longest[panel] < 2) return;
  for (int i = 0; i < layout.used[panel]; ++i) {
    for (int q = i + 1; q < layout.end[panel * W + i]; ++q) {
      if (problem.is_pair(panel * W + i, panel * W + q)) f(places.at(panel, q - i, i), i, q);
    }
  }
}

// `own` of every place.
template <class T, class Terms>
inline void own_values(const RunProblem<T>& problem, const PairPlaces<T>& places,
                       const Terms& terms, Buffer<T>& own) {
  constexpr int64_t W = Tile<T>::kWidth;
  const Prepared<T>& p = problem.p;
  own.reset(places.count);
  own.fill(places.count, Terms::kNoPair);
  parallel_for(p.threads, problem.layout.panels, [&](int64_t panel) {
    each_pair(problem, places, panel, [&](int64_t place, int i, int q) {
      own[place] = terms.own(p.pair(p.x.row(panel * W + i), p.x.row(panel * W + q)));
    });
  });
}

// What the pair of two positions adds to the gradient at the first.
template <class T, class Terms>
inline void pull_row(const Prepared<T>& p, int64_t to, int64_t from, T w, T* out) {
  if (Terms::kDifferences) {
    add_difference(p.x.row(to), p.x.row(from), w, p.dim, out);
  } else {
    subtract_row(p.x.row(from), w, p.dim, out);
  }
}

// Closes the weights of two panels; false if all of them are 0.
template <class T, class Terms>
inline bool close_weights(const Terms& terms, const PairBuffer<T>& values,
                          const PairBuffer<T>& weights, int rows) {
  using P = Tile<T>;
  typename P::I some{};
  for (int r = 0; r < rows; ++r) {
    for (int c = 0; c < P::kVectors; ++c) {
      const typename P::V w = terms.close(values.at(r, c), weights.at(r, c));
      some |= w != typename P::V{};
      store(weights.row(r) + c * P::kLanes, w);
    }
  }
  return bits(some) != 0;
}

// Takes the near pairs out of the weights and adds them by their differences; out(r) is the
// gradient of row r of the panel.
template <class T, class Out>
inline void take_near(const Prepared<T>& p, const PairBuffer<T>& values,
                      const PairBuffer<T>& weights, int64_t px, int rows, int64_t py, Out out,
                      T* y_out) {
  constexpr int64_t W = Tile<T>::kWidth;
  for (int r = 0; r < rows; ++r) {
    const T* a = p.x.row(px * W + r);
    for (uint64_t m = values.near[r]; m; m &= m - 1) {
      const int c = __builtin_ctzll(m);
      T& w = weights.row(r)[c];
      if (w == 0) continue;
      const T* b = p.y().row(py * W + c);
      add_difference(a, b, w, p.dim, out(r));
      add_difference(b, a, w, p.dim, y_out + p.y().order[py * W + c] * p.dim);
      w = 0;
    }
  }
}

}  // namespace dmlap::cpu::DMLAP_ISA

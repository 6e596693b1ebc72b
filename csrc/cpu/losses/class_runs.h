// Panels of whole classes, for losses whose terms mix two rows of a class with a column: the layout
// of rows, and the rows, columns and pairs of rows of such a loss.
//
// A loss gives a struct of terms. `a` and `b` are its values of two rows of a class with a column
// of another class, `own` is its value of the pair of rows itself:
//   value(d2) -> V                a or b of squared distances, +inf where there is no pair
//   own(d2) -> T                  of a pair of rows
//   kNoPair                       the `own` of rows that are no pair
//   kSums, add(a, b, own, sums)   what is summed over the columns of a pair of rows
//   total(own, sums) -> TermSums  the term of a pair of rows
//   Slopes                        terms whose first sum is what coefficient and pull need
//   coefficient(own, sum, c) -> T  c: upstream of the pair's terms
//   pull(own, sum, c) -> T        the weight of the pair of rows itself
//   kPullInSweep                  what weigh returns sums up to c * sum, so that Slopes can wait
//   weigh(a, b, own, coefficient, w) -> V  adds to w, which makes the weight of (row of a, column)
//   close(a, w) -> V              that weight
//   kDifferences                  weights are d loss / d (x_i - x_j) over (x_i - x_j), else over
//                                 -x_j
#pragma once

#include "engine/finish.h"
#include "engine/gradient.h"
#include "engine/simd_math.h"

namespace dmlap::cpu::DMLAP_ISA {

// The layout of a side with its classes aligned to panels. A class of at most kWidth rows lies in
// one panel; a larger one has its own panels.
template <class T>
struct RunLayout {
  int64_t panels = 0;
  Buffer<int32_t> used;  // [panels] rows before the padding
  Buffer<int32_t>
      longest;  // [panels] rows of its largest class; 0: part of a class larger than a panel
  Buffer<int32_t> begin;  // [panels * kWidth] the first lane of each row's class
  Buffer<int32_t> end;
  Buffer<int32_t> last;  // [panels] the last panel of its class, if that is larger than a panel

  bool large(int64_t panel) const { return longest[panel] == 0; }
};

// The aligned position of each row of a side that is packed in label order.
template <class T>
inline int64_t aligned_positions(const Side<T>& side, int64_t* at) {
  constexpr int64_t W = Tile<T>::kWidth;
  int64_t next = 0;
  for (int64_t i = 0, stop; i < side.n; i = stop) {
    for (stop = i + 1; stop < side.n && side.rank[stop] == side.rank[i];) ++stop;
    const int64_t size = stop - i, room = (next + W - 1) / W * W - next;
    if (size > room) next += room;
    for (int64_t j = i; j < stop; ++j) at[j] = next++;
    if (size > W) next = (next + W - 1) / W * W;
  }
  return (next + W - 1) / W;
}

template <class T>
DMLAP_ONCE void describe_runs(const Side<T>& side, RunLayout<T>& layout) {
  constexpr int64_t W = Tile<T>::kWidth;
  layout.panels = side.panels;
  layout.used.reset(side.panels);
  layout.longest.reset(side.panels);
  layout.last.reset(side.panels);
  layout.begin.reset(side.panels * W);
  layout.end.reset(side.panels * W);
  for (int64_t panel = side.panels - 1; panel >= 0; --panel) {
    const int32_t* rank = side.rank.get() + panel * W;
    int32_t r = 0, longest = 0;
    while (r < W && rank[r] != INT32_MAX) {
      int32_t stop = r + 1;
      while (stop < W && rank[stop] == rank[r]) ++stop;
      for (int32_t l = r; l < stop; ++l) {
        layout.begin[panel * W + l] = r;
        layout.end[panel * W + l] = stop;
      }
      longest = stop - r > longest ? stop - r : longest;
      r = stop;
    }
    layout.used[panel] = r;
    const bool before = panel > 0 && rank[-1] == rank[0];
    const bool after = panel + 1 < side.panels && rank[W] == rank[0];
    layout.longest[panel] = before || after ? 0 : longest;
    layout.last[panel] = static_cast<int32_t>(after ? layout.last[panel + 1] : panel);
  }
}

// Packs p.x again with its classes aligned to panels. x.n then includes the padding.
template <class T>
DMLAP_ONCE void align_runs(Prepared<T>& p, RunLayout<T>& layout) {
  constexpr int64_t W = Tile<T>::kWidth;
  Side<T>& side = p.x;
  Buffer<int64_t> at(side.n);
  const int64_t panels = aligned_positions(side, at.get());
  Buffer<int64_t> order(panels * W), from(panels * W);
  Buffer<int32_t> rank(panels * W);
  order.fill(panels * W, 0);
  from.fill(panels * W, -1);
  rank.fill(panels * W, INT32_MAX);
  for (int64_t i = 0; i < side.n; ++i) {
    order[at[i]] = side.order[i];
    rank[at[i]] = side.rank[i];
    from[at[i]] = i;
  }
  if (p.own.get() != nullptr) {
    Buffer<int64_t> own(panels * W);
    own.fill(panels * W, -1);
    for (int64_t i = 0; i < side.n; ++i) own[at[i]] = p.own[i];
    p.own.swap(own);
  }
  const int64_t size = p.packed_dim * W;
  Buffer<T> packed(panels * size), norm(panels * W), panel_norm(panels);
  parallel_for(p.threads, panels, [&](int64_t panel) {
    panel_norm[panel] = -kInf<T>;
    for (int64_t r = 0; r < W; ++r) {
      const int64_t i = from[panel * W + r];
      norm[panel * W + r] = i < 0 ? kInf<T> : side.norm[i];
      if (i >= 0 && !p.dot() && side.norm[i] > panel_norm[panel]) panel_norm[panel] = side.norm[i];
    }
    for (int64_t k = 0; k < p.packed_dim; ++k) {
      for (int64_t r = 0; r < W; ++r) {
        const int64_t i = from[panel * W + r];
        packed[panel * size + k * W + r] = i < 0 ? T(0) : side.packed[i / W * size + k * W + i % W];
      }
    }
  });
  side.order.swap(order);
  side.rank.swap(rank);
  side.packed.swap(packed);
  side.norm.swap(norm);
  side.panel_norm.swap(panel_norm);
  side.panels = panels;
  side.n = panels * W;
  describe_runs(side, layout);
}

// Blocks of panels that do not split a class.
template <class T>
class RunBlocks {
 public:
  explicit RunBlocks(const RunLayout<T>& layout) : first_(layout.panels + 1) {
    const int64_t target = Blocks(layout.panels).per_block;
    for (int64_t panel = 0; panel < layout.panels;) {
      first_[count++] = panel;
      int64_t stop = panel;
      while (stop < layout.panels && stop - panel < target) stop = layout.last[stop] + 1;
      panel = stop;
    }
    first_[count] = layout.panels;
  }
  int64_t begin(int64_t block) const { return first_[block]; }
  int64_t end(int64_t block) const { return first_[block + 1]; }

  int64_t count = 0;

 private:
  Buffer<int64_t> first_;
};

// A value of each pair of two panels: a row of lanes for each row of the first. Lanes before the
// first row and after the last may be read.
template <class T>
class PairBuffer {
  using P = Tile<T>;
  using V = typename P::V;
  static constexpr int W = P::kWidth;

 public:
  PairBuffer() : values_((W + 2) * W) { values_.fill((W + 2) * W, T(0)); }

  T* row(int64_t r) const { return values_.get() + (r + 1) * W; }
  V at(int64_t r, int c) const { return load(row(r) + c * P::kLanes); }

  // value: of a vector of squared distances, +inf where there is no pair.
  template <class F>
  void fill(const Prepared<T>& p, int64_t px, int rows, int64_t py, bool drop_equal, F value) {
    has_recomputed = false;
    for (int first = 0; first < rows; first += P::kRows) {
      DistanceTile<T> tile;
      tile.compute(p, px, first, py, drop_equal, false);
      for (int r = 0; r < P::kRows; ++r) {
        recomputed[first + r] = tile.has_recomputed ? tile.recomputed[r] : 0;
        for (int c = 0; c < P::kVectors; ++c) {
          store(row(first + r) + c * P::kLanes, value(tile.d2[r][c]));
        }
      }
      has_recomputed |= tile.has_recomputed;
    }
  }

  bool has_recomputed = false;  // some pair was recomputed from differences
  uint64_t recomputed[W] = {};  // which pairs, one bit per column

 private:
  Buffer<T> values_;
};

// through_normalize for p.x, of which `rows` rows have a gradient; p.x.n counts their padding.
template <class T>
inline void runs_through_normalize(Prepared<T>& p, int64_t rows, T* grad) {
  p.x.n = rows;
  through_normalize(p.x, p.dim, grad, p.threads);
}

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
  // Whether two positions of a class are an anchor and its positive.
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

// The panels px and py of such a problem for a gradient that x holds at `place`.
template <class T>
inline PanelPair panel_pair_of(const RunProblem<T>& problem, int64_t px, int64_t place,
                               int64_t py) {
  const int32_t* used = problem.layout.used.get();
  const int64_t rows = used[px];
  return {px, py,  place, rows, rows_in(problem.p.y(), problem.p.self ? used : nullptr, py),
          0,  rows};
}

// Numbers the pairs of rows of a class within one panel: by panel, then by the difference 1, 2, ...
// of their lanes, then by the first lane. Lanes whose partner is of another class have a number
// too, and so do some lanes after the last and before the first panel.
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

// `own` of every pair.
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

// Whether the weights of a loss multiply differences of rows: see Prepared::products.
template <class Terms, class T>
inline bool takes_differences(const Prepared<T>& p) {
  return Terms::kDifferences && !p.products();
}

// Adds the pair of two positions to the gradient at the first.
template <class T, class Terms>
inline void pull_row(const Prepared<T>& p, int64_t to, int64_t from, T w, T* out) {
  if (takes_differences<Terms>(p)) {
    add_difference(p.x.row(to), p.x.row(from), w, p.dim, out);
  } else {
    subtract_row(p.x.row(from), w, p.dim, out);
  }
}

// Finishes the weights of two panels. False if all are 0.
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

// Moves the recomputed pairs from the weights to sums of differences; out(r) is the gradient of row
// r of the panel.
template <class T, class Out>
inline void take_recomputed(const Prepared<T>& p, const PairBuffer<T>& values,
                            const PairBuffer<T>& weights, int64_t px, int rows, int64_t py, Out out,
                            T* y_out) {
  constexpr int64_t W = Tile<T>::kWidth;
  for (int r = 0; r < rows; ++r) {
    const T* a = p.x.row(px * W + r);
    for (uint64_t m = values.recomputed[r]; m; m &= m - 1) {
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

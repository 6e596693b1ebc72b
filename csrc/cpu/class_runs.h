// Panels of whole classes: for losses whose terms mix several rows of one class against a column.
#pragma once

#include "backward.h"
#include "simd_math.h"

namespace dmlap::cpu::DMLAP_ISA {

// Where the rows of a side lie once its classes are aligned to panels. A class of at most kWidth
// rows lies in one panel; a larger one has panels of its own.
template <class T>
struct RunLayout {
  int64_t panels = 0;
  Buffer<int32_t> used;     // [panels] rows before the padding
  Buffer<int32_t> longest;  // [panels] rows of its largest class; 0: its class is larger than it
  Buffer<int32_t> begin;    // [panels * kWidth] the lanes of each row's class
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

// Packs p.x anew, its classes aligned to panels; x.n then counts the padding.
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

// Blocks of panels that keep a class together.
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

// Something of every pair of two panels: a row of lanes for each row of the first. Lanes before
// the first row and behind the last may be read.
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
    has_near = false;
    for (int first = 0; first < rows; first += P::kRows) {
      DistanceTile<T> tile;
      tile.compute(p, px, first, py, drop_equal, false);
      for (int r = 0; r < P::kRows; ++r) {
        near[first + r] = tile.has_near ? tile.near[r] : 0;
        for (int c = 0; c < P::kVectors; ++c) {
          store(row(first + r) + c * P::kLanes, value(tile.d2[r][c]));
        }
      }
      has_near |= tile.has_near;
    }
  }

  bool has_near = false;  // some pair was taken from differences; `near` says which
  uint64_t near[W] = {};  // one bit a column

 private:
  Buffer<T> values_;
};

// Rows of a panel. used: those of an aligned side, or null.
template <class T>
inline int64_t rows_in(const Side<T>& side, const int32_t* used, int64_t panel) {
  constexpr int64_t W = Tile<T>::kWidth;
  if (used != nullptr) return used[panel];
  return side.n - panel * W < W ? side.n - panel * W : W;
}

// Adds the products of a buffer of weights d loss / d distance to both of its panels.
template <class T>
class WeightedPanels {
  using P = Tile<T>;
  using V = typename P::V;
  static constexpr int W = P::kWidth;

 public:
  // differences: weights belong to x_i - x_j, not to -x_j, so that their sums matter as well.
  WeightedPanels(const Prepared<T>& p, const RunLayout<T>& layout, GradientSide<T>& x,
                 GradientSide<T>& y, bool differences)
      : p_(p), layout_(layout), x_(x), y_(y), differences_(differences), transposed_(W * W) {}

  // slot: where the x side holds the sums of panel px
  void apply(const PairBuffer<T>& weights, int64_t px, int64_t slot, int64_t py) {
    const int64_t size = p_.packed_dim * W;
    const int64_t rows = layout_.used[px];
    const int64_t columns = rows_in(p_.y(), p_.self ? layout_.used.get() : nullptr, py);
    const T* w = weights.row(0);
    T* wt = transposed_.get();
    if (differences_) add_weights(w, slot, rows, py);
    for (int64_t i = 0; i < rows; ++i) {
      for (int64_t j = 0; j < W; ++j) wt[j * W + i] = w[i * W + j];
    }
    for (int64_t j = 0; j < W; ++j) fill(wt + j * W + rows, W - rows, T(0));
    const T* xp = p_.x.packed.get() + px * size;
    const T* yp = p_.y().packed.get() + py * size;
    T* out_x = x_.weighted.get() + slot * size;
    if (p_.self && px == py) {  // both ends of a pair lie in this panel: one product serves them
      for (int64_t i = 0; i < rows * W; ++i) wt[i] += w[i];
      return weighted_sums(xp, wt, 0, rows, rows, p_.packed_dim, out_x);
    }
    weighted_sums(xp, w, 0, rows, columns, p_.packed_dim, y_.weighted.get() + py * size);
    weighted_sums(yp, wt, 0, columns, rows, p_.packed_dim, out_x);
  }

 private:
  void add_weights(const T* w, int64_t slot, int64_t rows, int64_t py) {
    T* row_weight = x_.weight.get() + slot * W;
    T* column_weight = y_.weight.get() + py * W;
    V columns[P::kVectors] = {};
    for (int64_t i = 0; i < rows; ++i) {
      V sum{};
      for (int c = 0; c < P::kVectors; ++c) {
        const V v = load(w + i * W + c * P::kLanes);
        sum += v;
        columns[c] += v;
      }
      row_weight[i] += sum_lanes<T>(sum);
    }
    for (int c = 0; c < P::kVectors; ++c) {
      T* at = column_weight + c * P::kLanes;
      store(at, load(at) + columns[c]);
    }
  }

  const Prepared<T>& p_;
  const RunLayout<T>& layout_;
  GradientSide<T>& x_;
  GradientSide<T>& y_;
  bool differences_;
  Buffer<T> transposed_;
};

// g.out += weight_i x_i - sum_j w_ij x_j. used: null, or the rows of each panel.
template <class T>
DMLAP_ONCE void add_weighted(const Prepared<T>& p, const Side<T>& side, const int32_t* used,
                             const GradientSide<T>& g) {
  constexpr int W = Tile<T>::kWidth;
  parallel_for(p.threads, side.panels, [&](int64_t panel) {
    const T* x = side.packed.get() + panel * p.packed_dim * W;
    const T* s = g.weighted.get() + panel * p.packed_dim * W;
    const int64_t rows = rows_in(side, used, panel);
    for (int64_t r = 0; r < rows; ++r) {
      const T weight = g.weight[panel * W + r];
      T* to = g.out + side.order[panel * W + r] * p.dim;
      for (int64_t k = 0; k < p.dim; ++k) to[k] += weight * x[k * W + r] - s[k * W + r];
    }
  });
}

// through_normalize for p.x, of which `rows` rows have a gradient; p.x.n counts their padding.
template <class T>
inline void runs_through_normalize(Prepared<T>& p, int64_t rows, T* grad) {
  p.x.n = rows;
  through_normalize(p.x, p.dim, grad, p.threads);
}

// The statistics that every loss shares, by sweeps of their own; thresholds are the hardest
// positive distances plus a margin.
template <class T>
DMLAP_ONCE void run_statistics(const Pairs<T>& pairs, T margin, const ForwardOut<T>& out) {
  const ForwardState<T> state(pairs);
  const Prepared<T>& p = state.p;
  sweep_positives(p, state.anchors.get(), [&](AnchorState<T>& a, T d2, int64_t at) {
    note_hardest_positive(p, a, d2, at);
  });
  sweep_negatives<T, StatsSink<T>>(state.shared(nullptr));
  for (int64_t i = 0; out.thresholds != nullptr && i < p.x.n; ++i) {
    const AnchorState<T>& a = state.anchors[i];
    out.thresholds[p.x.order[i]] =
        a.positive_at < 0 ? -kInf<T> : p.from_squared(a.hardest_positive) + margin;
  }
  write_common_stats(p, state.anchors.get(), state.negative_total(), out);
}

}  // namespace dmlap::cpu::DMLAP_ISA

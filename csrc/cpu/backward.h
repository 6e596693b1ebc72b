// The backward sweep. Gradients are sums of weight * (x_i - x_j), so they are linear in the rows:
// dense tiles go through a product with the weights, near and lone pairs through their differences.
#pragma once

#include "losses.h"

namespace dmlap::cpu::DMLAP_ISA {

// out += w * (a - b)
template <class T>
inline void add_difference(const T* __restrict a, const T* __restrict b, T w, int64_t dim,
                           T* __restrict out) {
  constexpr int L = Simd<T>::kLanes;
  int64_t k = 0;
  for (; k + L <= dim; k += L) store(out + k, load(out + k) + w * (load(a + k) - load(b + k)));
  for (; k < dim; ++k) out[k] += w * (a[k] - b[k]);
}

// out += w * -b
template <class T>
inline void subtract_row(const T* __restrict b, T w, int64_t dim, T* __restrict out) {
  constexpr int L = Simd<T>::kLanes;
  int64_t k = 0;
  for (; k + L <= dim; k += L) store(out + k, load(out + k) - w * load(b + k));
  for (; k < dim; ++k) out[k] -= w * b[k];
}

// What the pair with row b adds to the gradient at row a; w = d loss / d distance *
// Prepared::factor.
template <class T>
inline void add_pair(const Prepared<T>& p, const T* a, const T* b, T w, T* out) {
  if (p.dot()) {
    subtract_row(b, w, p.dim, out);
  } else {
    add_difference(a, b, w, p.dim, out);
  }
}

// Where gradients gather while the sweep runs.
template <class T>
struct GradientSide {
  T* out = nullptr;    // [n][dim], original order: positives, near and lone pairs; null: not wanted
  Buffer<T> weighted;  // [panels][packed_dim][kWidth]: sum_j w_ij x_j of the dense tiles
  Buffer<T> weight;    // [panels * kWidth]: sum_j w_ij of the dense tiles
  Buffer<T> own;       // [n][dim], where `out` is not the caller's

  bool wanted() const { return out != nullptr; }
  void reset(int64_t panels, int64_t packed_dim) {
    constexpr int W = Tile<T>::kWidth;
    weighted.reset(panels * packed_dim * W);
    weighted.fill(panels * packed_dim * W, T(0));
    weight.reset(panels * W);
    weight.fill(panels * W, T(0));
  }
  void make_own(int64_t n, int64_t dim) {
    own.reset(n * dim);
    own.fill(n * dim, T(0));
    out = own.get();
  }
  void add(const GradientSide& o, int64_t n, int64_t dim, int64_t panels, int64_t packed_dim) {
    constexpr int W = Tile<T>::kWidth;
    for (int64_t i = 0; i < n * dim; ++i) out[i] += o.out[i];
    for (int64_t i = 0; i < panels * packed_dim * W; ++i) weighted[i] += o.weighted[i];
    for (int64_t i = 0; i < panels * W; ++i) weight[i] += o.weight[i];
  }
};

template <class T>
struct BackwardShared {
  const Prepared<T>* p;
  const uint8_t* active;
  GradientSide<T>* x;
  GradientSide<T>* y;  // == x in the self case
  Blocks rows, columns;
};

template <class T, int kVectors>
inline void weighted_vectors(const T* rows, const T* w, int64_t first, int64_t last,
                             int64_t packed_dim, T* out) {
  using P = Tile<T>;
  using V = typename P::V;
  constexpr int W = P::kWidth;
  for (int64_t k = 0; k < packed_dim; k += P::kRows) {
    V acc[P::kRows][kVectors];
#pragma GCC unroll 8
    for (int m = 0; m < P::kRows; ++m) {
#pragma GCC unroll 3
      for (int c = 0; c < kVectors; ++c) acc[m][c] = load(out + (k + m) * W + c * P::kLanes);
    }
    for (int64_t i = first; i < last; ++i) {
      V wv[kVectors];
#pragma GCC unroll 3
      for (int c = 0; c < kVectors; ++c) wv[c] = load(w + i * W + c * P::kLanes);
#pragma GCC unroll 8
      for (int m = 0; m < P::kRows; ++m) {
        const V a = splat<T>(rows[(k + m) * W + i]);
#pragma GCC unroll 3
        for (int c = 0; c < kVectors; ++c) acc[m][c] += a * wv[c];
      }
    }
#pragma GCC unroll 8
    for (int m = 0; m < P::kRows; ++m) {
#pragma GCC unroll 3
      for (int c = 0; c < kVectors; ++c) store(out + (k + m) * W + c * P::kLanes, acc[m][c]);
    }
  }
}

// out[k][j] += sum_i rows[k][i] * w[i][j], first <= i < first + count: a panel's weighted sums.
// rows: [packed_dim][kWidth], w: [kWidth][kWidth], out: [packed_dim][kWidth]
template <class T>
inline void weighted_sums(const T* rows, const T* w, int64_t first, int64_t count,
                          int64_t packed_dim, T* out) {
  weighted_vectors<T, 3>(rows, w, first, first + count, packed_dim, out);
}

// The same for a panel of which only the leading columns exist.
template <class T>
inline void weighted_sums(const T* rows, const T* w, int64_t first, int64_t count, int64_t columns,
                          int64_t packed_dim, T* out) {
  constexpr int L = Tile<T>::kLanes;
  const int64_t last = first + count;
  if (columns > 2 * L) return weighted_vectors<T, 3>(rows, w, first, last, packed_dim, out);
  if (columns > L) return weighted_vectors<T, 2>(rows, w, first, last, packed_dim, out);
  weighted_vectors<T, 1>(rows, w, first, last, packed_dim, out);
}

// A weigher gives the weights of negative pairs, d loss / d (x_i - x_j) over (x_i - x_j):
//   row(i)                 position of the anchor of the calls that follow
//   idle(d2) -> bool       every lane's weight is known to be 0
//   weight(d2, j) -> V     of the columns j, j + 1, ...; in the self case both anchors' shares
template <class T, class Weigher>
class BackwardWorker {
  using P = Tile<T>;
  using V = typename P::V;
  static constexpr int W = P::kWidth;
  // Up to this many active pairs, a tile is cheaper pair by pair.
  static constexpr int kLone = P::kRows * W / 16;

 public:
  BackwardWorker(const BackwardShared<T>& shared, const Weigher& weigher)
      : s_(shared), weigher_(weigher), weights_(W * W), transposed_(W * W) {}

  void operator()(int64_t block_x, int64_t block_y) {
    const Prepared<T>& p = *s_.p;
    for (int64_t py = s_.columns.begin(block_y); py < s_.columns.end(block_y); ++py) {
      for (int64_t px = s_.rows.begin(block_x); px < s_.rows.end(block_x); ++px) {
        if (p.self && px > py) break;
        const uint8_t active = s_.active[panel_pair(px, py, s_.columns.panels, p.self)];
        if (active) panel(px, py, active);
      }
    }
  }

 private:
  __attribute__((noinline)) void panel(int64_t px, int64_t py, uint8_t active) {
    const Prepared<T>& p = *s_.p;
    int first = P::kPerPanel, last = 0;  // the dense tiles lie in [first, last)
    for (int t = 0; t < P::kPerPanel; ++t) {
      T* w = weights_.get() + t * P::kRows * W;
      bool dense = false;
      if (active >> t & 1) {
        const int64_t i0 = px * W + t * P::kRows;
        DistanceTile<T> tile;
        const bool mixed = DistanceTile<T>::classes(p, i0, py) == DistanceTile<T>::Classes::mixed;
        tile.compute(p, px, t * P::kRows, py, mixed, p.self && px == py);
        dense = weigh(tile, i0, py * W, w);
      }
      if (!dense) {
        fill(w, P::kRows * W, T(0));
        continue;
      }
      first = t < first ? t : first;
      last = t + 1;
    }
    if (first < last) apply(px, py, first * P::kRows, last * P::kRows);
  }

  // Fills the tile's weights; false if they were few and have been applied pair by pair.
  bool weigh(const DistanceTile<T>& tile, int64_t i0, int64_t j0, T* w) {
    uint64_t some[P::kRows];  // columns of a weight other than 0
    int count = 0;
    for (int r = 0; r < P::kRows; ++r) {
      weigher_.row(i0 + r);
      some[r] = 0;
      for (int c = 0; c < P::kVectors; ++c) {
        V v{};
        if (!weigher_.idle(tile.d2[r][c])) {
          v = weigher_.weight(tile.d2[r][c], j0 + c * P::kLanes);
          some[r] |= uint64_t{bits(v != V{})} << c * P::kLanes;
        }
        store(w + r * W + c * P::kLanes, v);
      }
      count += __builtin_popcountll(some[r]);
    }
    const bool lone = count <= kLone;
    if (lone || tile.has_near) {
      for (int r = 0; r < P::kRows; ++r) {
        for (uint64_t m = lone ? some[r] : some[r] & tile.near[r]; m; m &= m - 1) {
          const int c = __builtin_ctzll(m);
          apply_pair(i0 + r, j0 + c, w[r * W + c]);
          w[r * W + c] = 0;
        }
      }
    }
    return !lone;
  }

  void apply_pair(int64_t i, int64_t j, T w) {
    const Prepared<T>& p = *s_.p;
    const Side<T>& y = p.y();
    add_pair(p, p.x.row(i), y.row(j), w, s_.x->out + p.x.order[i] * p.dim);
    if (!s_.y->wanted()) return;
    add_pair(p, y.row(j), p.x.row(i), w, s_.y->out + y.order[j] * p.dim);
  }

  // Adds the panel's products with its weights; rows first .. last - 1 have some.
  void apply(int64_t px, int64_t py, int64_t first, int64_t last) {
    const Prepared<T>& p = *s_.p;
    const int64_t size = p.packed_dim * W;
    const int64_t rows = existing(p.x, px), columns = existing(p.y(), py);
    T* w = weights_.get();
    T* wt = transposed_.get();
    last = last < rows ? last : rows;
    if (!p.dot()) add_weights(px, py, first, last);
    for (int64_t i = 0; i < first; ++i) fill(w + i * W, W, T(0));
    for (int64_t i = last; i < W; ++i) fill(w + i * W, W, T(0));
    for (int64_t i = 0; i < W; ++i) {
      for (int64_t j = 0; j < W; ++j) wt[j * W + i] = w[i * W + j];
    }
    const T* xp = p.x.packed.get() + px * size;
    const T* yp = p.y().packed.get() + py * size;
    T* out_x = s_.x->weighted.get() + px * size;
    if (p.self && px == py) {  // both ends of a pair lie in this panel: one product serves them
      for (int64_t i = 0; i < W * W; ++i) wt[i] += w[i];
      return weighted_sums(xp, wt, 0, rows, rows, p.packed_dim, out_x);
    }
    if (s_.y->wanted()) {
      weighted_sums(xp, w, first, last - first, columns, p.packed_dim,
                    s_.y->weighted.get() + py * size);
    }
    weighted_sums(yp, wt, 0, columns, rows, p.packed_dim, out_x);
  }

  static int64_t existing(const Side<T>& side, int64_t panel) {
    return side.n - panel * W < W ? side.n - panel * W : W;
  }

  void add_weights(int64_t px, int64_t py, int64_t first, int64_t last) {
    const T* w = weights_.get();
    T* row_weight = s_.x->weight.get() + px * W;
    V columns[P::kVectors] = {};
    for (int64_t i = first; i < last; ++i) {
      V sum{};
      for (int c = 0; c < P::kVectors; ++c) {
        const V v = load(w + i * W + c * P::kLanes);
        sum += v;
        columns[c] += v;
      }
      row_weight[i] += sum_lanes<T>(sum);
    }
    if (!s_.y->wanted()) return;
    T* column_weight = s_.y->weight.get() + py * W;
    for (int c = 0; c < P::kVectors; ++c) {
      T* at = column_weight + c * P::kLanes;
      store(at, load(at) + columns[c]);
    }
  }

  BackwardShared<T> s_;
  Weigher weigher_;
  Buffer<T> weights_, transposed_;
};

// One side is short: each segment of the other has a copy of the short side's sums, and the copies
// are added in order. How many there are depends on nothing but the sizes.
template <class T, class Weigher>
DMLAP_ONCE void sweep_backward_segments(const BackwardShared<T>& shared, const Weigher& weigher) {
  const Prepared<T>& p = *shared.p;
  const bool few_rows = shared.rows.count < shared.columns.count;
  const int64_t count = few_rows ? shared.columns.count : shared.rows.count;
  const int64_t others = few_rows ? shared.rows.count : shared.columns.count;
  const Side<T>& side = few_rows ? p.x : p.y();
  const int64_t wanted = 8192 / side.n;
  const int64_t segments = wanted < 2 ? 2 : (wanted > 16 ? 16 : wanted);
  Buffer<GradientSide<T>> copies(segments);
  for (int64_t s = 0; s < segments; ++s) {
    new (&copies[s]) GradientSide<T>();
    copies[s].reset(side.panels, p.packed_dim);
    copies[s].make_own(side.n, p.dim);
  }
  parallel_tasks(p.threads, segments, [&](auto next) {
    for (int64_t s; (s = next()) < segments;) {
      BackwardShared<T> own = shared;
      (few_rows ? own.x : own.y) = &copies[s];
      BackwardWorker<T, Weigher> worker(own, weigher);
      for (int64_t a = count * s / segments; a < count * (s + 1) / segments; ++a) {
        for (int64_t b = 0; b < others; ++b) few_rows ? worker(b, a) : worker(a, b);
      }
    }
  });
  GradientSide<T>& sum = few_rows ? *shared.x : *shared.y;
  for (int64_t s = 0; s < segments; ++s) {
    sum.add(copies[s], side.n, p.dim, side.panels, p.packed_dim);
    copies[s].~GradientSide<T>();
  }
}

// out += weight_i x_i - sum_j w_ij x_j, and back through the normalisation.
template <class T>
DMLAP_ONCE void finish_gradient(const Prepared<T>& p, const Side<T>& side, GradientSide<T>& g) {
  constexpr int W = Tile<T>::kWidth;
  parallel_for(p.row_threads, side.panels, [&](int64_t panel) {
    const T* x = side.packed.get() + panel * p.packed_dim * W;
    const T* s = g.weighted.get() + panel * p.packed_dim * W;
    const T* weight = g.weight.get() + panel * W;
    const int64_t rows = side.n - panel * W < W ? side.n - panel * W : W;
    constexpr int kChunk = 16;  // features at a time, turned from columns into rows in L1
    T turned[kChunk * W];
    for (int64_t k0 = 0; k0 < p.dim; k0 += kChunk) {
      const int64_t width = p.dim - k0 < kChunk ? p.dim - k0 : kChunk;
      for (int64_t k = 0; k < width; ++k) {
        for (int r = 0; r < W; ++r) {
          const int64_t at = (k0 + k) * W + r;
          turned[k * W + r] = weight[r] * x[at] - s[at];
        }
      }
      for (int64_t r = 0; r < rows; ++r) {
        T* out = g.out + side.order[panel * W + r] * p.dim + k0;
        for (int64_t k = 0; k < width; ++k) out[k] += turned[k * W + r];
      }
    }
  });
  if (p.unit) through_normalize(side, p.dim, g.out, p.row_threads);
}

// Adds the gradients of the negatives to those of the positives in gx.out and gy.out.
template <class T, class Weigher>
DMLAP_ONCE void sweep_backward(const Prepared<T>& p, const uint8_t* active, const Weigher& weigher,
                               GradientSide<T>& gx, GradientSide<T>& gy) {
  gx.reset(p.x.panels, p.packed_dim);
  const bool references = !p.self && gy.wanted();
  if (references) gy.reset(p.y_storage.panels, p.packed_dim);
  const BackwardShared<T> shared{
      &p, active, &gx, p.self ? &gx : &gy, Blocks(p.x.panels), Blocks(p.y().panels)};
  const int64_t rows = shared.rows.count, columns = shared.columns.count;
  const int64_t shorter = rows < columns ? rows : columns;
  if (!p.self && !references && rows >= 8) {
    parallel_tasks(p.threads, rows, [&](auto next) {
      BackwardWorker<T, Weigher> worker(shared, weigher);
      for (int64_t bx; (bx = next()) < rows;) {
        for (int64_t by = 0; by < columns; ++by) worker(bx, by);
      }
    });
  } else if (!p.self && shorter < 8 && shorter > 0 && rows + columns - shorter >= 16) {
    sweep_backward_segments(shared, weigher);
  } else {
    Schedule schedule(rows, columns, p.self);
    schedule.run(p.threads, [&](int) { return BackwardWorker<T, Weigher>(shared, weigher); });
  }
  finish_gradient(p, p.x, gx);
  if (references) finish_gradient(p, p.y_storage, gy);
}

// out = sum over positives, each row on its own. slope(i, j, d) is d loss / d d of the pair of
// anchor i and reference j; in the self case the pair belongs to both of its rows.
template <class T, class Slope>
inline void positive_gradients(const Prepared<T>& p, const Slope& slope, GradientSide<T>& gx,
                               GradientSide<T>& gy) {
  const Side<T>& y = p.y();
  parallel_for(p.row_threads, (p.x.n + 31) / 32, [&](int64_t block) {
    const int64_t last = block * 32 + 32 < p.x.n ? block * 32 + 32 : p.x.n;
    for (int64_t i = block * 32; i < last; ++i) {
      T* out = gx.out + p.x.order[i] * p.dim;
      fill(out, p.dim, T(0));
      const T* a = p.x.row(i);
      const int64_t itself = p.itself(i);
      for (int64_t j = p.begin[i]; j < p.end[i]; ++j) {
        if (j == itself) continue;
        const T* b = y.row(j);
        const T d = p.from_squared(p.pair(a, b));
        const T w = slope(i, j, d) + (p.self ? slope(j, i, d) : T(0));
        add_pair(p, a, b, w * p.factor(d), out);
      }
    }
  });
  if (p.self || !gy.wanted()) return;
  // The references' side: the anchors of a class are one run as well.
  Buffer<int64_t> first(p.ranks + 1);
  first.fill(p.ranks + 1, p.x.n);
  for (int64_t i = p.x.n - 1; i >= 0; --i) first[p.x.rank[i]] = i;
  parallel_for(p.row_threads, (y.n + 31) / 32, [&](int64_t block) {
    const int64_t last = block * 32 + 32 < y.n ? block * 32 + 32 : y.n;
    for (int64_t j = block * 32; j < last; ++j) {
      T* out = gy.out + y.order[j] * p.dim;
      fill(out, p.dim, T(0));
      const T* b = y.row(j);
      for (int64_t i = first[y.rank[j]]; i < p.x.n && p.x.rank[i] == y.rank[j]; ++i) {
        if (p.itself(i) == j) continue;
        const T* a = p.x.row(i);
        const T d = p.from_squared(p.pair(a, b));
        add_pair(p, b, a, slope(i, j, d) * p.factor(d), out);
      }
    }
  });
}

}  // namespace dmlap::cpu::DMLAP_ISA

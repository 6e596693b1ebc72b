// The gradient of rows: pairs one by one, and the one accumulator that turns the pair weights of
// two panels into products with their rows.
#pragma once

#include "engine/tile.h"

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
  if (p.products()) {
    subtract_row(b, w, p.dim, out);
  } else {
    add_difference(a, b, w, p.dim, out);
  }
}

// The same at both rows, of `width` features from theirs on; b_grad may be null.
template <class T>
inline void scatter_pair(const Prepared<T>& p, const T* __restrict a, const T* __restrict b, T w,
                         int64_t width, T* __restrict a_grad, T* __restrict b_grad) {
  if (p.products()) {
    for (int64_t k = 0; k < width; ++k) a_grad[k] -= w * b[k];
    for (int64_t k = 0; b_grad != nullptr && k < width; ++k) b_grad[k] -= w * a[k];
    return;
  }
  if (b_grad == nullptr) {
    for (int64_t k = 0; k < width; ++k) a_grad[k] += w * (a[k] - b[k]);
    return;
  }
  for (int64_t k = 0; k < width; ++k) {
    const T v = w * (a[k] - b[k]);
    a_grad[k] += v;
    b_grad[k] -= v;
  }
}

// Where gradients gather while the sweep runs.
template <class T>
struct GradientSide {
  T* out = nullptr;    // [n][dim], original order: what pairs add one by one; null: not wanted
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

// Rows of a panel. used: those of a side whose classes are aligned to panels, or null.
template <class T>
inline int64_t rows_in(const Side<T>& side, const int32_t* used, int64_t panel) {
  constexpr int64_t W = Tile<T>::kWidth;
  if (used != nullptr) return used[panel];
  return side.n - panel * W < W ? side.n - panel * W : W;
}

// Two panels whose pairs are added: rows first .. last - 1 of px have weights.
struct PanelPair {
  int64_t px, py;
  int64_t place;          // where the x side holds the sums of px
  int64_t rows, columns;  // that exist
  int64_t first, last;
};

// Adds the products of pair weights with the rows to both sides: sum_j w_ij y_j and sum_i w_ij x_i.
template <class T>
class PanelGradient {
  using P = Tile<T>;
  using V = typename P::V;
  static constexpr int W = P::kWidth;

 public:
  // differences: weights belong to x_i - x_j, not to -x_j, so that their sums matter as well.
  PanelGradient(const Prepared<T>& p, GradientSide<T>& x, GradientSide<T>& y, bool differences)
      : p_(p), x_(x), y_(y), differences_(differences), transposed_(W * W) {}

  // w: [kWidth][kWidth]
  void add(const PanelPair& at, const T* w) {
    const int64_t size = p_.packed_dim * W;
    T* wt = transposed_.get();
    if (differences_) add_weights(at, w);
    for (int64_t i = at.first; i < at.last; ++i) {
      for (int64_t j = 0; j < W; ++j) wt[j * W + i] = w[i * W + j];
    }
    for (int64_t j = 0; j < W && at.last - at.first < W; ++j) {
      fill(wt + j * W, at.first, T(0));
      fill(wt + j * W + at.last, W - at.last, T(0));
    }
    const T* xp = p_.x.packed.get() + at.px * size;
    const T* yp = p_.y().packed.get() + at.py * size;
    T* out_x = x_.weighted.get() + at.place * size;
    if (p_.self && at.px == at.py) {  // both ends of a pair lie here: one product serves them
      for (int64_t i = at.first * W; i < at.last * W; ++i) wt[i] += w[i];
      return weighted_sums(xp, wt, 0, at.rows, at.rows, p_.packed_dim, out_x);
    }
    if (y_.wanted()) {
      weighted_sums(xp, w, at.first, at.last - at.first, at.columns, p_.packed_dim,
                    y_.weighted.get() + at.py * size);
    }
    weighted_sums(yp, wt, 0, at.columns, at.rows, p_.packed_dim, out_x);
  }

 private:
  void add_weights(const PanelPair& at, const T* w) {
    T* row_weight = x_.weight.get() + at.place * W;
    V columns[P::kVectors] = {};
    for (int64_t i = at.first; i < at.last; ++i) {
      V sum{};
      for (int c = 0; c < P::kVectors; ++c) {
        const V v = load(w + i * W + c * P::kLanes);
        sum += v;
        columns[c] += v;
      }
      row_weight[i] += sum_lanes<T>(sum);
    }
    if (!y_.wanted()) return;
    T* column_weight = y_.weight.get() + at.py * W;
    for (int c = 0; c < P::kVectors; ++c) {
      T* to = column_weight + c * P::kLanes;
      store(to, load(to) + columns[c]);
    }
  }

  const Prepared<T>& p_;
  GradientSide<T>& x_;
  GradientSide<T>& y_;
  bool differences_;
  Buffer<T> transposed_;
};

// g.out += weight_i x_i - sum_j w_ij x_j
template <class T>
DMLAP_ONCE void add_weighted(const Prepared<T>& p, const Side<T>& side, const int32_t* used,
                             const GradientSide<T>& g) {
  constexpr int W = Tile<T>::kWidth;
  parallel_for(p.row_threads, side.panels, [&](int64_t panel) {
    const T* x = side.packed.get() + panel * p.packed_dim * W;
    const T* s = g.weighted.get() + panel * p.packed_dim * W;
    const T* weight = g.weight.get() + panel * W;
    const int64_t rows = rows_in(side, used, panel);
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
}

// The same, and back through the normalisation.
template <class T>
DMLAP_ONCE void finish_gradient(const Prepared<T>& p, const Side<T>& side, GradientSide<T>& g) {
  add_weighted<T>(p, side, nullptr, g);
  if (p.unit) through_normalize(side, p.dim, g.out, p.row_threads);
}

}  // namespace dmlap::cpu::DMLAP_ISA

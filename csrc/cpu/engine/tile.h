// Register tiles: products, squared distances, and the walk over the tiles of two blocks.
#pragma once

#include "engine/pack.h"

namespace dmlap::cpu::DMLAP_ISA {

// acc[r][c] += sum_k a[k][r] * b[k][c lanes] for the kCount vectors from kFirst on; a and b point
// into panels.
template <class T, int kFirst, int kCount>
inline __attribute__((always_inline)) void product_vectors(
    const T* __restrict a, const T* __restrict b, int64_t dim,
    typename Simd<T>::V (&acc)[Tile<T>::kRows][Tile<T>::kVectors]) {
  using P = Tile<T>;
  using V = typename P::V;
  for (int64_t k = 0; k < dim; ++k) {
    const T* ak = a + k * P::kWidth;
    const T* bk = b + k * P::kWidth + kFirst * P::kLanes;
    V bv[kCount];
#pragma GCC unroll 3
    for (int c = 0; c < kCount; ++c) bv[c] = load(bk + c * P::kLanes);
#pragma GCC unroll 8
    for (int r = 0; r < P::kRows; ++r) {
      const V av = splat<T>(ak[r]);
#pragma GCC unroll 3
      for (int c = 0; c < kCount; ++c) acc[r][kFirst + c] += av * bv[c];
    }
  }
}

// The vectors first .. last - 1 of a tile; the others are left alone.
template <class T>
inline __attribute__((always_inline)) void product_tile(
    const T* __restrict a, const T* __restrict b, int64_t dim, int first, int last,
    typename Simd<T>::V (&acc)[Tile<T>::kRows][Tile<T>::kVectors]) {
  if (__builtin_expect(first == 0 && last == 3, 1)) return product_vectors<T, 0, 3>(a, b, dim, acc);
  if (first == 0 && last == 2) return product_vectors<T, 0, 2>(a, b, dim, acc);
  if (first == 0 && last == 1) return product_vectors<T, 0, 1>(a, b, dim, acc);
  if (first == 1 && last == 3) return product_vectors<T, 1, 2>(a, b, dim, acc);
  if (first == 1 && last == 2) return product_vectors<T, 1, 1>(a, b, dim, acc);
  if (first == 2 && last == 3) return product_vectors<T, 2, 1>(a, b, dim, acc);
}

// The squared distances of a tile: rows first_row .. of panel_x against panel_y.
template <class T>
struct DistanceTile {
  using P = Tile<T>;
  using V = typename P::V;
  using I = typename P::I;

  V d2[P::kRows][P::kVectors];    // +inf where there is no negative pair
  V least;                        // over the whole tile, lane by lane
  bool has_recomputed = false;    // some pair was taken again, from differences
  uint64_t recomputed[P::kRows];  // which pairs, one bit a column

  enum class Classes { disjoint, mixed, one };

  // Whether the tile's classes overlap, so that some pair may be positive, or are one and the same.
  static Classes classes(const Prepared<T>& p, int64_t i0, int64_t panel_y) {
    const Side<T>& y = p.y();
    const int64_t last_x = i0 + P::kRows < p.x.n ? i0 + P::kRows : p.x.n;
    const int64_t j0 = panel_y * P::kWidth;
    const int64_t last_y = j0 + P::kWidth < y.n ? j0 + P::kWidth : y.n;
    const int32_t x_low = p.x.rank[i0], x_high = p.x.rank[last_x - 1];
    const int32_t y_low = y.rank[j0], y_high = y.rank[last_y - 1];
    if (x_high < y_low || x_low > y_high) return Classes::disjoint;
    return x_low == y_high && x_high == y_low ? Classes::one : Classes::mixed;
  }

  // drop_equal: pairs of one class do not count. upper: only columns behind the row do, because
  // both panels are the same one. A pair of Prepared::own never counts.
  void compute(const Prepared<T>& p, int64_t panel_x, int row, int64_t panel_y, bool drop_equal,
               bool upper) {
    const Side<T>& y = p.y();
    const int64_t size = p.packed_dim * P::kWidth;
    const int64_t i0 = panel_x * P::kWidth + row, j0 = panel_y * P::kWidth;
    V acc[P::kRows][P::kVectors] = {};
    // Vectors that hold a column behind the row, and a column that exists.
    const int first = upper ? (row + 1) / P::kLanes : 0;
    const int64_t columns = y.n - j0;
    const int last = columns >= P::kWidth ? P::kVectors : (columns + P::kLanes - 1) / P::kLanes;
    product_tile<T>(p.x.packed.get() + panel_x * size + row, y.packed.get() + panel_y * size,
                    p.packed_dim, first, last, acc);
    V nj[P::kVectors];
#pragma GCC unroll 3
    for (int c = 0; c < P::kVectors; ++c) nj[c] = load(y.norm.get() + j0 + c * P::kLanes);
    least = splat<T>(kInf<T>);
#pragma GCC unroll 8
    for (int r = 0; r < P::kRows; ++r) {
      const V ni = splat<T>(p.x.norm[i0 + r]);
#pragma GCC unroll 3
      for (int c = 0; c < P::kVectors; ++c) {
        const V v = (nj[c] + ni) - (acc[r][c] + acc[r][c]);
        d2[r][c] = v;
        least = vmin(v, least);
      }
    }
    has_recomputed = false;
    if (drop_equal || upper) mask(p, i0, j0, drop_equal, upper);
    if (__builtin_expect(p.own.get() != nullptr, 0)) drop_own(p, i0, j0);
    const T bound = kCancelling<T> * (p.x.panel_norm[panel_x] + y.panel_norm[panel_y]);
    if (__builtin_expect(bits(least < splat<T>(bound)) != 0, 0)) refine(p, i0, j0);
  }

 private:
  __attribute__((noinline)) void mask(const Prepared<T>& p, int64_t i0, int64_t j0, bool drop_equal,
                                      bool upper) {
    const Side<T>& y = p.y();
    using Int = typename P::S::Int;
    Int rank[P::kWidth];
    for (int c = 0; c < P::kWidth; ++c) rank[c] = y.rank[j0 + c];
    for (int r = 0; r < P::kRows; ++r) {
      const I own = splat_int<T>(p.x.rank[i0 + r]), at = splat_int<T>(i0 + r);
      for (int c = 0; c < P::kVectors; ++c) {
        const I column = iota<T>() + splat_int<T>(j0 + c * P::kLanes);
        I gone{};
        if (drop_equal) gone = load_int(rank + c * P::kLanes) == own;
        if (upper) gone |= column <= at;
        d2[r][c] = gone ? splat<T>(kInf<T>) : d2[r][c];
      }
    }
    find_least();
  }

  // Leaves out the pairs of an anchor and itself.
  __attribute__((noinline)) void drop_own(const Prepared<T>& p, int64_t i0, int64_t j0) {
    T* d = reinterpret_cast<T*>(d2);
    bool any = false;
    for (int r = 0; r < P::kRows; ++r) {
      const int64_t c = p.own[i0 + r] - j0;
      if (c < 0 || c >= P::kWidth) continue;
      d[r * P::kWidth + c] = kInf<T>;
      any = true;
    }
    if (any) find_least();
  }

  void find_least() {
    least = d2[0][0];
    for (int r = 0; r < P::kRows; ++r) {
      for (int c = 0; c < P::kVectors; ++c) least = vmin(d2[r][c], least);
    }
  }

  // Takes close pairs again, from differences. Which they are depends on nothing but the pair.
  __attribute__((noinline)) void refine(const Prepared<T>& p, int64_t i0, int64_t j0) {
    const Side<T>& y = p.y();
    T* d = reinterpret_cast<T*>(d2);
    for (int r = 0; r < P::kRows; ++r) {
      recomputed[r] = 0;
      const T ni = p.x.norm[i0 + r];
      const T* row = i0 + r < p.x.n ? p.x.row(i0 + r) : nullptr;
      for (int c = 0; c < P::kWidth; ++c) {
        T& value = d[r * P::kWidth + c];
        if (!(value < kCancelling<T> * (ni + y.norm[j0 + c]))) continue;
        recomputed[r] |= uint64_t{1} << c;
        value = p.pair(row, y.row(j0 + c));
      }
      has_recomputed |= recomputed[r] != 0;
    }
    find_least();
  }
};

// The distances that a forward sweep computed, tile by tile, so that the backward sweep need not
// multiply again.
template <class T>
class KeptTiles {
  using P = Tile<T>;
  static constexpr int64_t W = P::kWidth;

 public:
  bool any() const { return d2_.get() != nullptr; }
  void reset(int64_t panel_pairs) {
    d2_.reset(panel_pairs * W * W);
    recomputed_.reset(panel_pairs * W);
  }

  // row: of the tile in the panel of rows.
  void put(int64_t panel_pair, int row, const DistanceTile<T>& tile) const {
    T* to = d2_.get() + (panel_pair * W + row) * W;
    for (int r = 0; r < P::kRows; ++r) {
      for (int c = 0; c < P::kVectors; ++c) store(to + r * W + c * P::kLanes, tile.d2[r][c]);
      recomputed_[panel_pair * W + row + r] = tile.has_recomputed ? tile.recomputed[r] : 0;
    }
  }
  // All but `least`.
  void get(int64_t panel_pair, int row, DistanceTile<T>& tile) const {
    const T* from = d2_.get() + (panel_pair * W + row) * W;
    uint64_t any = 0;
    for (int r = 0; r < P::kRows; ++r) {
      for (int c = 0; c < P::kVectors; ++c) tile.d2[r][c] = load(from + r * W + c * P::kLanes);
      any |= tile.recomputed[r] = recomputed_[panel_pair * W + row + r];
    }
    tile.has_recomputed = any != 0;
  }

 private:
  Buffer<T> d2_;                 // [panel pairs][W][W]
  Buffer<uint64_t> recomputed_;  // [panel pairs][W] a bit a column
};

// Blocks of panels: enough of them to keep the schedule's threads busy, large enough to reuse what
// a task brings into cache.
struct Blocks {
  int64_t panels;
  int64_t per_block;
  int64_t count;

  explicit Blocks(int64_t panels) : panels(panels) {
    per_block = panels / 24 < 1 ? 1 : (panels / 24 > 4 ? 4 : panels / 24);
    count = (panels + per_block - 1) / per_block;
  }
  int64_t begin(int64_t block) const { return block * per_block; }
  int64_t end(int64_t block) const {
    const int64_t e = (block + 1) * per_block;
    return e < panels ? e : panels;
  }
};

// Positions among the panel pairs: all of them, or those on and above the diagonal.
inline int64_t panel_pair(int64_t i, int64_t j, int64_t columns, bool self) {
  return self ? j * (j + 1) / 2 + i : i * columns + j;
}
inline int64_t panel_pairs(int64_t rows, int64_t columns, bool self) {
  return self ? columns * (columns + 1) / 2 : rows * columns;
}

}  // namespace dmlap::cpu::DMLAP_ISA

// For each positive of an anchor the nearest negative that is farther away: one sweep of anchors
// with few positives.
#pragma once

#include "triplets_slots.h"

namespace dmlap::cpu::DMLAP_ISA {

// One bit a lane: low < v < high.
template <class T>
inline uint32_t between(typename Simd<T>::V v, typename Simd<T>::V low, typename Simd<T>::V high) {
  return bits((v > low) & (v < high));
}
#if DMLAP_VECTOR_BYTES == 64
template <>
inline uint32_t between<float>(Simd<float>::V v, Simd<float>::V low, Simd<float>::V high) {
  return _mm512_mask_cmp_ps_mask(_mm512_cmp_ps_mask(v, low, _CMP_GT_OQ), v, high, _CMP_LT_OQ);
}
template <>
inline uint32_t between<double>(Simd<double>::V v, Simd<double>::V low, Simd<double>::V high) {
  return _mm512_mask_cmp_pd_mask(_mm512_cmp_pd_mask(v, low, _CMP_GT_OQ), v, high, _CMP_LT_OQ);
}
#endif

// The next larger number; infinity stays. v is not negative.
template <class T>
inline T just_above(T v) {
  typename Simd<T>::Int i;
  std::memcpy(&i, &v, sizeof i);
  i += v < kInf<T>;
  std::memcpy(&v, &i, sizeof i);
  return v;
}

// The choice of each slot of PositiveSlots. Ties go to the lower position.
template <class T>
struct NearestBeyond {
  Buffer<T> d2;        // [slots][W] +inf where there is none yet
  Buffer<T> limit;     // [slots][W] just above d2: what is not below it cannot be better
  Buffer<int64_t> at;  // [slots][W] position, -1 where there is none

  explicit NearestBeyond(int64_t size) : d2(size), limit(size), at(size) {
    d2.fill(size, kInf<T>);
    limit.fill(size, kInf<T>);
    at.fill(size, -1);
  }
  void offer(int64_t slot, T v, int64_t position) {
    if (!(v < d2[slot] || (v == d2[slot] && position < at[slot]))) return;
    d2[slot] = v;
    limit[slot] = just_above(v < 0 ? T(0) : v);
    at[slot] = position;
  }
};

template <class T>
struct NearestBeyondShared {
  const Prepared<T>* p;
  const PositiveSlots<T>* slots;
  NearestBeyond<T>* best;
  Blocks rows, columns;
};

// A slot's choice settles quickly, so that most tiles only find out that they cannot improve any.
template <class T>
class NearestBeyondWorker {
  using P = Tile<T>;
  using V = typename P::V;
  using Classes = typename DistanceTile<T>::Classes;
  static constexpr int64_t W = P::kWidth;

 public:
  explicit NearestBeyondWorker(const NearestBeyondShared<T>& shared) : s_(shared) {}

  void operator()(int64_t block_x, int64_t block_y) {
    for (int64_t py = s_.columns.begin(block_y); py < s_.columns.end(block_y); ++py) {
      for (int64_t px = s_.rows.begin(block_x); px < s_.rows.end(block_x); ++px) {
        if (s_.p->self && px > py) break;
        panel(px, py);
      }
    }
  }

 private:
  void panel(int64_t px, int64_t py) {
    const Prepared<T>& p = *s_.p;
    const int64_t row_depth = s_.slots->depth(px);
    const int64_t column_depth = p.self ? s_.slots->depth(py) : 0;
    if (row_depth == 0 && column_depth == 0) return;
    for (int t = 0; t < P::kPerPanel; ++t) {
      const int64_t i0 = px * W + t * P::kRows;
      if (i0 >= p.x.n) break;
      const Classes classes = DistanceTile<T>::classes(p, i0, py);
      if (classes == Classes::one) continue;
      DistanceTile<T> tile;
      tile.compute(p, px, t * P::kRows, py, classes == Classes::mixed, p.self && px == py);
      if (row_depth > 0) rows(tile, i0, py * W, row_depth);
      if (column_depth > 0) columns(tile, i0, py * W, column_depth);
    }
  }

  void rows(const DistanceTile<T>& tile, int64_t i0, int64_t j0, int64_t depth) {
    for (int64_t m = 0; m < depth; ++m) {
      const int64_t slot = s_.slots->index(i0, m);
      const T* low = s_.slots->d2.get() + slot;
      const T* limit = s_.best->limit.get() + slot;
#pragma GCC unroll 8
      for (int r = 0; r < P::kRows; ++r) {
        const V l = splat<T>(low[r]), h = splat<T>(limit[r]);
        uint64_t found = 0;
#pragma GCC unroll 3
        for (int c = 0; c < P::kVectors; ++c) {
          found |= uint64_t{between<T>(tile.d2[r][c], l, h)} << c * P::kLanes;
        }
        if (__builtin_expect(found != 0, 0)) offer_row(tile, r, slot + r, j0, found);
      }
    }
  }

  void columns(const DistanceTile<T>& tile, int64_t i0, int64_t j0, int64_t depth) {
    for (int64_t m = 0; m < depth; ++m) {
      for (int c = 0; c < P::kVectors; ++c) {
        const int64_t slot = s_.slots->index(j0, m) + c * P::kLanes;
        const V l = load(s_.slots->d2.get() + slot), h = load(s_.best->limit.get() + slot);
        uint32_t found = 0;
#pragma GCC unroll 8
        for (int r = 0; r < P::kRows; ++r) found |= between<T>(tile.d2[r][c], l, h);
        if (__builtin_expect(found != 0, 0)) offer_columns(tile, c, slot, i0, found);
      }
    }
  }

  __attribute__((noinline)) void offer_row(const DistanceTile<T>& tile, int r, int64_t slot,
                                           int64_t j0, uint64_t found) {
    const T* d2 = reinterpret_cast<const T*>(tile.d2) + r * W;
    for (; found; found &= found - 1) {
      const int c = __builtin_ctzll(found);
      s_.best->offer(slot, d2[c], j0 + c);
    }
  }

  __attribute__((noinline)) void offer_columns(const DistanceTile<T>& tile, int c, int64_t slot,
                                               int64_t i0, uint32_t found) {
    const T* d2 = reinterpret_cast<const T*>(tile.d2) + c * P::kLanes;
    for (; found; found &= found - 1) {
      const int l = __builtin_ctz(found);
      for (int r = 0; r < P::kRows; ++r) {
        const T v = d2[r * W + l];
        if (v > s_.slots->d2[slot + l]) s_.best->offer(slot + l, v, i0 + r);
      }
    }
  }

  NearestBeyondShared<T> s_;
};

// Where a positive is farther than every negative: the farthest negative. Few anchors have such a
// positive, so that only their tiles are computed again.
template <class T>
inline void farthest_for_the_rest(const Prepared<T>& p, const PositiveSlots<T>& slots,
                                  NearestBeyond<T>& best) {
  using P = Tile<T>;
  constexpr int64_t W = P::kWidth;
  const auto lacks = [&](int64_t i) {
    // Negatives beyond the farthest positive serve every other one as well.
    const int64_t few = few_positives(p, i);
    return few > 0 && best.at[slots.index(i, few - 1)] < 0;
  };
  parallel_for(p.threads, p.x.panels * P::kPerPanel, [&](int64_t tile_row) {
    const int64_t i0 = tile_row * P::kRows;
    bool any = false;
    for (int64_t i = i0; i < i0 + P::kRows && i < p.x.n; ++i) any |= lacks(i);
    if (!any) return;
    T most[P::kRows];
    int64_t where[P::kRows];
    for (int r = 0; r < P::kRows; ++r) most[r] = -1, where[r] = -1;
    for (int64_t py = 0; py < p.y().panels; ++py) {
      const auto classes = DistanceTile<T>::classes(p, i0, py);
      if (classes == DistanceTile<T>::Classes::one) continue;
      DistanceTile<T> tile;
      tile.compute(p, i0 / W, i0 % W, py, classes == DistanceTile<T>::Classes::mixed, false);
      const T* d2 = reinterpret_cast<const T*>(tile.d2);
      for (int64_t k = 0; k < P::kRows * W; ++k) {
        if (!(d2[k] > most[k / W] && d2[k] < kInf<T>)) continue;
        most[k / W] = d2[k];
        where[k / W] = py * W + k % W;
      }
    }
    for (int64_t i = i0; i < i0 + P::kRows && i < p.x.n; ++i) {
      for (int64_t m = 0; m < few_positives(p, i); ++m) {
        int64_t& at = best.at[slots.index(i, m)];
        if (at < 0) at = where[i - i0];
      }
    }
  });
}

}  // namespace dmlap::cpu::DMLAP_ISA

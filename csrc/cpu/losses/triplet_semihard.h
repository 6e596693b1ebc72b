// Semi-hard triplets (1503.03832): each positive pair with the nearest negative that is farther
// away, or else the farthest negative.
#pragma once

#include "losses/anchor_rows.h"

namespace dmlap::cpu::DMLAP_ISA {

// One bit per lane: low < v < high.
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

// The next larger number, or infinity. v is not negative.
template <class T>
inline T just_above(T v) {
  typename Simd<T>::Int i;
  std::memcpy(&i, &v, sizeof i);
  i += v < kInf<T>;
  std::memcpy(&v, &i, sizeof i);
  return v;
}

// The negative chosen for each positive of the windows. Ties go to the lower position.
template <class T>
struct NearestBeyond {
  Buffer<T> d2;        // [windows][W] +inf for none yet
  Buffer<T> limit;     // [windows][W] just above d2: a better one must be below
  Buffer<int64_t> at;  // [windows][W] position, -1 for none

  explicit NearestBeyond(int64_t size) : d2(size), limit(size), at(size) {
    d2.fill(size, kInf<T>);
    limit.fill(size, kInf<T>);
    at.fill(size, -1);
  }
  void offer(int64_t place, T v, int64_t position) {
    if (!(v < d2[place] || (v == d2[place] && position < at[place]))) return;
    d2[place] = v;
    limit[place] = just_above(v < 0 ? T(0) : v);
    at[place] = position;
  }
};

template <class T>
struct NearestBeyondShared {
  const Prepared<T>* p;
  const PositiveWindows<T>* windows;
  NearestBeyond<T>* best;
  Blocks rows, columns;
};

// Choices settle quickly: most tiles only find that they cannot improve any.
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
    const int64_t row_depth = s_.windows->depth(px);
    const int64_t column_depth = p.self ? s_.windows->depth(py) : 0;
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
      const int64_t place = s_.windows->index(i0, m);
      const T* low = s_.windows->d2.get() + place;
      const T* limit = s_.best->limit.get() + place;
#pragma GCC unroll 8
      for (int r = 0; r < P::kRows; ++r) {
        const V l = splat<T>(low[r]), h = splat<T>(limit[r]);
        uint64_t found = 0;
#pragma GCC unroll 3
        for (int c = 0; c < P::kVectors; ++c) {
          found |= uint64_t{between<T>(tile.d2[r][c], l, h)} << c * P::kLanes;
        }
        if (__builtin_expect(found != 0, 0)) offer_row(tile, r, place + r, j0, found);
      }
    }
  }

  void columns(const DistanceTile<T>& tile, int64_t i0, int64_t j0, int64_t depth) {
    for (int64_t m = 0; m < depth; ++m) {
      for (int c = 0; c < P::kVectors; ++c) {
        const int64_t place = s_.windows->index(j0, m) + c * P::kLanes;
        const V l = load(s_.windows->d2.get() + place), h = load(s_.best->limit.get() + place);
        uint32_t found = 0;
#pragma GCC unroll 8
        for (int r = 0; r < P::kRows; ++r) found |= between<T>(tile.d2[r][c], l, h);
        if (__builtin_expect(found != 0, 0)) offer_columns(tile, c, place, i0, found);
      }
    }
  }

  __attribute__((noinline)) void offer_row(const DistanceTile<T>& tile, int r, int64_t place,
                                           int64_t j0, uint64_t found) {
    const T* d2 = reinterpret_cast<const T*>(tile.d2) + r * W;
    for (; found; found &= found - 1) {
      const int c = __builtin_ctzll(found);
      s_.best->offer(place, d2[c], j0 + c);
    }
  }

  __attribute__((noinline)) void offer_columns(const DistanceTile<T>& tile, int c, int64_t place,
                                               int64_t i0, uint32_t found) {
    const T* d2 = reinterpret_cast<const T*>(tile.d2) + c * P::kLanes;
    for (; found; found &= found - 1) {
      const int l = __builtin_ctz(found);
      for (int r = 0; r < P::kRows; ++r) {
        const T v = d2[r * W + l];
        if (v > s_.windows->d2[place + l]) s_.best->offer(place + l, v, i0 + r);
      }
    }
  }

  NearestBeyondShared<T> s_;
};

// A positive farther than every negative gets the farthest negative. Few anchors have such a
// positive, and only their tiles are computed again.
template <class T>
inline void farthest_for_the_rest(const Prepared<T>& p, const PositiveWindows<T>& windows,
                                  NearestBeyond<T>& best) {
  using P = Tile<T>;
  constexpr int64_t W = P::kWidth;
  const auto lacks = [&](int64_t i) {
    // A negative beyond the farthest positive serves the nearer ones, too.
    const int64_t few = few_positives(p, i);
    return few > 0 && best.at[windows.index(i, few - 1)] < 0;
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
        int64_t& at = best.at[windows.index(i, m)];
        if (at < 0) at = where[i - i0];
      }
    }
  });
}

// The triplets of anchors with few positives, from one sweep over the tiles.
template <class T>
inline void mine_semihard(const Prepared<T>& p, MinedTriplets<T>& mined) {
  const PositiveWindows<T> windows(p);
  NearestBeyond<T> best(windows.size(p));
  const NearestBeyondShared<T> shared{&p, &windows, &best, Blocks(p.x.panels),
                                      Blocks(p.y().panels)};
  Schedule schedule(shared.rows.count, shared.columns.count, p.self);
  schedule.run(p.threads, [&](int) { return NearestBeyondWorker<T>(shared); });
  farthest_for_the_rest(p, windows, best);
  for (int64_t i = 0; i < p.x.n; ++i) {
    for (int64_t m = 0; m < few_positives(p, i); ++m) {
      const int64_t place = windows.index(i, m);
      mined.set(p, i, m, windows.at[place], best.at[place]);
    }
  }
}

// The triplets of one anchor, from its sorted distances.
template <class T>
class SemihardChoice {
  using Int = typename Simd<T>::Int;

 public:
  Buffer<Int> positive, negative;

  SemihardChoice(const Prepared<T>& p, const LossOptions&)
      : positive(p.y().n), negative(p.y().n), p_(p), sorter_(p.y().n) {}

  int64_t choose(int64_t i, const T* d2) {
    const Keyed<T>* sorted = sorter_.sort(d2, p_.y().n);
    const int64_t itself = p_.itself(i);
    // From the farthest down, in groups of equal distance.
    int64_t count = 0;
    Int beyond = -1, farthest = -1;
    for (int64_t stop = p_.y().n; stop > 0;) {
      int64_t k = stop;
      Int first_negative = -1;
      do {
        const Int j = sorted[--k].at;
        if (j == itself) continue;
        if (!p_.in_class(i, j)) {
          first_negative = j;
        } else {
          positive[count] = j;
          negative[count++] = beyond;
        }
      } while (k > 0 && sorted[k - 1].key == sorted[k].key);
      stop = k;
      if (first_negative < 0) continue;
      beyond = first_negative;
      if (farthest < 0) farthest = first_negative;
    }
    for (int64_t m = 0; m < count && negative[m] < 0; ++m) negative[m] = farthest;
    return count;
  }

 private:
  const Prepared<T>& p_;
  Sorter<T> sorter_;
};

template <class T>
struct TripletSemihardKernels {
  static constexpr bool kSkipsReferences = false;

  static constexpr SavedSize saved_size(bool) { return {sizeof(SavedHeader)}; }

  static void forward(const Pairs<T>& pairs, const LossOptions& options, const ForwardOut<T>& out) {
    const ForwardState<T> state(pairs);
    const Prepared<T>& p = state.p;
    Buffer<TermSums> totals(p.x.n);
    totals.fill(p.x.n, TermSums{});
    Keeping<KeptTriplets<T>> kept(new KeptTriplets<T>(p));
    MinedTriplets<T>& mined = kept->mined;
    mine_semihard(p, mined);
    mined.weigh(p, Triplet<T>(options.params), totals.get());
    each_anchor_row<T, RowMiner<T, SemihardChoice<T>>>(
        p, options, [&](int64_t i) { return many_positives(p, i) > 0; },
        [&](auto& miner, int64_t i, const T* d2) { miner.add(i, d2, totals[i]); });
    finish_triplets(state, options, totals.get(), out);
    if (out.kept != nullptr && kept->fits(p)) kept.hand_over(out.kept);
  }

  static void backward(const Pairs<T>& pairs, const LossOptions& options,
                       const BackwardArgs<T>& args) {
    if (nonfinite_gradients(pairs, args)) return;
    Prepared<T> p;
    if (args.kept != nullptr) {
      prepare(p, pairs, false);
      const MinedTriplets<T>& mined = static_cast<const KeptTriplets<T>*>(args.kept)->mined;
      return backward_mined<T, SemihardChoice<T>>(p, mined, options, args);
    }
    prepare(p, pairs, true);
    MinedTriplets<T> mined(p);
    mine_semihard(p, mined);
    mined.weigh(p, Triplet<T>(options.params), nullptr);
    backward_mined<T, SemihardChoice<T>>(p, mined, options, args);
  }
};

}  // namespace dmlap::cpu::DMLAP_ISA

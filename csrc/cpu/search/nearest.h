// Exact k nearest neighbours: rows keep their own candidates, the distance matrix is never held.
#pragma once

#include "engine/tile.h"

namespace dmlap::cpu::DMLAP_ISA {

template <class T>
struct Candidate {
  T d2;
  int64_t at;
  bool operator<(const Candidate& o) const { return d2 != o.d2 ? d2 < o.d2 : at < o.at; }
};

// Moves the k smallest to the front (quickselect with a middle pivot).
template <class T>
inline void select_smallest(Candidate<T>* c, int64_t n, int64_t k) {
  int64_t low = 0, high = n - 1;
  while (low < high) {
    const Candidate<T> pivot = c[low + (high - low) / 2];
    int64_t i = low, j = high;
    while (i <= j) {
      while (c[i] < pivot) ++i;
      while (pivot < c[j]) --j;
      if (i > j) break;
      const Candidate<T> t = c[i];
      c[i++] = c[j];
      c[j--] = t;
    }
    if (k - 1 <= j) {
      high = j;
    } else if (k - 1 >= i) {
      low = i;
    } else {
      return;
    }
  }
}

template <class T>
inline void sort_candidates(Candidate<T>* c, int64_t n) {
  // Heap sort: in place, no recursion, no instantiation shared with other units.
  const auto sift = [c](int64_t root, int64_t size) {
    const Candidate<T> value = c[root];
    for (int64_t child; (child = 2 * root + 1) < size; root = child) {
      if (child + 1 < size && c[child] < c[child + 1]) ++child;
      if (!(value < c[child])) break;
      c[root] = c[child];
    }
    c[root] = value;
  };
  for (int64_t i = n / 2 - 1; i >= 0; --i) sift(i, n);
  for (int64_t i = n - 1; i > 0; --i) {
    const Candidate<T> t = c[0];
    c[0] = c[i];
    c[i] = t;
    sift(0, i);
  }
}

// The candidates of the rows of one panel.
template <class T>
class NearestWorker {
  using P = Tile<T>;
  using V = typename P::V;

 public:
  NearestWorker(const Prepared<T>& p, int64_t k, T* distances, int64_t* indices)
      : p_(p),
        k_(k),
        capacity_(2 * k + P::kWidth),
        distances_(distances),
        indices_(indices),
        candidates_(P::kWidth * capacity_) {}

  void operator()(int64_t px) {
    for (int r = 0; r < P::kWidth; ++r) {
      count_[r] = 0;
      bound_[r] = kInf<T>;
    }
    for (int64_t py = 0; py < p_.y().panels; ++py) {
      for (int t = 0; t < P::kPerPanel; ++t) {
        if (px * P::kWidth + t * P::kRows >= p_.x.n) break;
        DistanceTile<T> tile;
        tile.compute(p_, px, t * P::kRows, py, false, false);
        for (int r = 0; r < P::kRows; ++r) take(tile, t * P::kRows + r, r, px, py);
      }
    }
    for (int r = 0; r < P::kWidth && px * P::kWidth + r < p_.x.n; ++r) give(px * P::kWidth + r, r);
  }

 private:
  void take(const DistanceTile<T>& tile, int slot, int r, int64_t px, int64_t py) {
    const int64_t i = px * P::kWidth + slot;
    const V bound = splat<T>(bound_[slot]);
    Candidate<T>* mine = candidates_.get() + slot * capacity_;
    for (int c = 0; c < P::kVectors; ++c) {
      for (uint32_t hits = bits(tile.d2[r][c] < bound); hits; hits &= hits - 1) {
        const int lane = __builtin_ctz(hits);
        const int64_t j = py * P::kWidth + c * P::kLanes + lane;
        if (p_.self && i == j) continue;
        const T d2 = tile.d2[r][c][lane];
        mine[count_[slot]++] = {d2 > 0 ? d2 : T(0), j};
      }
    }
    if (count_[slot] + P::kWidth <= capacity_) return;
    select_smallest(mine, count_[slot], k_);
    count_[slot] = k_;
    T largest = mine[0].d2;
    for (int64_t c = 1; c < k_; ++c) largest = mine[c].d2 > largest ? mine[c].d2 : largest;
    bound_[slot] = largest;  // later columns have higher indices: an equal distance loses
  }

  void give(int64_t i, int slot) {
    Candidate<T>* mine = candidates_.get() + slot * capacity_;
    if (count_[slot] > k_) select_smallest(mine, count_[slot], k_);
    int64_t found = count_[slot] < k_ ? count_[slot] : k_;
    sort_candidates(mine, found);
    T* distances = distances_ + i * k_;
    int64_t* indices = indices_ + i * k_;
    for (int64_t c = 0; c < found; ++c) {
      distances[c] = p_.from_squared(mine[c].d2);
      indices[c] = mine[c].at;
    }
    // Only where distances are not numbers: every other reference, in order.
    for (int64_t j = 0; found < k_; ++j) {
      bool used = p_.self && j == i;
      for (int64_t c = 0; c < found && !used; ++c) used = indices[c] == j;
      if (used) continue;
      distances[found] = std::numeric_limits<T>::quiet_NaN();
      indices[found++] = j;
    }
  }

  const Prepared<T>& p_;
  int64_t k_, capacity_;
  T* distances_;
  int64_t* indices_;
  Buffer<Candidate<T>> candidates_;
  int64_t count_[P::kWidth];
  T bound_[P::kWidth];
};

// Whether distances overflowed, or some row is not finite.
template <class T>
inline bool find_nearest(const Pairs<T>& pairs, int64_t k, T* distances, int64_t* indices) {
  Prepared<T> p;
  prepare(p, pairs, true);
  std::atomic<int64_t> next(0);
#pragma omp parallel num_threads(p.threads) if (p.threads > 1)
  {
    NearestWorker<T> worker(p, k, distances, indices);
    for (int64_t px; (px = next.fetch_add(1)) < p.x.panels;) worker(px);
  }
  return p.nonfinite;
}

}  // namespace dmlap::cpu::DMLAP_ISA

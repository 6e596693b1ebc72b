// Positive windows: the positives of anchors that have few, panel by panel, nearest first.
#pragma once

#include "engine/tile.h"

namespace dmlap::cpu::DMLAP_ISA {

// Up to this many positives, a sweep holds a value for each positive of an anchor and compares
// every pair with all of them. With more, anchors go one by one (anchor_rows.h), which costs a sort
// of each row, about as much as 60 positives. The values take at most the size of the input and 32
// MiB.
template <class T>
inline int64_t few_limit(const Prepared<T>& p) {
  constexpr int64_t kLeast = 16, kMost = 64, kBytesEach = 66;
  const int64_t input = (p.x.n + p.y().n) * p.dim * int64_t{sizeof(T)};
  const int64_t limit = (input + (int64_t{32} << 20)) / (kBytesEach * (p.x.n > 0 ? p.x.n : 1));
  return limit < kLeast ? kLeast : (limit > kMost ? kMost : limit);
}

// The number of positives of an anchor that has a negative and few (or many) positives; else 0.
template <class T>
inline int64_t few_positives(const Prepared<T>& p, int64_t anchor) {
  const int64_t n = p.positives(anchor);
  return n <= few_limit(p) && p.negatives(anchor) > 0 ? n : 0;
}
template <class T>
inline int64_t many_positives(const Prepared<T>& p, int64_t anchor) {
  const int64_t n = p.positives(anchor);
  return n > few_limit(p) && p.negatives(anchor) > 0 ? n : 0;
}
template <class T>
inline bool any_many_positives(const Prepared<T>& p) {
  bool any = false;
  for (int64_t i = 0; i < p.x.n; ++i) any |= many_positives(p, i) > 0;
  return any;
}

// Window m of a panel holds the m-th nearest positive of each of its rows, one lane per row.
// Distances come from tiles, like those of negatives, so that equal rows tie.
template <class T>
struct PositiveWindows {
  using P = Tile<T>;
  static constexpr int64_t W = P::kWidth;

  Buffer<int64_t> offset;  // [panels + 1] the first window of a panel
  Buffer<T> d2;            // [windows][W] +inf beyond an anchor's positives
  Buffer<int64_t> at;      // [windows][W] their positions

  explicit PositiveWindows(const Prepared<T>& p) : offset(p.x.panels + 1) {
    offset[0] = 0;
    for (int64_t panel = 0; panel < p.x.panels; ++panel) {
      int64_t most = 0;
      for (int64_t i = panel * W; i < panel * W + W && i < p.x.n; ++i) {
        const int64_t n = few_positives(p, i);
        most = n > most ? n : most;
      }
      offset[panel + 1] = offset[panel] + most * W;
    }
    d2.reset(size(p));
    d2.fill(size(p), kInf<T>);
    at.reset(size(p));
    parallel_for(p.threads, p.x.panels, [&](int64_t panel) {
      if (depth(panel) == 0) return;
      for (int64_t t = 0; t < P::kPerPanel; ++t) gather(p, panel, t * P::kRows);
    });
  }

  int64_t depth(int64_t panel) const { return (offset[panel + 1] - offset[panel]) / W; }
  int64_t index(int64_t anchor, int64_t m) const { return offset[anchor / W] + m * W + anchor % W; }
  int64_t size(const Prepared<T>& p) const { return offset[p.x.panels]; }

 private:
  void gather(const Prepared<T>& p, int64_t panel, int64_t row) {
    const int64_t i0 = panel * W + row;
    int64_t low = p.y().n, high = 0, count[P::kRows] = {};
    for (int64_t i = i0; i < i0 + P::kRows && i < p.x.n; ++i) {
      if (few_positives(p, i) == 0) continue;
      low = p.begin[i] < low ? p.begin[i] : low;
      high = p.end[i] > high ? p.end[i] : high;
    }
    for (int64_t py = low / W; py * W < high; ++py) {
      DistanceTile<T> tile;
      tile.compute(p, panel, row, py, false, false);
      const T* value = reinterpret_cast<const T*>(tile.d2);
      for (int64_t i = i0; i < i0 + P::kRows && i < p.x.n; ++i) {
        if (few_positives(p, i) == 0) continue;
        const int64_t first = p.begin[i] > py * W ? p.begin[i] : py * W;
        for (int64_t j = first; j < p.end[i] && j < py * W + W; ++j) {
          if (j == p.itself(i)) continue;
          insert(i, count[i - i0]++, value[(i - i0) * W + j - py * W], j);
        }
      }
    }
  }

  // Inserts into the sorted positives of an anchor; ties stay in the order of positions.
  void insert(int64_t anchor, int64_t m, T value, int64_t position) {
    for (; m > 0 && d2[index(anchor, m - 1)] > value; --m) {
      d2[index(anchor, m)] = d2[index(anchor, m - 1)];
      at[index(anchor, m)] = at[index(anchor, m - 1)];
    }
    d2[index(anchor, m)] = value;
    at[index(anchor, m)] = position;
  }
};

}  // namespace dmlap::cpu::DMLAP_ISA

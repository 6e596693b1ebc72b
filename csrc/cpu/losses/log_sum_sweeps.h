// Sums of exponentials over negatives: the range of exponents, the accumulator of the forward
// sweep, and the pair gradient of the backward sweep.
#pragma once

#include "dmlap/policies/exponent.h"
#include "engine/backward.h"
#include "engine/simd_math.h"

namespace dmlap::cpu::DMLAP_ISA {

// The range of the exponents of a problem's negatives, and how they are kept from overflowing.
template <class T>
struct ExponentRange {
  Exponent<T> exponent;
  // If all exponents lie within half the range of exp around `shift`, e^(exponent - shift) is
  // computed once per pair, for both of its anchors. Else each anchor has a running maximum.
  T shift = 0;
  bool bounded = false;

  ExponentRange(const Prepared<T>& p, const Exponent<T>& exponent) : exponent(exponent) {
    T low, high;
    distance_bounds(p, low, high);
    T least = kInf<T>, most = -kInf<T>;
    const T middle = (exponent.zero + exponent.pivot) / 2;  // of a parabola
    const T candidates[4] = {low, high, exponent.pivot, middle};
    for (int i = 0; i < (exponent.side == 0 ? 2 : 4); ++i) {
      T d = candidates[i];
      d = d < low ? low : (d > high ? high : d);
      const T e = exponent(d);
      least = e < least ? e : least;
      most = e > most ? e : most;
    }
    bounded = most - least < T(1.3) * FloatFormat<T>::kHighest;
    shift = bounded ? (least + most) / 2 : T(0);
  }

 private:
  // Bounds of all distances, from the norms of the rows.
  static void distance_bounds(const Prepared<T>& p, T& low, T& high) {
    const T x = largest_size(p.x), y = largest_size(p.y());
    const T sum = (std::sqrt(x) + std::sqrt(y)) * T(1.001);
    low = 0;
    high = p.distance == Distance::cosine ? T(2) : (p.euclidean() ? sum : sum * sum);
    if (p.dot()) {
      high = std::sqrt(x) * std::sqrt(y) * T(1.001);
      low = -high;
    }
  }
  static T largest_size(const Side<T>& side) {
    T size = 0;
    for (int64_t i = 0; i < side.panels; ++i) {
      size = side.panel_size[i] > size ? side.panel_size[i] : size;
    }
    return size;
  }
};

// A sum of exponentials, lane by lane: sum * e^top.
template <class T>
struct LogSum {
  using V = typename Tile<T>::V;
  V top, sum;

  void clear() {
    top = splat<T>(std::numeric_limits<T>::lowest() / 2);
    sum = V{};
  }
  template <int n>
  void add(const V (&exponent)[n]) {
    V high = top;
    for (int i = 0; i < n; ++i) high = exponent[i] > high ? exponent[i] : high;
    if (bits(high > top)) {
      sum *= vexp(top - high);
      top = high;
    }
    for (int i = 0; i < n; ++i) sum += vexp(exponent[i] - top);
  }
};

template <class T>
class LogSumAccumulator {
  using P = Tile<T>;
  using V = typename P::V;

 public:
  struct Options {
    const ExponentRange<T>* range;
    const T*
        reach;  // null, or [x.panels * kWidth]: negatives at this distance or farther are left out
  };

  LogSumAccumulator(const ForwardShared<T>& shared, const Options& options)
      : s_(shared), o_(options), rows_(shared.rows.per_block * P::kWidth) {}

  void open_rows(int64_t n) {
    for (int64_t i = 0; i < n; ++i) rows_[i].clear();
  }
  void open_columns() {
    for (LogSum<T>& c : columns_) c.clear();
  }
  bool take(const DistanceTile<T>& tile, const TilePlace& at) {
    return o_.range->bounded ? take_bounded(tile, at) : take_unbounded(tile, at);
  }
  void close_columns(int64_t first) {
    each_column<T>(first, s_.p->y().n, [&](int64_t j, int c, int l) {
      s_.column_anchors[j].add_exponentials(top(columns_[c], l), columns_[c].sum[l]);
    });
  }
  void close_rows(int64_t first, int64_t n) {
    for (int64_t i = 0; i < n; ++i) {
      AnchorState<T>& anchor = s_.anchors[first + i];
      if (o_.range->bounded) {
        anchor.add_exponentials(o_.range->shift, wide_sum<T>(rows_[i].sum));
        continue;
      }
      for (int l = 0; l < P::kLanes; ++l) {
        anchor.add_exponentials(rows_[i].top[l], rows_[i].sum[l]);
      }
    }
  }

 private:
  T top(const LogSum<T>& s, int lane) const {
    return o_.range->bounded ? o_.range->shift : s.top[lane];
  }

  bool take_bounded(const DistanceTile<T>& tile, const TilePlace& at) {
    const ExponentRange<T>& range = *o_.range;
    const bool both = s_.both();
    V any{};
    for (int r = 0; r < P::kRows; ++r) {
      V sum = rows_[at.row + r].sum;
      for (int c = 0; c < P::kVectors; ++c) {
        const V d = s_.p->from_squared(tile.d2[r][c]);
        const V e = vexp(range.exponent(d) - range.shift);
        const V t = tile.d2[r][c] < kInf<T> ? e : V{};
        if (o_.reach == nullptr) {
          sum += t;
          if (both) columns_[c].sum += t;
          continue;
        }
        const V mine = d < splat<T>(o_.reach[at.i0 + r]) ? t : V{};
        sum += mine;
        any += mine;
        if (!both) continue;
        const V theirs = d < load(o_.reach + at.j0 + c * P::kLanes) ? t : V{};
        columns_[c].sum += theirs;
        any += theirs;
      }
      rows_[at.row + r].sum = sum;
    }
    return o_.reach == nullptr || bits(any > 0) != 0;
  }

  bool take_unbounded(const DistanceTile<T>& tile, const TilePlace& at) {
    constexpr int R = P::kRows, C = P::kVectors;
    const V none = splat<T>(-kInf<T>);
    V of_columns[C][R], any = none;
    for (int r = 0; r < R; ++r) {
      V of_row[C];
      for (int c = 0; c < C; ++c) {
        const V d = s_.p->from_squared(tile.d2[r][c]);
        const V e = tile.d2[r][c] < kInf<T> ? o_.range->exponent(d) : none;
        of_row[c] = of_columns[c][r] = e;
        if (o_.reach == nullptr) continue;
        of_row[c] = d < splat<T>(o_.reach[at.i0 + r]) ? e : none;
        if (s_.both()) {
          of_columns[c][r] = d < load(o_.reach + at.j0 + c * P::kLanes) ? e : none;
          any = any > of_columns[c][r] ? any : of_columns[c][r];
        }
        any = any > of_row[c] ? any : of_row[c];
      }
      rows_[at.row + r].add(of_row);
    }
    for (int c = 0; s_.both() && c < C; ++c) columns_[c].add(of_columns[c]);
    return o_.reach == nullptr || bits(any > none) != 0;
  }

  ForwardShared<T> s_;
  Options o_;
  Buffer<LogSum<T>> rows_;
  LogSum<T> columns_[P::kVectors];
};

// Weights of negatives: push_i e^(exponent - neg_lse_i), plus the column's if references are
// anchors too.
template <class T>
struct LogSumPairGradient {
  using V = typename Tile<T>::V;
  const Prepared<T>* p;
  const ExponentRange<T>* range;
  // [panels * kWidth] of each side. If exponents are bounded, push holds push e^(shift - neg_lse).
  const T *push, *neg_lse, *reach;
  const T *column_push, *column_lse, *column_reach;  // null if the columns are no anchors
  T own = 0, own_lse = 0, own_reach = 0;

  void row(int64_t i) {
    own = push[i];
    own_lse = neg_lse[i];
    own_reach = reach ? reach[i] : kInf<T>;
  }
  bool idle(V) const { return false; }

  V weight(V d2, int64_t j) const {
    const V d = p->from_squared(d2);
    const V e = range->exponent(d);
    V mine = splat<T>(own), theirs{};
    if (column_push) theirs = load(column_push + j);
    if (reach) {
      mine = d < own_reach ? mine : V{};
      if (column_push) theirs = d < load(column_reach + j) ? theirs : V{};
    }
    V w;
    if (range->bounded) {
      w = vexp(e - range->shift) * (mine + theirs);
    } else {
      w = mine * vexp(e - own_lse);
      if (column_push) w += theirs * vexp(e - load(column_lse + j));
    }
    w *= range->exponent.slope(d);
    return d2 < kInf<T> ? p->pair_weight(w, d) : V{};
  }
};

// The sum of two pair gradients.
template <class PairGradient>
struct SumOfGradients {
  using V = typename PairGradient::V;
  PairGradient a, b;

  void row(int64_t i) { a.row(i), b.row(i); }
  bool idle(V d2) const { return a.idle(d2) && b.idle(d2); }
  V weight(V d2, int64_t j) const { return a.weight(d2, j) + b.weight(d2, j); }
};

}  // namespace dmlap::cpu::DMLAP_ISA

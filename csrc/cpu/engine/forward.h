// The forward sweep: positives from label runs, then one sweep over the negatives. What a tile of
// negatives is gathered into is an accumulator; a loss picks its accumulators.
#pragma once

#include "engine/tile.h"

namespace dmlap::cpu::DMLAP_ISA {

// What the terms of an anchor, or a part of them, add up to.
struct TermSums {
  double term = 0;
  double violation = 0;  // of their hinges, for the statistics
  int64_t count = 0;     // how many there are
  int64_t nonzero = 0;   // of them > 0
  int64_t violated = 0;  // of the hinges > 0

  void add(const TermSums& o) {
    term += o.term;
    violation += o.violation;
    count += o.count;
    nonzero += o.nonzero;
    violated += o.violated;
  }
};

// What one anchor gathers; indices are positions in label order.
template <class T>
struct AnchorState {
  double positive_sum = 0;        // of distances
  TermSums terms[2];              // of each group
  T hardest_positive = -kInf<T>;  // squared distance
  T hardest_negative = kInf<T>;
  int64_t positive_at = -1;
  int64_t negative_at = -1;
  T negative_top = -kInf<T>;  // negatives: sum of e^exponent = negative_sum * e^negative_top
  double negative_sum = 0;

  void offer_negative(T d2, int64_t at) {
    if (d2 < hardest_negative || (d2 == hardest_negative && at < negative_at)) {
      hardest_negative = d2;
      negative_at = at;
    }
  }
  void add_exponentials(T top, double sum) {
    if (sum == 0) return;
    if (top > negative_top) {
      negative_sum *= std::exp(double(negative_top) - double(top));
      negative_top = top;
    }
    negative_sum += sum * std::exp(double(top) - double(negative_top));
  }
  void clear_exponentials() {
    negative_top = -kInf<T>;
    negative_sum = 0;
  }
  // The same anchor against other negatives.
  void merge(const AnchorState& o) {
    for (int g = 0; g < 2; ++g) terms[g].add(o.terms[g]);
    if (o.negative_at >= 0) offer_negative(o.hardest_negative, o.negative_at);
    add_exponentials(o.negative_top, o.negative_sum);
  }
  T log_sum() const {
    return negative_sum > 0 ? negative_top + T(std::log(negative_sum)) : -kInf<T>;
  }
};

// Where a sweep reads and writes.
template <class T>
struct ForwardShared {
  const Prepared<T>* p;
  AnchorState<T>* anchors;         // [x.n]
  AnchorState<T>* column_anchors;  // those of the columns: == anchors in the self case, else null,
                                   // or [y.n] where the references are anchors as well
  double* negative_sum;            // [blocks of x] of distances, for the statistics
  uint8_t* active;                 // [panel pairs] a bit for each tile with an active pair; or null
  const KeptTiles<T>* kept;        // where to leave the active tiles, or null
  Blocks rows, columns;

  bool both() const { return column_anchors != nullptr; }
};

// A tile among the tiles of a task.
struct TilePlace {
  int64_t i0, j0;  // first row and column
  int64_t row;     // of i0 in the task's block
};

// An accumulator has:
//   Options                       what a loss hands to it
//   (shared, options)             one a thread
//   open_rows(n), open_columns()  a block of rows, a panel of columns begins
//   take(tile, place) -> bool     whether some pair of the tile is active
//   close_columns(first)          gives what it gathered to the anchors of the columns
//   close_rows(first, n)          and of the rows

// The nearest negatives of a row or of a vector of columns, lane by lane.
template <class T>
struct NearestNegatives {
  using V = typename Tile<T>::V;
  using I = typename Tile<T>::I;
  V d2;
  I at;
  void clear() {
    d2 = splat<T>(kInf<T>);
    at = I{};
  }
  void offer(V v, I index) {
    const I closer = v < d2;
    d2 = vmin(v, d2);
    at = closer ? index : at;
  }
  void give(AnchorState<T>& anchor, int lane) const {
    if (d2[lane] < kInf<T>) anchor.offer_negative(d2[lane], at[lane]);
  }
  // All lanes belong to one anchor.
  void give_least(AnchorState<T>& anchor) const {
    const T least = least_lane<T>(d2);
    if (!(least < kInf<T>)) return;
    for (uint32_t m = bits(d2 == splat<T>(least)); m; m &= m - 1) give(anchor, __builtin_ctz(m));
  }
};

// Calls f(column, vector, lane) for the columns of a panel that exist.
template <class T, class F>
inline void each_column(int64_t first, int64_t n, F f) {
  for (int c = 0; c < Tile<T>::kVectors; ++c) {
    for (int l = 0; l < Tile<T>::kLanes; ++l) {
      const int64_t j = first + c * Tile<T>::kLanes + l;
      if (j >= n) return;
      f(j, c, l);
    }
  }
}

// The nearest negative of every anchor.
template <class T>
class NearestAccumulator {
  using P = Tile<T>;
  using Best = NearestNegatives<T>;

 public:
  struct Options {};

  NearestAccumulator(const ForwardShared<T>& shared, const Options&)
      : s_(shared), rows_(shared.rows.per_block * P::kWidth) {}

  void open_rows(int64_t n) {
    for (int64_t i = 0; i < n; ++i) rows_[i].clear();
  }
  void open_columns() {
    for (Best& c : columns_) c.clear();
  }
  bool take(const DistanceTile<T>& tile, const TilePlace& at) {
    typename P::I index[P::kVectors];
    for (int c = 0; c < P::kVectors; ++c) {
      index[c] = iota<T>() + splat_int<T>(at.j0 + c * P::kLanes);
    }
#pragma GCC unroll 8
    for (int r = 0; r < P::kRows; ++r) {
      Best local = rows_[at.row + r];
#pragma GCC unroll 3
      for (int c = 0; c < P::kVectors; ++c) local.offer(tile.d2[r][c], index[c]);
      rows_[at.row + r] = local;
    }
    if (!s_.both()) return true;
#pragma GCC unroll 3
    for (int c = 0; c < P::kVectors; ++c) {
      Best local = columns_[c];
#pragma GCC unroll 8
      for (int r = 0; r < P::kRows; ++r) local.offer(tile.d2[r][c], splat_int<T>(at.i0 + r));
      columns_[c] = local;
    }
    return true;
  }
  void close_columns(int64_t first) {
    each_column<T>(first, s_.p->y().n,
                   [&](int64_t j, int c, int l) { columns_[c].give(s_.column_anchors[j], l); });
  }
  void close_rows(int64_t first, int64_t n) {
    for (int64_t i = 0; i < n; ++i) rows_[i].give_least(s_.anchors[first + i]);
  }

 private:
  ForwardShared<T> s_;
  Buffer<Best> rows_;
  Best columns_[P::kVectors];
};

// The sum of the negatives' distances, each pair once.
template <class T>
class DistanceSumAccumulator {
  using P = Tile<T>;
  using V = typename P::V;

 public:
  struct Options {};

  DistanceSumAccumulator(const ForwardShared<T>& shared, const Options&) : s_(shared) {}

  void open_rows(int64_t) { sum_ = 0; }
  void open_columns() {}
  bool take(const DistanceTile<T>& tile, const TilePlace&) {
    V sum{};
    for (int r = 0; r < P::kRows; ++r) {
      for (int c = 0; c < P::kVectors; ++c) {
        const V d = s_.p->from_squared(tile.d2[r][c]);
        sum += d < kInf<T> ? d : V{};
      }
    }
    sum_ += wide_sum<T>(sum);
    return true;
  }
  void close_columns(int64_t) {}
  void close_rows(int64_t first, int64_t) {
    s_.negative_sum[first / (s_.rows.per_block * P::kWidth)] += sum_;
  }

 private:
  ForwardShared<T> s_;
  double sum_ = 0;
};

// Two accumulators fed by one sweep; the first decides which tiles are active.
template <class A, class B>
class Both {
 public:
  struct Options {
    typename A::Options a;
    typename B::Options b;
  };

  template <class Shared>
  Both(const Shared& shared, const Options& options)
      : a_(shared, options.a), b_(shared, options.b) {}

  void open_rows(int64_t n) { a_.open_rows(n), b_.open_rows(n); }
  void open_columns() { a_.open_columns(), b_.open_columns(); }
  template <class Tile>
  bool take(const Tile& tile, const TilePlace& at) {
    b_.take(tile, at);
    return a_.take(tile, at);
  }
  void close_columns(int64_t first) { a_.close_columns(first), b_.close_columns(first); }
  void close_rows(int64_t first, int64_t n) { a_.close_rows(first, n), b_.close_rows(first, n); }

 private:
  A a_;
  B b_;
};

// What the statistics need of the negatives.
template <class T>
using StatsAccumulator = Both<NearestAccumulator<T>, DistanceSumAccumulator<T>>;

// One thread's part of the sweep.
template <class T, class Accumulator>
class ForwardWorker {
  using P = Tile<T>;
  using Classes = typename DistanceTile<T>::Classes;

 public:
  ForwardWorker(const ForwardShared<T>& shared, const typename Accumulator::Options& options)
      : s_(shared), accumulator_(shared, options) {}

  void operator()(int64_t block_x, int64_t block_y) {
    open(block_x);
    columns(block_x, block_y);
    close();
  }
  void open(int64_t block_x) {
    first_row_ = s_.rows.begin(block_x) * P::kWidth;
    const int64_t stop = s_.rows.end(block_x) * P::kWidth;
    rows_ = (stop < s_.p->x.n ? stop : s_.p->x.n) - first_row_;
    accumulator_.open_rows(stop - first_row_);
  }
  void columns(int64_t block_x, int64_t block_y) {
    for (int64_t py = s_.columns.begin(block_y); py < s_.columns.end(block_y); ++py) {
      accumulator_.open_columns();
      for (int64_t px = s_.rows.begin(block_x); px < s_.rows.end(block_x); ++px) {
        if (s_.p->self && px > py) break;
        panel(px, py);
      }
      if (s_.both()) accumulator_.close_columns(py * P::kWidth);
    }
  }
  void close() { accumulator_.close_rows(first_row_, rows_); }

 private:
  __attribute__((noinline)) void panel(int64_t px, int64_t py) {
    const Prepared<T>& p = *s_.p;
    const int64_t pair = panel_pair(px, py, s_.columns.panels, p.self);
    uint8_t active = 0;
    for (int t = 0; t < P::kPerPanel; ++t) {
      const int64_t i0 = px * P::kWidth + t * P::kRows;
      if (i0 >= p.x.n) break;
      const Classes classes = DistanceTile<T>::classes(p, i0, py);
      if (classes == Classes::one) continue;
      DistanceTile<T> tile;
      tile.compute(p, px, t * P::kRows, py, classes == Classes::mixed, p.self && px == py);
      const bool some = accumulator_.take(tile, {i0, py * P::kWidth, i0 - first_row_});
      if (some && s_.kept) s_.kept->put(pair, t * P::kRows, tile);
      active |= uint8_t(some) << t;
    }
    if (s_.active) s_.active[pair] = active;
  }

  ForwardShared<T> s_;
  Accumulator accumulator_;
  int64_t first_row_ = 0, rows_ = 0;
};

// Few anchors against many references: each segment of the references has anchors of its own,
// which are merged in order. How many there are depends on nothing but the sizes.
template <class T, class Accumulator>
DMLAP_ONCE void sweep_segments(const ForwardShared<T>& shared,
                               const typename Accumulator::Options& options) {
  const Prepared<T>& p = *shared.p;
  constexpr int64_t kSegments = 16;
  Buffer<AnchorState<T>> anchors(kSegments * p.x.n);
  Buffer<double> sums(kSegments * shared.rows.count);
  anchors.fill(kSegments * p.x.n, AnchorState<T>{});
  sums.fill(kSegments * shared.rows.count, 0.0);
  parallel_tasks(p.threads, kSegments, [&](auto next) {
    for (int64_t s; (s = next()) < kSegments;) {
      ForwardShared<T> own = shared;
      own.anchors = anchors.get() + s * p.x.n;
      own.negative_sum = sums.get() + s * shared.rows.count;
      ForwardWorker<T, Accumulator> worker(own, options);
      for (int64_t bx = 0; bx < own.rows.count; ++bx) {
        worker.open(bx);
        const int64_t stop = own.columns.count * (s + 1) / kSegments;
        for (int64_t by = own.columns.count * s / kSegments; by < stop; ++by) {
          worker.columns(bx, by);
        }
        worker.close();
      }
    }
  });
  for (int64_t s = 0; s < kSegments; ++s) {
    for (int64_t i = 0; i < p.x.n; ++i) shared.anchors[i].merge(anchors[s * p.x.n + i]);
    for (int64_t b = 0; b < shared.rows.count; ++b) {
      shared.negative_sum[b] += sums[s * shared.rows.count + b];
    }
  }
}

// Feeds every negative pair to the accumulators.
template <class T, class Accumulator>
DMLAP_ONCE void sweep_negatives(const ForwardShared<T>& shared,
                                const typename Accumulator::Options& options = {}) {
  using Worker = ForwardWorker<T, Accumulator>;
  const int threads = shared.p->threads;
  const int64_t rows = shared.rows.count, columns = shared.columns.count;
  if (shared.both()) {
    Schedule schedule(rows, columns, shared.p->self);
    schedule.run(threads, [&](int) { return Worker(shared, options); });
  } else if (rows < 8 && columns >= 16) {
    sweep_segments<T, Accumulator>(shared, options);
  } else {
    parallel_tasks(threads, rows, [&](auto next) {
      Worker worker(shared, options);
      for (int64_t bx; (bx = next()) < rows;) {
        worker.open(bx);
        for (int64_t by = 0; by < columns; ++by) worker.columns(bx, by);
        worker.close();
      }
    });
  }
}

template <class T>
inline void note_hardest_positive(const Prepared<T>& p, AnchorState<T>& a, T d2, int64_t at) {
  a.positive_sum += p.from_squared(d2);
  if (d2 > a.hardest_positive) {
    a.hardest_positive = d2;
    a.positive_at = at;
  }
}

// The distance of the hardest positive, -inf for none.
template <class T>
inline T farthest_positive(const Prepared<T>& p, const AnchorState<T>& a) {
  return a.positive_at < 0 ? -kInf<T> : p.from_squared(a.hardest_positive);
}

// Calls visit(state, d2, position) for every positive pair, anchors in parallel.
template <class T, class Visit>
inline void sweep_positives(const Prepared<T>& p, AnchorState<T>* anchors, Visit visit) {
  parallel_for(p.row_threads, (p.x.n + 31) / 32, [&](int64_t block) {
    const int64_t last = block * 32 + 32 < p.x.n ? block * 32 + 32 : p.x.n;
    for (int64_t i = block * 32; i < last; ++i) {
      const T* row = p.x.row(i);
      const int64_t itself = p.itself(i);
      for (int64_t j = p.begin[i]; j < p.end[i]; ++j) {
        if (j != itself) visit(anchors[i], p.pair(row, p.y().row(j)), j);
      }
    }
  });
}

}  // namespace dmlap::cpu::DMLAP_ISA

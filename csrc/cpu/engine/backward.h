// The backward sweep over the negatives. Gradients are sums of weight * (x_i - x_j), so they are
// linear in the rows: dense tiles go through products with the weights, sparse ones and recomputed
// pairs through differences.
#pragma once

#include "engine/gradient.h"
#include "engine/problem.h"

namespace dmlap::cpu::DMLAP_ISA {

template <class T>
struct BackwardShared {
  const Prepared<T>* p;
  const uint8_t* active;
  const KeptTiles<T>* kept;  // the active tiles, or null: they are computed again
  GradientSide<T>* x;
  GradientSide<T>* y;  // == x in the self case
  Blocks rows, columns;
};

// A pair gradient gives the weights of negative pairs, d loss / d (x_i - x_j) over (x_i - x_j):
//   row(i)                 position of the anchor of the calls that follow
//   idle(d2) -> bool       every lane's weight is known to be 0
//   weight(d2, j) -> V     of the columns j, j + 1, ...; in the self case both anchors' shares
template <class T, class PairGradient>
class BackwardWorker {
  using P = Tile<T>;
  using V = typename P::V;
  static constexpr int W = P::kWidth;
  // Up to this many active pairs, a tile is cheaper pair by pair.
  static constexpr int kSparse = P::kRows * W / 16;

 public:
  BackwardWorker(const BackwardShared<T>& shared, const PairGradient& pair_gradient)
      : s_(shared),
        pair_gradient_(pair_gradient),
        weights_(W * W),
        panels_(*shared.p, *shared.x, *shared.y, !shared.p->products()) {}

  void operator()(int64_t block_x, int64_t block_y) {
    const Prepared<T>& p = *s_.p;
    for (int64_t py = s_.columns.begin(block_y); py < s_.columns.end(block_y); ++py) {
      for (int64_t px = s_.rows.begin(block_x); px < s_.rows.end(block_x); ++px) {
        if (p.self && px > py) break;
        const int64_t pair = panel_pair(px, py, s_.columns.panels, p.self);
        if (s_.active[pair]) panel(px, py, pair);
      }
    }
  }

 private:
  __attribute__((noinline)) void panel(int64_t px, int64_t py, int64_t pair) {
    const Prepared<T>& p = *s_.p;
    const uint8_t active = s_.active[pair];
    int first = P::kPerPanel, last = 0;  // the dense tiles lie in [first, last)
    for (int t = 0; t < P::kPerPanel; ++t) {
      T* w = weights_.get() + t * P::kRows * W;
      bool dense = false;
      if (active >> t & 1) {
        const int64_t i0 = px * W + t * P::kRows;
        DistanceTile<T> tile;
        if (s_.kept) {
          s_.kept->get(pair, t * P::kRows, tile);
        } else {
          const bool mixed = DistanceTile<T>::classes(p, i0, py) == DistanceTile<T>::Classes::mixed;
          tile.compute(p, px, t * P::kRows, py, mixed, p.self && px == py);
        }
        dense = weigh(tile, i0, py * W, w);
      }
      if (!dense) {
        fill(w, P::kRows * W, T(0));
        continue;
      }
      first = t < first ? t : first;
      last = t + 1;
    }
    if (first >= last) return;
    const int64_t rows = rows_in<T>(p.x, nullptr, px), stop = last * P::kRows;
    panels_.add({px, py, px, rows, rows_in<T>(p.y(), nullptr, py), first * P::kRows,
                 stop < rows ? stop : rows},
                weights_.get());
  }

  // Fills the tile's weights; false if they were few and have been applied pair by pair.
  bool weigh(const DistanceTile<T>& tile, int64_t i0, int64_t j0, T* w) {
    uint64_t some[P::kRows];  // columns of a weight other than 0
    int count = 0;
    for (int r = 0; r < P::kRows; ++r) {
      pair_gradient_.row(i0 + r);
      some[r] = 0;
      for (int c = 0; c < P::kVectors; ++c) {
        V v{};
        if (!pair_gradient_.idle(tile.d2[r][c])) {
          v = pair_gradient_.weight(tile.d2[r][c], j0 + c * P::kLanes);
          some[r] |= uint64_t{bits(v != V{})} << c * P::kLanes;
        }
        store(w + r * W + c * P::kLanes, v);
      }
      count += __builtin_popcountll(some[r]);
    }
    const bool sparse = count <= kSparse;
    if (sparse || tile.has_recomputed) {
      for (int r = 0; r < P::kRows; ++r) {
        for (uint64_t m = sparse ? some[r] : some[r] & tile.recomputed[r]; m; m &= m - 1) {
          const int c = __builtin_ctzll(m);
          apply_pair(i0 + r, j0 + c, w[r * W + c]);
          w[r * W + c] = 0;
        }
      }
    }
    return !sparse;
  }

  void apply_pair(int64_t i, int64_t j, T w) {
    const Prepared<T>& p = *s_.p;
    const Side<T>& y = p.y();
    add_pair(p, p.x.row(i), y.row(j), w, s_.x->out + p.x.order[i] * p.dim);
    if (!s_.y->wanted()) return;
    add_pair(p, y.row(j), p.x.row(i), w, s_.y->out + y.order[j] * p.dim);
  }

  BackwardShared<T> s_;
  PairGradient pair_gradient_;
  Buffer<T> weights_;
  PanelGradient<T> panels_;
};

// One side is short: each segment of the other has a copy of the short side's sums, and the copies
// are added in order. How many there are depends on nothing but the sizes.
template <class T, class PairGradient>
DMLAP_ONCE void sweep_backward_segments(const BackwardShared<T>& shared,
                                        const PairGradient& pair_gradient) {
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
      BackwardWorker<T, PairGradient> worker(own, pair_gradient);
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

// Adds the gradients of the negatives to those of the positives in gx.out and gy.out.
template <class T, class PairGradient>
DMLAP_ONCE void sweep_backward(const BackwardRows<T>& from, const uint8_t* active,
                               const PairGradient& pair_gradient, GradientSide<T>& gx,
                               GradientSide<T>& gy) {
  const Prepared<T>& p = from.get();
  gx.reset(p.x.panels, p.packed_dim);
  const bool references = !p.self && gy.wanted();
  if (references) gy.reset(p.y_storage.panels, p.packed_dim);
  const BackwardShared<T> shared{
      &p, active, from.tiles(), &gx, p.self ? &gx : &gy, Blocks(p.x.panels), Blocks(p.y().panels)};
  const int64_t rows = shared.rows.count, columns = shared.columns.count;
  const int64_t shorter = rows < columns ? rows : columns;
  if (!p.self && !references && rows >= 8) {
    parallel_tasks(p.threads, rows, [&](auto next) {
      BackwardWorker<T, PairGradient> worker(shared, pair_gradient);
      for (int64_t bx; (bx = next()) < rows;) {
        for (int64_t by = 0; by < columns; ++by) worker(bx, by);
      }
    });
  } else if (!p.self && shorter < 8 && shorter > 0 && rows + columns - shorter >= 16) {
    sweep_backward_segments(shared, pair_gradient);
  } else {
    Schedule schedule(rows, columns, p.self);
    schedule.run(p.threads,
                 [&](int) { return BackwardWorker<T, PairGradient>(shared, pair_gradient); });
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

// The backward sweep. Gradients are sums of weight * (x_i - x_j), so they are linear in the rows:
// dense tiles go through a product with the weights, near and lone pairs through their differences.
#pragma once

#include "losses.h"

namespace dmlap::cpu::DMLAP_ISA {

// grad d loss / d (sum of the terms of group g) of one anchor row.
template <class T>
struct Upstream {
  const T* grad;
  Reduction reduction;
  const SavedHeader* header;

  T at(int64_t row, int group, int64_t count) const {
    if (reduction == Reduction::none) return count > 0 ? grad[row] / T(count) : T(0);
    return static_cast<T>(double(*grad) / header->denominator[group]);
  }
};

template <class T>
inline void fill(T* out, int64_t n, T value) {
  for (int64_t i = 0; i < n; ++i) out[i] = value;
}

// out += w * (a - b)
template <class T>
inline void add_difference(const T* __restrict a, const T* __restrict b, T w, int64_t dim,
                           T* __restrict out) {
  constexpr int L = Simd<T>::kLanes;
  int64_t k = 0;
  for (; k + L <= dim; k += L) store(out + k, load(out + k) + w * (load(a + k) - load(b + k)));
  for (; k < dim; ++k) out[k] += w * (a[k] - b[k]);
}

template <class T>
inline bool poison_gradients(const Pairs<T>& pairs, const SavedHeader& header,
                             const BackwardArgs<T>& args) {
  if (header.poisoned == 0) return false;
  const T nan = std::numeric_limits<T>::quiet_NaN();
  fill(args.gx, pairs.x.n * pairs.dim, nan);
  if (args.gy != nullptr) fill(args.gy, pairs.y.n * pairs.dim, nan);
  return true;
}

// One triplet an anchor: gather and scatter in O(B * D). Threads own slices of the features, so
// every element is summed in the order of the anchors.
template <class T>
inline void backward_triplet_hard(const Pairs<T>& pairs, const LossOptions& options,
                                  const BackwardArgs<T>& args) {
  const int64_t n = pairs.x.n, dim = pairs.dim;
  const SavedTriplet<T> saved(const_cast<uint8_t*>(args.saved), n);
  if (poison_gradients(pairs, *saved.header, args)) return;
  Pairs<T> unlabelled = pairs;
  unlabelled.x.labels = unlabelled.y.labels = nullptr;
  Prepared<T> p;
  prepare(p, unlabelled, false);
  const Side<T>& y = p.y();
  T* gy = args.gy == nullptr ? args.gx : args.gy;
  const Upstream<T> upstream{args.grad, options.reduction, saved.header};
  constexpr int64_t kSlice = 64;
  const int threads = double(n) * double(dim) < (1 << 15) ? 1 : pairs.threads;
  parallel_for(threads, (dim + kSlice - 1) / kSlice, [&](int64_t slice) {
    const int64_t k0 = slice * kSlice, width = dim - k0 < kSlice ? dim - k0 : kSlice;
    for (int64_t i = 0; i < n; ++i) fill(args.gx + i * dim + k0, width, T(0));
    if (args.gy != nullptr) {
      for (int64_t j = 0; j < pairs.y.n; ++j) fill(args.gy + j * dim + k0, width, T(0));
    }
    for (int64_t i = 0; i < n; ++i) {
      const T c = upstream.at(i, 0, 1);
      const T pull = c * saved.pull[i], push = c * saved.push[i];
      if (saved.positive[i] < 0 || (pull == 0 && push == 0)) continue;
      const int64_t ip = saved.positive[i], in = saved.negative[i];
      const T* a = p.x.rows + i * p.x.stride + k0;
      const T* b = y.rows + ip * y.stride + k0;
      const T* e = y.rows + in * y.stride + k0;
      T* ga = args.gx + i * dim + k0;
      T* gb = gy + ip * dim + k0;
      T* ge = gy + in * dim + k0;
      const T* s = saved.swapped[i] ? b : a;
      T* gs = saved.swapped[i] ? gb : ga;
      for (int64_t k = 0; k < width; ++k) {
        const T toward = pull * (a[k] - b[k]);
        ga[k] += toward;
        gb[k] -= toward;
      }
      for (int64_t k = 0; k < width; ++k) {
        const T away = push * (s[k] - e[k]);
        gs[k] -= away;
        ge[k] += away;
      }
    }
  });
  if (!p.unit) return;
  through_normalize(p.x, dim, args.gx, p.threads);
  if (args.gy != nullptr) through_normalize(p.y_storage, dim, args.gy, p.threads);
}

// Where gradients gather while the sweep runs.
template <class T>
struct GradientSide {
  T* out = nullptr;       // [n][dim], original order: positives, near and lone pairs
  Buffer<T> weighted;     // [panels][packed_dim][kWidth]: sum_j w_ij x_j of the dense tiles
  Buffer<T> weight;       // [panels * kWidth]: sum_j w_ij of the dense tiles
  Buffer<T> coefficient;  // [panels * kWidth]: upstream of each anchor's negatives, 0 elsewhere

  void reset(int64_t panels, int64_t packed_dim) {
    constexpr int W = Tile<T>::kWidth;
    weighted.reset(panels * packed_dim * W);
    weighted.fill(panels * packed_dim * W, T(0));
    weight.reset(panels * W);
    weight.fill(panels * W, T(0));
    coefficient.reset(panels * W);
    coefficient.fill(panels * W, T(0));
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

// out[k][j lanes] += sum_i rows[k][i] * w[i][j lanes], i < count: a panel's weighted sums.
template <class T>
inline void weighted_sums(const T* rows, const T* w, int64_t first, int64_t count,
                          int64_t packed_dim, T* out) {
  using P = Tile<T>;
  using V = typename P::V;
  constexpr int W = P::kWidth;
  for (int64_t k = 0; k < packed_dim; k += P::kRows) {
    V acc[P::kRows][P::kVectors];
#pragma GCC unroll 8
    for (int m = 0; m < P::kRows; ++m) {
#pragma GCC unroll 3
      for (int c = 0; c < P::kVectors; ++c) acc[m][c] = load(out + (k + m) * W + c * P::kLanes);
    }
    for (int64_t i = first; i < first + count; ++i) {
      V wv[P::kVectors];
#pragma GCC unroll 3
      for (int c = 0; c < P::kVectors; ++c) wv[c] = load(w + i * W + c * P::kLanes);
#pragma GCC unroll 8
      for (int m = 0; m < P::kRows; ++m) {
        const V a = splat<T>(rows[(k + m) * W + i]);
#pragma GCC unroll 3
        for (int c = 0; c < P::kVectors; ++c) acc[m][c] += a * wv[c];
      }
    }
#pragma GCC unroll 8
    for (int m = 0; m < P::kRows; ++m) {
#pragma GCC unroll 3
      for (int c = 0; c < P::kVectors; ++c) store(out + (k + m) * W + c * P::kLanes, acc[m][c]);
    }
  }
}

template <class T, class Policy>
class BackwardWorker {
  using P = Tile<T>;
  using V = typename P::V;
  static constexpr int W = P::kWidth;
  // Up to this many active pairs, a tile is cheaper pair by pair.
  static constexpr int kLone = P::kRows * W / 16;

 public:
  BackwardWorker(const BackwardShared<T>& shared, const Policy& policy)
      : s_(shared),
        policy_(policy),
        weights_(W * W),
        transposed_(W * W),
        reach_(shared.p->to_squared(policy.reach())) {}

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
  void panel(int64_t px, int64_t py, uint8_t active) {
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
    if (first < last) apply(px, py, first * P::kRows, (last - first) * P::kRows);
  }

  // Fills the tile's weights; false if they were few and have been applied pair by pair.
  bool weigh(const DistanceTile<T>& tile, int64_t i0, int64_t j0, T* w) {
    const Prepared<T>& p = *s_.p;
    uint64_t some[P::kRows];  // columns of a weight other than 0
    int count = 0;
    for (int r = 0; r < P::kRows; ++r) {
      const V ci = splat<T>(s_.x->coefficient[i0 + r]);
      some[r] = 0;
      for (int c = 0; c < P::kVectors; ++c) {
        V v{};
        // Among tiles with an active pair most vectors have none.
        if (bits(tile.d2[r][c] < splat<T>(reach_))) {
          V coefficient = ci;
          if (p.self) coefficient += load(s_.x->coefficient.get() + j0 + c * P::kLanes);
          v = weight(tile.d2[r][c], coefficient);
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

  // d loss / d (x_i - x_j) over (x_i - x_j), for negatives.
  V weight(V d2, V coefficient) const {
    const Prepared<T>& p = *s_.p;
    const V d = p.from_squared(d2);
    const V v = -coefficient * policy_.slope(policy_.negative_violation(d));
    const V scaled = p.euclidean() ? (d > 0 ? v / d : V{}) : v * (2 * p.linear());
    return d2 < kInf<T> ? scaled : V{};
  }

  void apply_pair(int64_t i, int64_t j, T w) {
    const Prepared<T>& p = *s_.p;
    const Side<T>& y = p.y();
    add_difference(p.x.row(i), y.row(j), w, p.dim, s_.x->out + p.x.order[i] * p.dim);
    add_difference(y.row(j), p.x.row(i), w, p.dim, s_.y->out + y.order[j] * p.dim);
  }

  void apply(int64_t px, int64_t py, int first, int count) {
    const Prepared<T>& p = *s_.p;
    const int64_t size = p.packed_dim * W;
    T* w = weights_.get();
    T* wt = transposed_.get();
    T* row_weight = s_.x->weight.get() + px * W;
    T* column_weight = s_.y->weight.get() + py * W;
    V columns[P::kVectors] = {};
    for (int i = first; i < first + count; ++i) {
      V sum{};
      for (int c = 0; c < P::kVectors; ++c) {
        const V v = load(w + i * W + c * P::kLanes);
        sum += v;
        columns[c] += v;
      }
      row_weight[i] += sum_lanes<T>(sum);
    }
    for (int c = 0; c < P::kVectors; ++c) {
      T* at = column_weight + c * P::kLanes;
      store(at, load(at) + columns[c]);
    }
    const T* xp = p.x.packed.get() + px * size;
    const T* yp = p.y().packed.get() + py * size;
    weighted_sums(xp, w, first, count, p.packed_dim, s_.y->weighted.get() + py * size);
    for (int i = 0; i < first; ++i) fill(w + i * W, W, T(0));
    for (int i = 0; i < W; ++i) {
      for (int j = 0; j < W; ++j) wt[j * W + i] = w[i * W + j];
    }
    weighted_sums(yp, wt, 0, W, p.packed_dim, s_.x->weighted.get() + px * size);
  }

  BackwardShared<T> s_;
  Policy policy_;
  Buffer<T> weights_, transposed_;
  T reach_;
};

// out += weight_i x_i - sum_j w_ij x_j, and back through the normalisation.
template <class T>
inline void finish_gradient(const Prepared<T>& p, const Side<T>& side, GradientSide<T>& g) {
  constexpr int W = Tile<T>::kWidth;
  parallel_for(p.threads, side.panels, [&](int64_t panel) {
    const T* x = side.packed.get() + panel * p.packed_dim * W;
    const T* s = g.weighted.get() + panel * p.packed_dim * W;
    for (int64_t r = 0; r < W && panel * W + r < side.n; ++r) {
      const T weight = g.weight[panel * W + r];
      T* out = g.out + side.order[panel * W + r] * p.dim;
      for (int64_t k = 0; k < p.dim; ++k) out[k] += weight * x[k * W + r] - s[k * W + r];
    }
  });
  if (p.unit) through_normalize(side, p.dim, g.out, p.threads);
}

// out += sum over positives of w (x_i - x_p), each anchor on its own. In the self case the pair
// belongs to both anchors, so both coefficients stand in its weight.
template <class T, class Policy>
inline void positive_gradients(const Prepared<T>& p, const Policy& policy, const T* x_coefficient,
                               GradientSide<T>& gx, GradientSide<T>* gy) {
  const Side<T>& y = p.y();
  parallel_for(p.threads, (p.x.n + 31) / 32, [&](int64_t block) {
    const int64_t last = block * 32 + 32 < p.x.n ? block * 32 + 32 : p.x.n;
    for (int64_t i = block * 32; i < last; ++i) {
      T* out = gx.out + p.x.order[i] * p.dim;
      fill(out, p.dim, T(0));
      const T* a = p.x.row(i);
      for (int64_t j = p.begin[i]; j < p.end[i]; ++j) {
        if (p.self && i == j) continue;
        const T* b = y.row(j);
        const T d = p.from_squared(p.pair(a, b));
        const T c = x_coefficient[i] + (p.self ? x_coefficient[j] : T(0));
        const T w = c * policy.slope(policy.positive_violation(d)) * p.factor(d);
        add_difference(a, b, w, p.dim, out);
      }
    }
  });
  if (gy == nullptr) return;
  // The references' side: the anchors of a class are one run as well.
  Buffer<int64_t> first(p.ranks + 1);
  first.fill(p.ranks + 1, p.x.n);
  for (int64_t i = p.x.n - 1; i >= 0; --i) first[p.x.rank[i]] = i;
  parallel_for(p.threads, (y.n + 31) / 32, [&](int64_t block) {
    const int64_t last = block * 32 + 32 < y.n ? block * 32 + 32 : y.n;
    for (int64_t j = block * 32; j < last; ++j) {
      T* out = gy->out + y.order[j] * p.dim;
      fill(out, p.dim, T(0));
      const T* b = y.row(j);
      for (int64_t i = first[y.rank[j]]; i < p.x.n && p.x.rank[i] == y.rank[j]; ++i) {
        const T* a = p.x.row(i);
        const T d = p.from_squared(p.pair(a, b));
        const T w = x_coefficient[i] * policy.slope(policy.positive_violation(d)) * p.factor(d);
        add_difference(b, a, w, p.dim, out);
      }
    }
  });
}

template <class T, class Policy>
inline void backward_pairwise(const Pairs<T>& pairs, const LossOptions& options,
                              const BackwardArgs<T>& args) {
  const Policy policy(options.params);
  const SavedPairwise<T> saved(const_cast<uint8_t*>(args.saved));
  if (poison_gradients(pairs, *saved.header, args)) return;
  Prepared<T> p;
  prepare(p, pairs, true);
  GradientSide<T> gx, gy;
  gx.out = args.gx;
  gy.out = args.gy;
  gx.reset(p.x.panels, p.packed_dim);
  if (!p.self) gy.reset(p.y_storage.panels, p.packed_dim);

  const Upstream<T> upstream{args.grad, options.reduction, saved.header};
  Buffer<T> positive(p.x.n);
  for (int64_t i = 0; i < p.x.n; ++i) {
    const int64_t row = p.x.order[i];
    positive[i] = upstream.at(row, 0, positives_of(p, i));
    gx.coefficient[i] = upstream.at(row, 1, negatives_of(p, i));
  }
  positive_gradients(p, policy, positive.get(), gx, p.self ? nullptr : &gy);

  const BackwardShared<T> shared{
      &p, saved.active, &gx, p.self ? &gx : &gy, Blocks(p.x.panels), Blocks(p.y().panels)};
  Schedule schedule(shared.rows.count, shared.columns.count, p.self);
  schedule.run(p.threads, [&](int) { return BackwardWorker<T, Policy>(shared, policy); });

  finish_gradient(p, p.x, gx);
  if (!p.self) finish_gradient(p, p.y_storage, gy);
}

template <class T>
struct TripletHardKernels {
  static size_t saved_bytes(const Pairs<T>& pairs, const LossOptions&) {
    return SavedTriplet<T>::bytes(pairs.x.n);
  }
  static void forward(const Pairs<T>& pairs, const LossOptions& options, const ForwardOut<T>& out) {
    forward_triplet_hard(pairs, options, out);
  }
  static void backward(const Pairs<T>& pairs, const LossOptions& options,
                       const BackwardArgs<T>& args) {
    backward_triplet_hard(pairs, options, args);
  }
};

template <class T, class Policy>
struct PairwiseKernels {
  static size_t saved_bytes(const Pairs<T>& pairs, const LossOptions&) {
    return SavedPairwise<T>::bytes(pairs.x.n, pairs.y.n, pairs.self);
  }
  static void forward(const Pairs<T>& pairs, const LossOptions& options, const ForwardOut<T>& out) {
    forward_pairwise<T, Policy>(pairs, options, out);
  }
  static void backward(const Pairs<T>& pairs, const LossOptions& options,
                       const BackwardArgs<T>& args) {
    backward_pairwise<T, Policy>(pairs, options, args);
  }
};

}  // namespace dmlap::cpu::DMLAP_ISA

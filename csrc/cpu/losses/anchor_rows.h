// Anchors one by one, each with its distances to every reference. For losses that sort or draw
// negatives, and for anchors with more positives than a sweep can hold.
#pragma once

#include "losses/mined_triplets.h"

namespace dmlap::cpu::DMLAP_ISA {

// A distance as an integer that sorts the same way, and its position.
template <class T>
struct Keyed {
  using Int = typename Simd<T>::Int;
  Int key, at;

  // The bits of numbers that are not negative sort like the numbers.
  Keyed() = default;
  Keyed(T value, int64_t position) : at(static_cast<Int>(position)) {
    const T clamped = value < 0 ? T(0) : value;
    std::memcpy(&key, &clamped, sizeof key);
  }
  T value() const {
    T v;
    std::memcpy(&v, &key, sizeof v);
    return v;
  }
};

// Radix sort from the lowest digit. Linear in the length of a row, and stable.
template <class T>
class Sorter {
  static constexpr int kBits = 8;
  static constexpr int64_t kBuckets = int64_t{1} << kBits;

 public:
  explicit Sorter(int64_t capacity) : a_(capacity), b_(capacity), start_(kBuckets) {}

  // Ascending; valid until the next call.
  const Keyed<T>* sort(const T* values, int64_t n) {
    Keyed<T>*from = a_.get(), *to = b_.get();
    for (int64_t i = 0; i < n; ++i) from[i] = Keyed<T>(values[i], i);
    for (int shift = 0; shift < int(8 * sizeof(T)); shift += kBits) {
      const auto digit = [shift](const Keyed<T>& k) {
        return static_cast<uint64_t>(k.key) >> shift & (kBuckets - 1);
      };
      start_.fill(kBuckets, 0);
      for (int64_t i = 0; i < n; ++i) start_[digit(from[i])] += 1;
      if (n == 0 || start_[digit(from[0])] == n) continue;
      int64_t sum = 0;
      for (int64_t b = 0; b < kBuckets; ++b) {
        const int64_t count = start_[b];
        start_[b] = sum;
        sum += count;
      }
      for (int64_t i = 0; i < n; ++i) to[start_[digit(from[i])]++] = from[i];
      Keyed<T>* t = from;
      from = to;
      to = t;
    }
    return from;
  }

 private:
  Buffer<Keyed<T>> a_, b_;
  Buffer<int64_t> start_;
};

// The squared distances of the anchors of one tile row to every reference, positives included.
template <class T>
class DistanceRows {
  using P = Tile<T>;
  static constexpr int64_t W = P::kWidth;

 public:
  explicit DistanceRows(const Prepared<T>& p)
      : p_(p),
        panels_(p.y().panels),
        d2_(P::kRows * panels_ * W),
        recomputed_(P::kRows * panels_) {}

  void compute(int64_t i0) {
    i0_ = i0;
    for (int64_t py = 0; py < panels_; ++py) {
      DistanceTile<T> tile;
      tile.compute(p_, i0 / W, i0 % W, py, false, false);
      for (int r = 0; r < P::kRows; ++r) {
        for (int c = 0; c < P::kVectors; ++c) {
          store(d2_.get() + (r * panels_ + py) * W + c * P::kLanes, tile.d2[r][c]);
        }
        recomputed_[r * panels_ + py] = tile.has_recomputed ? tile.recomputed[r] : 0;
      }
    }
  }
  // [y.n]
  const T* of(int64_t anchor) const { return d2_.get() + (anchor - i0_) * panels_ * W; }
  // [y.panels] a bit for each reference whose distance was taken from differences.
  const uint64_t* recomputed(int64_t row) const { return recomputed_.get() + row * panels_; }

 private:
  const Prepared<T>& p_;
  int64_t panels_, i0_ = 0;
  Buffer<T> d2_;
  Buffer<uint64_t> recomputed_;
};

// Calls f(miner, anchor, its squared distances) for each anchor for which wanted(anchor) is true,
// and computes only their tile rows. Each thread makes one `Miner` from the problem.
template <class T, class Miner, class Wanted, class F>
inline void each_anchor_row(const Prepared<T>& p, const LossOptions& options, Wanted wanted, F f) {
  using P = Tile<T>;
  const int64_t tile_rows = (p.x.n + P::kRows - 1) / P::kRows;
  const int64_t workers = p.threads < tile_rows ? p.threads : tile_rows;
  parallel_for(p.threads, workers, [&](int64_t worker) {
    DistanceRows<T> rows(p);
    Miner miner(p, options);
    for (int64_t t = worker; t < tile_rows; t += workers) {
      const int64_t i0 = t * P::kRows, stop = i0 + P::kRows < p.x.n ? i0 + P::kRows : p.x.n;
      bool any = false;
      for (int64_t i = i0; i < stop; ++i) any |= wanted(i);
      if (!any) continue;
      rows.compute(i0);
      for (int64_t i = i0; i < stop; ++i) {
        if (wanted(i)) f(miner, i, rows.of(i));
      }
    }
  });
}

// A pair of references whose distance replaces that of the anchor and a negative (`swap`).
template <class T>
struct SwappedPair {
  int64_t positive, negative;
  T push;
};

// Triplets of one anchor with one negative per positive. Choice::choose(anchor, d2) returns their
// number and writes their positions to `positive` and `negative`.
template <class T, class Choice>
class RowMiner {
 public:
  RowMiner(const Prepared<T>& p, const LossOptions& options)
      : p_(p), policy_(options.params), choice_(p, options) {}

  int64_t choose(int64_t i, const T* d2) { return choice_.choose(i, d2); }
  int64_t positive(int64_t m) const { return choice_.positive[m]; }
  int64_t negative(int64_t m) const { return choice_.negative[m]; }

  void add(int64_t i, const T* d2, TermSums& totals) {
    const int64_t n = choose(i, d2);
    for (int64_t m = 0; m < n; ++m) totals.add(chosen(i, d2, m).terms());
  }

  // See AnchorBlocks.
  int64_t weigh(int64_t i, const T* d2, const Upstream<T>& upstream, T* w,
                SwappedPair<T>* swapped) {
    const int64_t n = choose(i, d2);
    const T c = upstream.at(p_.x.order[i], 0, n);
    int64_t swaps = 0;
    for (int64_t m = 0; m < n; ++m) {
      const ChosenTriplet<T> t = chosen(i, d2, m);
      if (t.pull == 0) continue;
      const T factor = c * p_.factor(t.d_n), between = factor * t.between;
      w[positive(m)] += c * t.pull * p_.factor(p_.from_squared(d2[positive(m)]));
      w[negative(m)] -= factor * t.push;
      if (between != 0) swapped[swaps++] = {positive(m), negative(m), between};
    }
    return swaps;
  }

 private:
  // All distances that a swap compares come from differences, so that ties are exact.
  ChosenTriplet<T> chosen(int64_t i, const T* d2, int64_t m) const {
    const T d_ap = p_.from_squared(d2[positive(m)]);
    if (!policy_.swap) return {policy_, d_ap, p_.from_squared(d2[negative(m)]), kInf<T>};
    const T *b = p_.y().row(positive(m)), *e = p_.y().row(negative(m));
    return {policy_, d_ap, p_.from_squared(p_.pair(p_.x.row(i), e)),
            p_.from_squared(p_.pair(b, e))};
  }

  const Prepared<T>& p_;
  Triplet<T> policy_;
  Choice choice_;
};

// The gradient of anchors with many positives, a few panels of anchors at a time. Their pair
// weights are stored as rows of tiles. Dense tiles become products; pairs of sparse tiles and
// recomputed pairs are added by differences.
//
// Miner::weigh(anchor, d2, upstream, w, swapped) writes the factors c of d loss / d x_i =
// sum_j c_j (x_i - y_j) to w [y.n], and returns the number of pairs it wrote to `swapped`.
template <class T, class Miner>
class AnchorBlocks {
  using P = Tile<T>;
  using V = typename P::V;
  static constexpr int64_t W = P::kWidth;
  static constexpr int kSparse = P::kRows * W / 16;
  static constexpr int64_t kBytes = int64_t{12} << 20;

 public:
  AnchorBlocks(const Prepared<T>& p, const LossOptions& options, GradientSide<T>& gx,
               GradientSide<T>& gy)
      : p_(p), options_(options), gx_(gx), gy_(gy), y_panels_(p.y().panels) {
    const int64_t panel_bytes = W * y_panels_ * W * int64_t{sizeof(T)};
    held_ = kBytes / (panel_bytes > 0 ? panel_bytes : 1);
    held_ = held_ < 1 ? 1 : (held_ > p.x.panels ? p.x.panels : held_);
    weights_.reset(held_ * y_panels_ * W * W);
    pairwise_.reset(held_ * W * y_panels_);
    dense_.reset(held_ * P::kPerPanel * y_panels_);
    swap_ = options.params[2] != 0;
    if (swap_) swapped_first_.reset(held_ * W + 1);
  }

  void run(const Upstream<T>& upstream) {
    for (int64_t first = 0; first < p_.x.panels; first += held_) {
      panels_ = p_.x.panels - first < held_ ? p_.x.panels - first : held_;
      first_panel_ = first;
      if (!any_many()) continue;
      if (swap_) make_room();
      weigh(upstream);
      feature_slices(p_.threads, p_.dim, [&](int64_t k0, int64_t width) { pairwise(k0, width); });
      parallel_for(p_.threads, y_panels_, [&](int64_t py) { to_references(py); });
      parallel_for(p_.threads, panels_, [&](int64_t px) { to_anchors(px); });
    }
  }

 private:
  int64_t tile_rows() const { return panels_ * P::kPerPanel; }
  T* tile(int64_t tile_row, int64_t py) const {
    const int64_t panel = tile_row / P::kPerPanel, t = tile_row % P::kPerPanel;
    return weights_.get() + ((panel * y_panels_ + py) * W + t * P::kRows) * W;
  }
  int64_t last_anchor() const {
    const int64_t stop = (first_panel_ + panels_) * W;
    return stop < p_.x.n ? stop : p_.x.n;
  }
  bool any_many() const {
    for (int64_t i = first_panel_ * W; i < last_anchor(); ++i) {
      if (many_positives(p_, i) > 0) return true;
    }
    return false;
  }

  void make_room() {
    swapped_first_[0] = 0;
    for (int64_t i = 0; i < panels_ * W; ++i) {
      const int64_t anchor = first_panel_ * W + i;
      const int64_t n = anchor < p_.x.n ? many_positives(p_, anchor) : 0;
      swapped_first_[i + 1] = swapped_first_[i] + n;
    }
    swapped_.reset(swapped_first_[panels_ * W]);
    swapped_count_.reset(panels_ * W);
    swapped_count_.fill(panels_ * W, 0);
  }

  void weigh(const Upstream<T>& upstream) {
    const int64_t workers = p_.threads < tile_rows() ? p_.threads : tile_rows();
    parallel_for(p_.threads, workers, [&](int64_t worker) {
      DistanceRows<T> rows(p_);
      Miner miner(p_, options_);
      Buffer<T> w(P::kRows * y_panels_ * W);
      for (int64_t t = worker; t < tile_rows(); t += workers) {
        const int64_t i0 = first_panel_ * W + t * P::kRows;
        bool any = false;
        for (int64_t i = i0; i < i0 + P::kRows && i < p_.x.n; ++i) any |= many_positives(p_, i) > 0;
        fill(dense_.get() + t * y_panels_, y_panels_, uint8_t{0});
        fill(pairwise_.get() + t * P::kRows * y_panels_, P::kRows * y_panels_, uint64_t{0});
        if (!any) continue;
        rows.compute(i0);
        fill(w.get(), P::kRows * y_panels_ * W, T(0));
        for (int64_t i = i0; i < i0 + P::kRows && i < p_.x.n; ++i) {
          if (many_positives(p_, i) == 0) continue;
          const int64_t held = i - first_panel_ * W;
          SwappedPair<T>* pairs = swap_ ? swapped_.get() + swapped_first_[held] : nullptr;
          const int64_t n =
              miner.weigh(i, rows.of(i), upstream, w.get() + (i - i0) * y_panels_ * W, pairs);
          if (swap_) swapped_count_[held] = n;
        }
        for (int64_t py = 0; py < y_panels_; ++py) lay_out(t, py, w.get(), rows);
      }
    });
  }

  // Copies a tile's weights. Notes whether it is dense, and which pairs are added one by one.
  void lay_out(int64_t tile_row, int64_t py, const T* w, const DistanceRows<T>& rows) {
    T* out = tile(tile_row, py);
    uint64_t some[P::kRows];
    int count = 0;
    for (int r = 0; r < P::kRows; ++r) {
      some[r] = 0;
      for (int c = 0; c < P::kVectors; ++c) {
        const V v = load(w + (r * y_panels_ + py) * W + c * P::kLanes);
        store(out + r * W + c * P::kLanes, v);
        some[r] |= uint64_t{bits(v != V{})} << c * P::kLanes;
      }
      count += __builtin_popcountll(some[r]);
    }
    const bool dense = count > kSparse;
    dense_[tile_row * y_panels_ + py] = dense;
    for (int r = 0; r < P::kRows; ++r) {
      uint64_t& pairwise = pairwise_[(tile_row * P::kRows + r) * y_panels_ + py];
      pairwise = dense ? some[r] & rows.recomputed(r)[py] : some[r];
    }
  }

  // Adds pairs one by one, for a slice of the features.
  void pairwise(int64_t k0, int64_t width) {
    const Side<T>& y = p_.y();
    for (int64_t i = first_panel_ * W; i < last_anchor(); ++i) {
      const int64_t held = i - first_panel_ * W;
      const T* a = p_.x.row(i) + k0;
      T* ga = gx_.out + p_.x.order[i] * p_.dim + k0;
      for (int64_t py = 0; py < y_panels_; ++py) {
        const T* w = tile(held / P::kRows, py) + held % P::kRows * W;
        for (uint64_t m = pairwise_[held * y_panels_ + py]; m; m &= m - 1) {
          const int64_t j = py * W + __builtin_ctzll(m);
          if (p_.self && i == j) continue;
          scatter_pair(p_, a, y.row(j) + k0, w[j - py * W], width, ga,
                       gy_.out + y.order[j] * p_.dim + k0);
        }
      }
      if (!swap_) continue;
      for (int64_t s = swapped_first_[held]; s < swapped_first_[held] + swapped_count_[held]; ++s) {
        const int64_t b = swapped_[s].positive, e = swapped_[s].negative;
        scatter_pair(p_, y.row(b) + k0, y.row(e) + k0, -swapped_[s].push, width,
                     gy_.out + y.order[b] * p_.dim + k0, gy_.out + y.order[e] * p_.dim + k0);
      }
    }
  }

  // The weights of a dense tile, without those of pairs added one by one.
  void drop_pairwise(int64_t tile_row, int64_t py) {
    T* w = tile(tile_row, py);
    for (int r = 0; r < P::kRows; ++r) {
      for (uint64_t m = pairwise_[(tile_row * P::kRows + r) * y_panels_ + py]; m; m &= m - 1) {
        w[r * W + __builtin_ctzll(m)] = 0;
      }
    }
  }

  void to_references(int64_t py) {
    const int64_t size = p_.packed_dim * W;
    T* column_weight = gy_.weight.get() + py * W;
    for (int64_t t = 0; t < tile_rows(); ++t) {
      if (!dense_[t * y_panels_ + py]) continue;
      drop_pairwise(t, py);
      const T* w = tile(t, py);
      for (int64_t k = 0; !p_.products() && k < P::kRows * W; ++k) column_weight[k % W] += w[k];
      const int64_t panel = t / P::kPerPanel, row = t % P::kPerPanel * P::kRows;
      weighted_sums(p_.x.packed.get() + (first_panel_ + panel) * size, w - row * W, row,
                    int64_t{P::kRows}, p_.packed_dim, gy_.weighted.get() + py * size);
    }
  }

  void to_anchors(int64_t panel) {
    const int64_t size = p_.packed_dim * W, px = first_panel_ + panel;
    Buffer<T> transposed(W * W);
    for (int64_t py = 0; py < y_panels_; ++py) {
      bool any = false;
      for (int64_t t = 0; t < P::kPerPanel; ++t) {
        const int64_t tile_row = panel * P::kPerPanel + t;
        const bool dense = dense_[tile_row * y_panels_ + py];
        any |= dense;
        const T* w = tile(tile_row, py);
        for (int64_t r = 0; r < P::kRows; ++r) {
          const int64_t i = t * P::kRows + r;
          T sum = 0;
          for (int64_t j = 0; j < W; ++j) {
            const T v = dense ? w[r * W + j] : T(0);
            transposed[j * W + i] = v;
            sum += v;
          }
          if (!p_.products()) gx_.weight[px * W + i] += sum;
        }
      }
      if (!any) continue;
      weighted_sums(p_.y().packed.get() + py * size, transposed.get(), int64_t{0}, W, p_.packed_dim,
                    gx_.weighted.get() + px * size);
    }
  }

  const Prepared<T>& p_;
  const LossOptions& options_;
  GradientSide<T>& gx_;
  GradientSide<T>& gy_;  // gx_ in the self case
  int64_t y_panels_, held_, panels_ = 0, first_panel_ = 0;
  bool swap_;
  Buffer<T> weights_;          // [held panels][y panels][W][W]
  Buffer<uint64_t> pairwise_;  // [held panels * W][y panels] one bit per column
  Buffer<uint8_t> dense_;      // [held panels * kPerPanel][y panels]
  Buffer<int64_t> swapped_first_, swapped_count_;
  Buffer<SwappedPair<T>> swapped_;
};

// The gradient of mined triplets: scattered for few positives, by AnchorBlocks for many.
template <class T, class Choice>
inline void backward_mined(const Prepared<T>& p, const MinedTriplets<T>& mined,
                           const LossOptions& options, const BackwardArgs<T>& args) {
  const Upstream<T> upstream(options, args);
  scatter_triplets(p, mined, args, [&](int64_t i, int64_t row) {
    return upstream.at(row, 0, mined.first[i + 1] - mined.first[i]);
  });
  if (any_many_positives(p)) {
    GradientSide<T> gx, gy;
    gx.out = args.gx;
    gy.out = args.gy;
    gx.reset(p.x.panels, p.packed_dim);
    if (!p.self) gy.reset(p.y_storage.panels, p.packed_dim);
    AnchorBlocks<T, RowMiner<T, Choice>>(p, options, gx, p.self ? gx : gy).run(upstream);
    finish_gradient(p, p.x, gx);
    if (!p.self) finish_gradient(p, p.y_storage, gy);
    return;
  }
  if (!p.unit) return;
  through_normalize(p.x, p.dim, args.gx, p.threads);
  if (!p.self) through_normalize(p.y_storage, p.dim, args.gy, p.threads);
}

}  // namespace dmlap::cpu::DMLAP_ISA

// One triplet an anchor, batch-hard or with the easiest positive: the negatives by one sweep;
// backward gathers and scatters.
#pragma once

#include "losses/mined_triplets.h"

namespace dmlap::cpu::DMLAP_ISA {

// By anchor row: the rows of its triplet and their pair weights.
template <class T>
struct SavedTriplet {
  int64_t* positive;  // [n] row of y, -1 where the anchor has no term
  int64_t* negative;  // [n]
  T* pull;            // [n] d term / d d_ap * factor of the pair (anchor, positive)
  T* push;            // [n] the same for (anchor, negative)
  T* between;         // [n] and for (positive, negative), with `swap`

  static constexpr SavedSize size() {
    return {sizeof(SavedHeader), 2 * sizeof(int64_t) + 3 * sizeof(T)};
  }
  SavedTriplet(uint8_t* base, int64_t n) {
    positive = reinterpret_cast<int64_t*>(base + sizeof(SavedHeader));
    negative = positive + n;
    pull = reinterpret_cast<T*>(negative + n);
    push = pull + n;
    between = push + n;
  }
};

// Whom an anchor meets.
enum class Mining {
  hard,                    // the farthest positive, the nearest negative (1703.07737)
  easy_positive,           // the nearest of both (1904.04370)
  easy_positive_semihard,  // the nearest positive, the nearest negative beyond it, if there is one
};

// The nearest negative of every anchor beyond a squared distance of its own.
template <class T>
class BeyondAccumulator {
  using P = Tile<T>;
  using V = typename P::V;
  using Best = NearestNegatives<T>;

 public:
  struct Options {
    const T* above;  // [x.panels * kWidth]
  };

  BeyondAccumulator(const ForwardShared<T>& shared, const Options& options)
      : s_(shared), o_(options), rows_(shared.rows.per_block * P::kWidth) {}

  void open_rows(int64_t n) {
    for (int64_t i = 0; i < n; ++i) rows_[i].clear();
  }
  void open_columns() {
    for (Best& c : columns_) c.clear();
  }
  bool take(const DistanceTile<T>& tile, const TilePlace& at) {
    const V none = splat<T>(kInf<T>);
    for (int r = 0; r < P::kRows; ++r) {
      const V above = splat<T>(o_.above[at.i0 + r]);
      for (int c = 0; c < P::kVectors; ++c) {
        const V d2 = tile.d2[r][c];
        const int64_t j = at.j0 + c * P::kLanes;
        rows_[at.row + r].offer(d2 > above ? d2 : none, iota<T>() + splat_int<T>(j));
        if (!s_.both()) continue;
        columns_[c].offer(d2 > load(o_.above + j) ? d2 : none, splat_int<T>(at.i0 + r));
      }
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
  Options o_;
  Buffer<Best> rows_;
  Best columns_[P::kVectors];
};

template <class T, Mining kMining = Mining::hard>
struct TripletHardKernels {
  static constexpr bool kSkipsReferences = true;

  static constexpr SavedSize saved_size(bool) { return SavedTriplet<T>::size(); }

  static void forward(const Pairs<T>& pairs, const LossOptions& options, const ForwardOut<T>& out) {
    const Triplet<T> policy(options.params);
    const bool stats = out.stat_counts != nullptr;
    const ForwardState<T> state(pairs);
    const Prepared<T>& p = state.p;
    const Buffer<AnchorState<T>>& anchors = state.anchors;
    SavedTriplet<T> saved(out.saved, p.x.n);

    const Chosen chosen(state, stats);

    // The chosen pairs are recomputed from differences.
    parallel_for(p.row_threads, p.x.n, [&](int64_t i) {
      AnchorState<T>& a = anchors[i];
      const int64_t row = p.x.order[i];
      saved.positive[row] = saved.negative[row] = -1;
      saved.pull[row] = saved.push[row] = saved.between[row] = 0;
      if (out.thresholds) out.thresholds[row] = policy.threshold(farthest_positive(p, a));
      const int64_t positive_at = chosen.positive[i], negative_at = chosen.negative[i];
      if (positive_at < 0 || negative_at < 0) return;
      const T* positive = p.y().row(positive_at);
      const T* negative = p.y().row(negative_at);
      const T d_ap = p.from_squared(p.pair(p.x.row(i), positive));
      const T d_an = p.from_squared(p.pair(p.x.row(i), negative));
      const T d_pn = policy.swap ? p.from_squared(p.pair(positive, negative)) : kInf<T>;
      const ChosenTriplet<T> t(policy, d_ap, d_an, d_pn);
      a.terms[0] = t.terms();
      saved.positive[row] = p.y().order[positive_at];
      saved.negative[row] = p.y().order[negative_at];
      saved.pull[row] = t.pull * p.factor(d_ap);
      saved.push[row] = t.push * p.factor(t.d_n);
      saved.between[row] = t.between * p.factor(t.d_n);
    });

    Epilogue<T> end(options.reduction, p.nonfinite, out);
    for (int64_t i = 0; i < p.x.n; ++i) end.add(p.x.order[i], &anchors[i].terms[0]);
    end.write();
    if (stats) write_statistics(state, out);
  }

  // One triplet per anchor: gather and scatter in O(B * D). Threads own slices of the features, so
  // each element is summed in the order of the anchors.
  static void backward(const Pairs<T>& pairs, const LossOptions& options,
                       const BackwardArgs<T>& args) {
    const int64_t n = pairs.x.n, dim = pairs.dim;
    const SavedTriplet<T> saved(const_cast<uint8_t*>(args.saved), n);
    if (nonfinite_gradients(pairs, args)) return;
    Pairs<T> unlabelled = pairs;
    unlabelled.x.labels = unlabelled.y.labels = nullptr;
    Prepared<T> p;
    prepare(p, unlabelled, false);
    const Side<T>& y = p.y();
    T* gy = pairs.self ? args.gx : args.gy;
    const Upstream<T> upstream(options, args);
    constexpr int64_t kSlice = 64;
    const int threads = double(n) * double(dim) < (1 << 15) ? 1 : pairs.threads;
    parallel_for(threads, (dim + kSlice - 1) / kSlice, [&](int64_t slice) {
      const int64_t k0 = slice * kSlice, width = dim - k0 < kSlice ? dim - k0 : kSlice;
      for (int64_t i = 0; i < n; ++i) fill(args.gx + i * dim + k0, width, T(0));
      if (args.gy != nullptr) {
        for (int64_t j = 0; j < pairs.y.n; ++j) fill(args.gy + j * dim + k0, width, T(0));
      }
      for (int64_t i = 0; i < n; ++i) {
        if (saved.positive[i] < 0) continue;
        const T c = upstream.at(i, 0, 1);
        const T pull = c * saved.pull[i], push = c * saved.push[i], between = c * saved.between[i];
        const int64_t ip = saved.positive[i], in = saved.negative[i];
        const T* a = p.x.rows + i * p.x.stride + k0;
        const T* b = y.rows + ip * y.stride + k0;
        const T* e = y.rows + in * y.stride + k0;
        T* ga = args.gx + i * dim + k0;
        T* gb = gy == nullptr ? nullptr : gy + ip * dim + k0;
        T* ge = gy == nullptr ? nullptr : gy + in * dim + k0;
        if (pull != 0) scatter_pair(p, a, b, pull, width, ga, gb);
        if (push != 0) scatter_pair(p, a, e, -push, width, ga, ge);
        if (between != 0 && gy != nullptr) scatter_pair(p, b, e, -between, width, gb, ge);
      }
    });
    if (!p.unit) return;
    through_normalize(p.x, dim, args.gx, p.row_threads);
    if (args.gy != nullptr) through_normalize(p.y_storage, dim, args.gy, p.row_threads);
  }

 private:
  // Positions of the mined positives and negatives, -1 for none. The states of the anchors have
  // what the statistics need.
  struct Chosen {
    Buffer<int64_t> positive, negative;  // [x.n]
    Buffer<T> d2;                        // [x.panels * kWidth] of the positive, +inf for none

    Chosen(const ForwardState<T>& state, bool stats) {
      const Prepared<T>& p = state.p;
      AnchorState<T>* anchors = state.anchors.get();
      const int64_t padded = p.x.panels * Tile<T>::kWidth;
      positive.reset(p.x.n);
      negative.reset(p.x.n);
      d2.reset(padded);
      positive.fill(p.x.n, int64_t{-1});
      d2.fill(padded, kInf<T>);
      if (kMining == Mining::hard || stats) {
        sweep_positives(p, anchors, [&](AnchorState<T>& a, T v, int64_t at) {
          note_hardest_positive(p, a, v, at);
        });
      }
      if constexpr (kMining != Mining::hard) {
        parallel_for(p.row_threads, p.x.panels * Tile<T>::kPerPanel,
                     [&](int64_t rows) { find_nearest(p, rows * Tile<T>::kRows); });
      }
      const ForwardShared<T> shared = state.shared(nullptr);
      if constexpr (kMining == Mining::easy_positive_semihard) {
        sweep_negatives<T, BeyondAccumulator<T>>(shared, {d2.get()});
        for (int64_t i = 0; i < p.x.n; ++i) {
          negative[i] = anchors[i].negative_at;
          anchors[i].hardest_negative = kInf<T>;
          anchors[i].negative_at = -1;
        }
        if (stats) sweep_negatives<T, StatsAccumulator<T>>(shared);
        return;
      }
      if (stats) {
        sweep_negatives<T, StatsAccumulator<T>>(shared);
      } else {
        sweep_negatives<T, NearestAccumulator<T>>(shared);
      }
      for (int64_t i = 0; i < p.x.n; ++i) {
        const AnchorState<T>& a = anchors[i];
        negative[i] = a.negative_at;
        if (kMining == Mining::hard) positive[i] = a.positive_at;
      }
    }

   private:
    // The nearest positives of a tile's rows. Distances come from tiles, like those of negatives,
    // so that equal rows tie.
    void find_nearest(const Prepared<T>& p, int64_t i0) {
      constexpr int64_t W = Tile<T>::kWidth;
      const int64_t stop = i0 + Tile<T>::kRows < p.x.n ? i0 + Tile<T>::kRows : p.x.n;
      if (i0 >= stop) return;
      // Rows are in label order, and so are their runs; the run of a label without references is
      // empty, wherever it begins.
      int64_t low = p.y().n, high = 0;
      for (int64_t i = i0; i < stop; ++i) {
        if (p.begin[i] == p.end[i]) continue;
        low = p.begin[i] < low ? p.begin[i] : low;
        high = p.end[i] > high ? p.end[i] : high;
      }
      for (int64_t py = low / W; py * W < high; ++py) {
        DistanceTile<T> tile;
        tile.compute(p, i0 / W, i0 % W, py, false, false);
        const T* value = reinterpret_cast<const T*>(tile.d2);
        for (int64_t i = i0; i < stop; ++i) {
          const int64_t first = p.begin[i] > py * W ? p.begin[i] : py * W;
          for (int64_t j = first; j < p.end[i] && j < py * W + W; ++j) {
            const T v = value[(i - i0) * W + j - py * W];
            if (j == p.itself(i) || !(v < d2[i])) continue;
            d2[i] = v;
            positive[i] = j;
          }
        }
      }
    }
  };
};

}  // namespace dmlap::cpu::DMLAP_ISA

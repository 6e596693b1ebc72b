// Positives of anchors that have few of them, panel by panel, nearest first.
#pragma once

#include "dmlap/policies/triplet.h"
#include "losses.h"

namespace dmlap::cpu::DMLAP_ISA {

// A triplet whose negative is as near as it is to the anchor, or with a swap to the nearer one of
// the anchor and the positive. d_pn: +inf without a swap.
template <class T>
struct ChosenTriplet {
  T d_n, violation, term;
  T pull;     // d term / d d_ap
  T push;     // -d term / d d_an
  T between;  // -d term / d d_pn

  ChosenTriplet(const Triplet<T>& policy, T d_ap, T d_an, T d_pn)
      : d_n(policy.nearer(d_an, d_pn)), violation(policy.violation(d_ap, d_n)) {
    const Dual<T, 3> t = policy.derive(d_ap, d_an, d_pn);
    term = t.value;
    pull = t.by[0];
    push = -t.by[1];
    between = -t.by[2];
  }
};

// Up to this many positives, an anchor keeps something for each of them during a sweep and every
// pair is compared with all of them. Beyond it, anchors are taken one by one (triplets_rows.h),
// which costs a sort of each row: as much as 60 positives or so. Never more than the size of the
// input and 32 MiB is kept.
template <class T>
inline int64_t few_limit(const Prepared<T>& p) {
  constexpr int64_t kLeast = 16, kMost = 64, kBytesEach = 66;
  const int64_t input = (p.x.n + p.y().n) * p.dim * int64_t{sizeof(T)};
  const int64_t limit = (input + (int64_t{32} << 20)) / (kBytesEach * (p.x.n > 0 ? p.x.n : 1));
  return limit < kLeast ? kLeast : (limit > kMost ? kMost : limit);
}

// The positives of an anchor that has few, or many of them, and a negative; else 0.
template <class T>
inline int64_t few_positives(const Prepared<T>& p, int64_t anchor) {
  const int64_t n = positives_of(p, anchor);
  return n <= few_limit(p) && negatives_of(p, anchor) > 0 ? n : 0;
}
template <class T>
inline int64_t many_positives(const Prepared<T>& p, int64_t anchor) {
  const int64_t n = positives_of(p, anchor);
  return n > few_limit(p) && negatives_of(p, anchor) > 0 ? n : 0;
}
template <class T>
inline bool any_many_positives(const Prepared<T>& p) {
  bool any = false;
  for (int64_t i = 0; i < p.x.n; ++i) any |= many_positives(p, i) > 0;
  return any;
}

// Slot m of an anchor is its m-th nearest positive. Distances are those of the tiles, so that rows
// that are equal are equally far, whether they are positives or negatives.
template <class T>
struct PositiveSlots {
  using P = Tile<T>;
  static constexpr int64_t W = P::kWidth;

  Buffer<int64_t> offset;  // [panels + 1] where the slots of a panel begin
  Buffer<T> d2;            // [slots][W] +inf beyond an anchor's positives
  Buffer<int64_t> at;      // [slots][W] their positions

  explicit PositiveSlots(const Prepared<T>& p) : offset(p.x.panels + 1) {
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

  // Keeps the slots of an anchor sorted; equal distances stay in the order of their positions.
  void insert(int64_t anchor, int64_t m, T value, int64_t position) {
    for (; m > 0 && d2[index(anchor, m - 1)] > value; --m) {
      d2[index(anchor, m)] = d2[index(anchor, m - 1)];
      at[index(anchor, m)] = at[index(anchor, m - 1)];
    }
    d2[index(anchor, m)] = value;
    at[index(anchor, m)] = position;
  }
};

// What an anchor adds to the loss and to its statistics.
struct TripletTotals {
  double term = 0, violation = 0;
  int64_t count = 0, nonzero = 0, violated = 0;

  template <class T>
  void add(const ChosenTriplet<T>& t) {
    term += t.term;
    violation += hinge(t.violation);
    nonzero += t.term > 0;
    violated += t.violation > 0;
  }
};

// Reduction of the terms, and the statistics that were asked for.
template <class T>
inline void finish_triplets(const ForwardState<T>& state, const LossOptions& options,
                            const TripletTotals* totals, const ForwardOut<T>& out) {
  const Prepared<T>& p = state.p;
  SavedHeader& header = *reinterpret_cast<SavedHeader*>(out.saved);
  GroupTotal total;
  double violation = 0;
  int64_t violated = 0;
  for (int64_t i = 0; i < p.x.n; ++i) {
    const TripletTotals& a = totals[i];
    total.add(options.reduction, a.term, a.count, a.nonzero);
    violation += a.violation;
    violated += a.violated;
    if (options.reduction == Reduction::none) {
      out.loss[p.x.order[i]] = poison(p, a.count > 0 ? a.term / double(a.count) : 0.0);
    }
  }
  header.denominator[0] = total.denominator(options.reduction);
  header.poisoned = p.poisoned;
  if (options.reduction != Reduction::none) {
    *out.loss = poison(p, total.term / header.denominator[0]);
  }
  if (out.stat_counts == nullptr) return;

  sweep_positives(p, state.anchors.get(), [&](AnchorState<T>& a, T d2, int64_t at) {
    note_hardest_positive(p, a, d2, at);
  });
  sweep_negatives<T, StatsSink<T>>(state.shared(nullptr));
  const T margin = static_cast<T>(options.params[0]);
  for (int64_t i = 0; i < p.x.n; ++i) {
    const AnchorState<T>& a = state.anchors[i];
    const bool alone = a.positive_at < 0;
    out.thresholds[p.x.order[i]] = alone ? -kInf<T> : p.from_squared(a.hardest_positive) + margin;
  }
  out.stat_counts[0] = total.count;
  out.stat_counts[1] = violated;
  out.stat_values[0] = poison(p, violation);
  write_common_stats(p, state.anchors.get(), state.negative_total(), out);
}

}  // namespace dmlap::cpu::DMLAP_ISA

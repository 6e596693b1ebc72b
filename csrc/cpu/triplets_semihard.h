// Semi-hard triplets (1503.03832): each positive pair with the nearest negative that is farther
// away, or else the farthest negative.
#pragma once

#include "triplets_nearest_beyond.h"
#include "triplets_rows.h"
#include "triplets_sort.h"

namespace dmlap::cpu::DMLAP_ISA {

// The triplets of anchors with few positives, from one sweep over the tiles.
template <class T>
inline void mine_semihard(const Prepared<T>& p, MinedTriplets<T>& mined) {
  const PositiveSlots<T> slots(p);
  NearestBeyond<T> best(slots.size(p));
  const NearestBeyondShared<T> shared{&p, &slots, &best, Blocks(p.x.panels), Blocks(p.y().panels)};
  Schedule schedule(shared.rows.count, shared.columns.count, p.self);
  schedule.run(p.threads, [&](int) { return NearestBeyondWorker<T>(shared); });
  farthest_for_the_rest(p, slots, best);
  for (int64_t i = 0; i < p.x.n; ++i) {
    for (int64_t m = 0; m < few_positives(p, i); ++m) {
      const int64_t slot = slots.index(i, m);
      mined.set(p, i, m, slots.at[slot], best.at[slot]);
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
    // From the farthest down, by groups of equal distance.
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
inline void forward_triplet_semihard(const Pairs<T>& pairs, const LossOptions& options,
                                     const ForwardOut<T>& out) {
  const ForwardState<T> state(pairs);
  const Prepared<T>& p = state.p;
  Buffer<TripletTotals> totals(p.x.n);
  totals.fill(p.x.n, TripletTotals{});
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

template <class T>
inline void backward_triplet_semihard(const Pairs<T>& pairs, const LossOptions& options,
                                      const BackwardArgs<T>& args) {
  const SavedHeader& header = *reinterpret_cast<const SavedHeader*>(args.saved);
  if (poison_gradients(pairs, header, args)) return;
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

template <class T>
struct TripletSemihardKernels {
  static constexpr bool kSkipsReferences = false;

  static size_t saved_bytes(const Pairs<T>&, const LossOptions&) { return sizeof(SavedHeader); }
  static void forward(const Pairs<T>& pairs, const LossOptions& options, const ForwardOut<T>& out) {
    forward_triplet_semihard(pairs, options, out);
  }
  static void backward(const Pairs<T>& pairs, const LossOptions& options,
                       const BackwardArgs<T>& args) {
    backward_triplet_semihard(pairs, options, args);
  }
};

}  // namespace dmlap::cpu::DMLAP_ISA

// All triplets: backward. One sweep weighs the negative pairs, and counts for each positive how
// many triplets it is active in.
#pragma once

#include "triplets_all.h"

namespace dmlap::cpu::DMLAP_ISA {

template <class T>
struct TripletAllWeigher {
  using P = Tile<T>;
  using V = typename P::V;
  static constexpr int64_t W = P::kWidth;

  const Prepared<T>* p;
  const TripletThresholds<T>* thresholds;
  const T* coefficient;  // [panels * kWidth] upstream of each anchor's terms
  T* slopes;             // [slots][W] sum of the slopes of a positive's triplets
  T reach;               // the largest of the thresholds', squared
  int64_t i = 0, depth = 0;

  void row(int64_t position) {
    i = position;
    depth = thresholds->slots.depth(i / W);
  }
  bool idle(V d2) const { return !bits(d2 < splat<T>(reach)); }

  // The blocks of the row and of the columns belong to the caller's task alone.
  V weight(V d2, int64_t j) const {
    const V d = p->from_squared(d2);
    const PositiveSlots<T>& slots = thresholds->slots;
    V sum{};
    for (int64_t m = 0; m < depth; ++m) {
      const int64_t slot = slots.index(i, m);
      const V s = slope(splat<T>(thresholds->value[slot]) - d);
      slopes[slot] += sum_lanes<T>(s);
      sum += s;
    }
    V v = sum * -coefficient[i];
    if (p->self) {
      V column_sum{};
      const int64_t column_depth = slots.depth(j / W);
      for (int64_t m = 0; m < column_depth; ++m) {
        const int64_t slot = slots.index(j, m);
        const V s = slope(load(thresholds->value.get() + slot) - d);
        store(slopes + slot, load(slopes + slot) + s);
        column_sum += s;
      }
      v -= column_sum * load(coefficient + j);
    }
    const V scaled = p->euclidean() ? (d > 0 ? v / d : V{}) : v * (2 * p->linear());
    return d2 < kInf<T> ? scaled : V{};
  }

 private:
  V slope(V above) const {
    const auto violation = variable<1>(above, 0);
    return thresholds->smooth ? triplet_term<true>(violation).by[0]
                              : triplet_term<false>(violation).by[0];
  }
};

// out += the gradient of the positive pairs of anchors with few.
template <class T>
inline void scatter_positives(const Prepared<T>& p, const PositiveSlots<T>& slots, const T* slopes,
                              const T* coefficient, T* gx, T* gy) {
  const Side<T>& y = p.y();
  feature_slices(p.threads, p.dim, [&](int64_t k0, int64_t width) {
    for (int64_t i = 0; i < p.x.n; ++i) {
      const T* a = p.x.row(i) + k0;
      for (int64_t m = 0; m < few_positives(p, i); ++m) {
        const int64_t slot = slots.index(i, m), j = slots.at[slot];
        if (slopes[slot] == 0) continue;
        const T w = coefficient[i] * slopes[slot] * p.factor(p.from_squared(slots.d2[slot]));
        scatter_pair(p, a, y.row(j) + k0, w, width, gx + p.x.order[i] * p.dim + k0,
                     gy + y.order[j] * p.dim + k0);
      }
    }
  });
}

template <class T>
inline void backward_triplet_all(const Pairs<T>& pairs, const LossOptions& options,
                                 const BackwardArgs<T>& args) {
  constexpr int64_t W = Tile<T>::kWidth;
  const SavedHeader& header = *reinterpret_cast<const SavedHeader*>(args.saved);
  if (poison_gradients(pairs, header, args)) return;
  const Triplet<T> policy(options.params);
  Prepared<T> p;
  prepare(p, pairs, true);
  const TripletThresholds<T> thresholds(p, policy);
  const int64_t slots = thresholds.slots.size(p);
  const Upstream<T> upstream{args.grad, options.reduction, &header};
  Buffer<T> coefficient(p.x.panels * W), slopes(slots);
  coefficient.fill(p.x.panels * W, T(0));
  slopes.fill(slots, T(0));
  for (int64_t i = 0; i < p.x.n; ++i) {
    const int64_t few = few_positives(p, i);
    if (few > 0) coefficient[i] = upstream.at(p.x.order[i], 0, few * negatives_of(p, i));
  }
  T reach = -kInf<T>;
  for (int64_t panel = 0; panel < p.x.panels; ++panel) {
    reach = thresholds.reach[panel] > reach ? thresholds.reach[panel] : reach;
  }

  GradientSide<T> gx, gy_storage;
  gx.out = args.gx;
  gx.reset(p.x.panels, p.packed_dim);
  fill(args.gx, p.x.n * p.dim, T(0));
  if (!p.self) {
    gy_storage.out = args.gy;
    gy_storage.reset(p.y_storage.panels, p.packed_dim);
    fill(args.gy, p.y_storage.n * p.dim, T(0));
  }
  GradientSide<T>& gy = p.self ? gx : gy_storage;
  const BackwardShared<T> shared{
      &p, args.saved + sizeof(SavedHeader), &gx, &gy, Blocks(p.x.panels), Blocks(p.y().panels)};
  const TripletAllWeigher<T> weigher{&p, &thresholds, coefficient.get(), slopes.get(), reach};
  Schedule schedule(shared.rows.count, shared.columns.count, p.self);
  schedule.run(p.threads,
               [&](int) { return BackwardWorker<T, TripletAllWeigher<T>>(shared, weigher); });
  if (any_many_positives(p)) AnchorBlocks<T, AllMiner<T>>(p, options, gx, gy).run(upstream);
  scatter_positives(p, thresholds.slots, slopes.get(), coefficient.get(), gx.out, gy.out);
  finish_gradient(p, p.x, gx);
  if (!p.self) finish_gradient(p, p.y_storage, gy);
}

template <class T>
struct TripletAllKernels {
  static constexpr bool kSkipsReferences = false;

  static constexpr SavedSize saved_size(bool self) {
    return with_active<T>({sizeof(SavedHeader)}, self);
  }
  static void forward(const Pairs<T>& pairs, const LossOptions& options, const ForwardOut<T>& out) {
    forward_triplet_all(pairs, options, out);
  }
  static void backward(const Pairs<T>& pairs, const LossOptions& options,
                       const BackwardArgs<T>& args) {
    backward_triplet_all(pairs, options, args);
  }
};

}  // namespace dmlap::cpu::DMLAP_ISA

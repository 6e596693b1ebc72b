// Classes larger than a panel: blocks of their rows against blocks of their rows, over all columns.
// Each pair of blocks computes its distances again, which bounds the memory.
#pragma once

#include "losses/class_runs.h"

namespace dmlap::cpu::DMLAP_ISA {

// Panels of one large class.
struct LargeBlock {
  static constexpr int64_t kPanels = 4;

  int64_t first, stop;              // of the block
  int64_t class_first, class_stop;  // of its class

  bool holds(int64_t panel) const { return first <= panel && panel < stop; }
  bool own_class(int64_t panel) const { return class_first <= panel && panel < class_stop; }
};

template <class T>
inline int64_t large_blocks(const RunLayout<T>& layout, Buffer<LargeBlock>& blocks) {
  blocks.reset(layout.panels);
  int64_t count = 0;
  for (int64_t panel = 0; panel < layout.panels; panel = layout.last[panel] + 1) {
    const int64_t stop = layout.last[panel] + 1;
    for (int64_t at = panel; layout.large(panel) && at < stop; at += LargeBlock::kPanels) {
      const int64_t end = at + LargeBlock::kPanels < stop ? at + LargeBlock::kPanels : stop;
      blocks[count++] = {at, end, panel, stop};
    }
  }
  return count;
}

// The sums of the pairs of rows of two blocks over all columns.
template <class T, class Terms>
class LargeSums {
  using P = Tile<T>;
  using V = typename P::V;
  static constexpr int W = P::kWidth;
  static constexpr int K = Terms::kSums;
  static constexpr int64_t kRows = LargeBlock::kPanels * W;
  struct Sums {
    V of[K];
  };

 public:
  LargeSums(const RunProblem<T>& problem, const Terms& terms)
      : problem_(problem),
        terms_(terms),
        own_(kRows * kRows),
        sums_(kRows * kRows * K),
        a_(kRows * W),
        b_(kRows * W) {
    a_.fill(kRows * W, T(0));
    b_.fill(kRows * W, T(0));
  }

  // The rows of `block` with those of panels [first, stop) of its class.
  void run(const LargeBlock& block, int64_t first, int64_t stop) {
    const Prepared<T>& p = problem_.p;
    fill_own(block, first, stop);
    sums_.fill(kRows * kRows * K, 0.0);
    for (int64_t py = 0; py < p.y().panels; ++py) {
      if (p.self && block.own_class(py)) continue;
      for (int64_t px = block.first; px < block.stop; ++px) fill(px, py, a_, px - block.first);
      for (int64_t px = first; px < stop; ++px) {
        if (!block.holds(px)) fill(px, py, b_, px - first);
        const T* b = block.holds(px) ? a_.get() + (px - block.first) * W * W
                                     : b_.get() + (px - first) * W * W;
        for (int64_t at = block.first; at < block.stop; ++at) add(at - block.first, px - first, b);
      }
    }
  }

  // Row numbers count from the first row of the block and of the other panels.
  T own(int64_t i, int64_t q) const { return own_[i * kRows + q]; }
  const double* sums(int64_t i, int64_t q) const { return sums_.get() + (i * kRows + q) * K; }

 private:
  void fill_own(const LargeBlock& block, int64_t first, int64_t stop) {
    const Prepared<T>& p = problem_.p;
    own_.fill(kRows * kRows, Terms::kNoPair);
    each_large_pair(problem_, block, first, stop, [&](int64_t i, int64_t q) {
      const T d2 = p.pair(p.x.row(block.first * W + i), p.x.row(first * W + q));
      own_[i * kRows + q] = terms_.own(d2);
    });
  }

  // Each column becomes a row of `to`; the panel's rows are its lanes.
  void fill(int64_t px, int64_t py, const Buffer<T>& to, int64_t slot) {
    const Prepared<T>& p = problem_.p;
    const int used = problem_.layout.used[px];
    buffer_.fill(p, px, used, py, problem_.overlap(px, py), [&](V d2) { return terms_.value(d2); });
    T* out = to.get() + slot * W * W;
    for (int i = 0; i < used; ++i) {
      for (int n = 0; n < W; ++n) out[n * W + i] = buffer_.row(i)[n];
    }
  }

  void add(int64_t slot_a, int64_t slot_b, const T* b) {
    const T* a = a_.get() + slot_a * W * W;
    for (int i = 0; i < W; ++i) {
      const int64_t at = (slot_a * W + i) * kRows + slot_b * W;
      Sums sums[P::kVectors] = {};
      V own[P::kVectors];
      for (int c = 0; c < P::kVectors; ++c) own[c] = load(own_.get() + at + c * P::kLanes);
      for (int n = 0; n < W; ++n) {
        const V of_a = splat<T>(a[n * W + i]);
        for (int c = 0; c < P::kVectors; ++c) {
          terms_.add(of_a, load(b + n * W + c * P::kLanes), own[c], sums[c].of);
        }
      }
      for (int q = 0; q < W; ++q) {
        for (int k = 0; k < K; ++k) {
          sums_[(at + q) * K + k] += sums[q / P::kLanes].of[k][q % P::kLanes];
        }
      }
    }
  }

  const RunProblem<T>& problem_;
  Terms terms_;
  Buffer<T> own_;
  Buffer<double> sums_;
  Buffer<T> a_, b_;  // [kPanels][columns][rows of a panel]
  PairBuffer<T> buffer_;
};

// Calls f(i, q) for the pairs between the rows of a block and those of other panels of its class.
template <class T, class F>
inline void each_large_pair(const RunProblem<T>& problem, const LargeBlock& block, int64_t first,
                            int64_t stop, F f) {
  constexpr int64_t W = Tile<T>::kWidth;
  const RunLayout<T>& layout = problem.layout;
  const int64_t rows = (block.stop - 1 - block.first) * W + layout.used[block.stop - 1];
  const int64_t others = (stop - 1 - first) * W + layout.used[stop - 1];
  for (int64_t i = 0; i < rows; ++i) {
    for (int64_t q = 0; q < others; ++q) {
      if (problem.is_pair(block.first * W + i, first * W + q)) f(i, q);
    }
  }
}

// totals: [rows of x], by position
template <class T, class Terms>
inline void large_forward(const RunProblem<T>& problem, const Terms& terms, TermSums* totals) {
  constexpr int64_t W = Tile<T>::kWidth;
  Buffer<LargeBlock> blocks;
  const int64_t count = large_blocks(problem.layout, blocks);
  if (count == 0) return;
  parallel_tasks(problem.p.threads, count, [&](auto next) {
    LargeSums<T, Terms> sums(problem, terms);
    for (int64_t b; (b = next()) < count;) {
      const LargeBlock& block = blocks[b];
      for (int64_t first = block.class_first; first < block.class_stop;) {
        const int64_t stop = first + LargeBlock::kPanels < block.class_stop
                                 ? first + LargeBlock::kPanels
                                 : block.class_stop;
        sums.run(block, first, stop);
        each_large_pair(problem, block, first, stop, [&](int64_t i, int64_t q) {
          if (!problem.is_anchor(block.first * W + i)) return;
          totals[block.first * W + i].add(terms.total(sums.own(i, q), sums.sums(i, q)));
        });
        first = stop;
      }
    }
  });
}

// Of each pair of a block's row and a row of its class: [rows][stride].
template <class T>
struct LargeTables {
  int64_t stride;
  Buffer<T> own, coefficient, pull;

  LargeTables(const LargeBlock& block, T no_pair)
      : stride((block.class_stop - block.class_first) * Tile<T>::kWidth) {
    const int64_t n = (block.stop - block.first) * Tile<T>::kWidth * stride;
    own.reset(n);
    coefficient.reset(n);
    pull.reset(n);
    own.fill(n, no_pair);
    coefficient.fill(n, T(0));
    pull.fill(n, T(0));
  }
};

template <class T, class Terms>
inline void fill_tables(const RunProblem<T>& problem, const Terms& terms, const LargeBlock& block,
                        const T* upstream, LargeTables<T>& tables) {
  constexpr int64_t W = Tile<T>::kWidth;
  using Slopes = typename Terms::Slopes;
  const int64_t panels = block.class_stop - block.class_first;
  const int64_t count = (panels + LargeBlock::kPanels - 1) / LargeBlock::kPanels;
  parallel_tasks(problem.p.threads, count, [&](auto next) {
    LargeSums<T, Slopes> sums(problem, Slopes(terms));
    for (int64_t b; (b = next()) < count;) {
      const int64_t first = block.class_first + b * LargeBlock::kPanels;
      const int64_t stop = first + LargeBlock::kPanels < block.class_stop
                               ? first + LargeBlock::kPanels
                               : block.class_stop;
      sums.run(block, first, stop);
      each_large_pair(problem, block, first, stop, [&](int64_t i, int64_t q) {
        const int64_t at = i * tables.stride + (first - block.class_first) * W + q;
        const T c = upstream[block.first * W + i] + upstream[first * W + q];
        const T own = sums.own(i, q);
        const double sum = *sums.sums(i, q);
        tables.own[at] = own;
        tables.coefficient[at] = terms.coefficient(own, sum, c);
        tables.pull[at] = terms.pull(own, sum, c);
      });
    }
  });
}

// One thread's part of the columns of a block.
template <class T, class Terms>
class LargeBackward {
  using P = Tile<T>;
  using V = typename P::V;
  static constexpr int64_t W = P::kWidth;

 public:
  // recomputed: [rows of the block][dim]. x: sums of the block's panels. y: sums of all columns.
  LargeBackward(const RunProblem<T>& problem, const Terms& terms, const LargeBlock& block,
                const LargeTables<T>& tables, T* recomputed, GradientSide<T>& x, GradientSide<T>& y)
      : problem_(problem),
        terms_(terms),
        block_(block),
        tables_(tables),
        recomputed_(recomputed),
        y_(y),
        panels_(problem.p, x, y, takes_differences<Terms>(problem.p)) {}

  void operator()(int64_t py) {
    const Prepared<T>& p = problem_.p;
    if (p.self && block_.own_class(py)) return;
    for (int64_t px = block_.first; px < block_.stop; ++px) {
      const int64_t slot = px - block_.first;
      fill(px, py, values_[slot]);
      dmlap::cpu::DMLAP_ISA::fill(weights_[slot].row(0), W * W, T(0));
    }
    for (int64_t px = block_.class_first; px < block_.class_stop; ++px) {
      if (!block_.holds(px)) fill(px, py, others_);
      const PairBuffer<T>& b = block_.holds(px) ? values_[px - block_.first] : others_;
      for (int64_t at = block_.first; at < block_.stop; ++at) weigh(at, px, b);
    }
    for (int64_t px = block_.first; px < block_.stop; ++px) {
      const int64_t slot = px - block_.first;
      const int used = problem_.layout.used[px];
      if (!close_weights(terms_, values_[slot], weights_[slot], used)) continue;
      if (takes_differences<Terms>(p) && values_[slot].has_recomputed) {
        const auto out = [&](int r) { return recomputed_ + (slot * W + r) * p.dim; };
        take_recomputed(p, values_[slot], weights_[slot], px, used, py, out, y_.out);
      }
      panels_.add(panel_pair_of(problem_, px, slot, py), weights_[slot].row(0));
    }
  }

 private:
  void fill(int64_t px, int64_t py, PairBuffer<T>& to) {
    const Prepared<T>& p = problem_.p;
    to.fill(p, px, problem_.layout.used[px], py, problem_.overlap(px, py),
            [&](V d2) { return terms_.value(d2); });
  }

  void weigh(int64_t at, int64_t px, const PairBuffer<T>& b) {
    const int64_t slot = at - block_.first;
    const int used = problem_.layout.used[px];
    for (int i = 0; i < problem_.layout.used[at]; ++i) {
      const int64_t first = (slot * W + i) * tables_.stride + (px - block_.class_first) * W;
      V a[P::kVectors], w[P::kVectors];
      for (int c = 0; c < P::kVectors; ++c) {
        a[c] = values_[slot].at(i, c);
        w[c] = weights_[slot].at(i, c);
      }
      for (int q = 0; q < used; ++q) {
        const V own = splat<T>(tables_.own[first + q]);
        const V coefficient = splat<T>(tables_.coefficient[first + q]);
        for (int c = 0; c < P::kVectors; ++c) {
          terms_.weigh(a[c], b.at(q, c), own, coefficient, w[c]);
        }
      }
      for (int c = 0; c < P::kVectors; ++c) store(weights_[slot].row(i) + c * P::kLanes, w[c]);
    }
  }

  const RunProblem<T>& problem_;
  Terms terms_;
  const LargeBlock& block_;
  const LargeTables<T>& tables_;
  T* recomputed_;
  GradientSide<T>& y_;
  PairBuffer<T> values_[LargeBlock::kPanels], weights_[LargeBlock::kPanels], others_;
  PanelGradient<T> panels_;
};

// upstream: [rows of x], by position. The number of parts of the columns does not depend on the
// machine; each part sums for the block's rows on its own, and parts are added in order.
template <class T, class Terms>
inline void large_backward(const RunProblem<T>& problem, const Terms& terms, const T* upstream,
                           GradientSide<T>& gx, GradientSide<T>& gy) {
  constexpr int64_t W = Tile<T>::kWidth, kParts = 8;
  const Prepared<T>& p = problem.p;
  Buffer<LargeBlock> blocks;
  const int64_t count = large_blocks(problem.layout, blocks);
  if (count == 0) return;
  GradientSide<T> parts[kParts];
  Buffer<T> recomputed[kParts];
  const int64_t rows = LargeBlock::kPanels * W, columns = p.y().panels;
  for (int64_t b = 0; b < count; ++b) {
    const LargeBlock& block = blocks[b];
    LargeTables<T> tables(block, Terms::kNoPair);
    fill_tables(problem, terms, block, upstream, tables);
    parallel_for(p.threads, kParts, [&](int64_t part) {
      parts[part].reset(LargeBlock::kPanels, p.packed_dim);
      recomputed[part].reset(rows * p.dim);
      recomputed[part].fill(rows * p.dim, T(0));
      LargeBackward<T, Terms> worker(problem, terms, block, tables, recomputed[part].get(),
                                     parts[part], gy);
      for (int64_t py = columns * part / kParts; py < columns * (part + 1) / kParts; ++py) {
        worker(py);
      }
    });
    parallel_for(p.threads, (block.stop - block.first) * W, [&](int64_t i) {
      if (i % W >= problem.layout.used[block.first + i / W]) return;
      const int64_t at = block.first * W + i;
      T* out = gx.out + p.x.order[at] * p.dim;
      for (int64_t q = 0; q < tables.stride; ++q) {
        const T w = tables.pull[i * tables.stride + q];
        if (w != 0) pull_row<T, Terms>(p, at, block.class_first * W + q, w, out);
      }
      for (int64_t part = 0; part < kParts; ++part) {
        gx.weight[at] += parts[part].weight[i];
        for (int64_t k = 0; k < p.dim; ++k) out[k] += recomputed[part][i * p.dim + k];
      }
    });
    const int64_t size = (block.stop - block.first) * p.packed_dim * W;
    T* sums = gx.weighted.get() + block.first * p.packed_dim * W;
    for (int64_t part = 0; part < kParts; ++part) {
      for (int64_t k = 0; k < size; ++k) sums[k] += parts[part].weighted[k];
    }
  }
}

}  // namespace dmlap::cpu::DMLAP_ISA

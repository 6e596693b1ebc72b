// What the losses share around their sweeps: the problem, reductions, statistics.
#pragma once

#include "forward.h"
#include "saved.h"

namespace dmlap::cpu::DMLAP_ISA {

// Owns what forward may hand over to backward, until it does.
template <class K>
class Keeping {
 public:
  explicit Keeping(K* kept) : kept_(kept) {}
  ~Keeping() {
    if (kept_ != nullptr) kept_->destroy(kept_);
  }
  Keeping(const Keeping&) = delete;
  Keeping& operator=(const Keeping&) = delete;

  K& operator*() const { return *kept_; }
  K* operator->() const { return kept_; }
  void hand_over(Kept** to) {
    *to = kept_;
    kept_ = nullptr;
  }

 private:
  K* kept_;
};

// A small problem's packed rows, kept for the backward sweep: there packing takes a share of the
// time, and the rows take little memory.
template <class T>
struct KeptRows : Kept {
  static constexpr int64_t kBytes = 4 << 20;
  Prepared<T> p;

  KeptRows() : Kept{[](Kept* k) { delete static_cast<KeptRows*>(k); }} {}

  static bool small(const Prepared<T>& p) {
    const int64_t panels = p.x.panels + (p.self ? 0 : p.y_storage.panels);
    return panels * Tile<T>::kWidth * p.packed_dim * int64_t{sizeof(T)} <= kBytes;
  }
};

// The packed rows of a backward sweep: those that forward kept, or packed again.
template <class T>
class BackwardRows {
 public:
  BackwardRows(const Pairs<T>& pairs, const Kept* kept) {
    if (kept == nullptr) prepare(own_, pairs, true);
    p_ = kept == nullptr ? &own_ : &static_cast<const KeptRows<T>*>(kept)->p;
  }
  const Prepared<T>& get() const { return *p_; }

 private:
  Prepared<T> own_;
  const Prepared<T>* p_;
};

// The problem of a forward sweep, packed, and what it gathers.
template <class T>
class ForwardState {
  Keeping<KeptRows<T>> rows_{new KeptRows<T>()};

 public:
  const Prepared<T>& p = rows_->p;
  Buffer<AnchorState<T>> anchors;     // [x.n]
  Buffer<AnchorState<T>> references;  // [y.n], where they are anchors as well
  Buffer<double> negative_sum;        // [blocks of x]

  explicit ForwardState(const Pairs<T>& pairs) {
    prepare(rows_->p, pairs, true);
    anchors.reset(p.x.n);
    anchors.fill(p.x.n, AnchorState<T>{});
    const int64_t blocks = Blocks(p.x.panels).count;
    negative_sum.reset(blocks);
    negative_sum.fill(blocks, 0.0);
  }

  // Leaves the rows of a small problem to the backward sweep. Nothing may use `p` afterwards.
  void keep_rows(const ForwardOut<T>& out) {
    if (out.kept != nullptr && KeptRows<T>::small(p)) rows_.hand_over(out.kept);
  }

  void count_references() {
    if (p.self) return;
    references.reset(p.y().n);
    references.fill(p.y().n, AnchorState<T>{});
  }
  // The states of the columns; null where they have none.
  AnchorState<T>* columns() const { return p.self ? anchors.get() : references.get(); }

  ForwardShared<T> shared(uint8_t* active) const {
    return {&p,     anchors.get(),      columns(),           negative_sum.get(),
            active, Blocks(p.x.panels), Blocks(p.y().panels)};
  }

  // Of distances. The sweep of the self case meets every pair once, the statistics count it twice.
  double negative_total() const {
    double s = 0;
    for (int64_t b = 0; b < Blocks(p.x.panels).count; ++b) s += negative_sum[b];
    return p.self ? 2 * s : s;
  }
};

// Sums over anchors of one group of terms, and how the reduction divides them.
struct GroupTotal {
  double term = 0;
  int64_t count = 0;
  int64_t nonzero = 0;

  double denominator(Reduction reduction) const {
    if (reduction == Reduction::sum) return 1;
    const int64_t n = reduction == Reduction::mean ? count : nonzero;
    return n > 0 ? double(n) : 1.0;
  }
};

template <class T>
inline int64_t positives_of(const Prepared<T>& p, int64_t anchor) {
  return p.positives(anchor);
}
template <class T>
inline int64_t negatives_of(const Prepared<T>& p, int64_t anchor) {
  return p.negatives(anchor);
}

template <class T>
inline T poison(const Prepared<T>& p, double value) {
  return p.poisoned ? std::numeric_limits<T>::quiet_NaN() : static_cast<T>(value);
}

// Everything but the loss's own counts: distances and hardest pairs.
template <class T>
DMLAP_ONCE void write_common_stats(const Prepared<T>& p, const AnchorState<T>* anchors,
                                   double negative_sum, const ForwardOut<T>& out) {
  double positive_sum = 0;
  int64_t positives = 0, negatives = 0;
  for (int64_t i = 0; i < p.x.n; ++i) {
    const AnchorState<T>& a = anchors[i];
    const int64_t row = p.x.order[i];
    positive_sum += a.positive_sum;
    positives += positives_of(p, i);
    negatives += negatives_of(p, i);
    out.stat_counts[2 + row] = a.positive_at < 0 ? -1 : p.y().order[a.positive_at];
    out.stat_counts[2 + p.x.n + row] = a.negative_at < 0 ? -1 : p.y().order[a.negative_at];
  }
  const double nan = std::numeric_limits<double>::quiet_NaN();
  out.stat_values[1] = poison(p, positives ? positive_sum / double(positives) : nan);
  out.stat_values[2] = poison(p, negatives ? negative_sum / double(negatives) : nan);
}

template <class T>
inline void note_hardest_positive(const Prepared<T>& p, AnchorState<T>& a, T d2, int64_t at) {
  a.positive_sum += p.from_squared(d2);
  if (d2 > a.hardest_positive) {
    a.hardest_positive = d2;
    a.positive_at = at;
  }
}

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

template <class T>
inline bool poison_gradients(const Pairs<T>& pairs, const SavedHeader& header,
                             const BackwardArgs<T>& args) {
  if (header.poisoned == 0) return false;
  const T nan = std::numeric_limits<T>::quiet_NaN();
  fill(args.gx, pairs.x.n * pairs.dim, nan);
  if (args.gy != nullptr) fill(args.gy, pairs.y.n * pairs.dim, nan);
  if (args.g_anchor != nullptr) fill(args.g_anchor, pairs.x.n, nan);
  return true;
}

}  // namespace dmlap::cpu::DMLAP_ISA

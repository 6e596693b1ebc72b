// The epilogue of every loss: the terms of the anchors become the loss and its statistics, the
// gradient of the loss becomes that of the terms, and where rows are not finite all is NaN.
#pragma once

#include "engine/problem.h"

namespace dmlap::cpu::DMLAP_ISA {

template <class T>
inline T or_nan(bool nonfinite, double value) {
  return nonfinite ? std::numeric_limits<T>::quiet_NaN() : static_cast<T>(value);
}

// mean_nonzero is a mean over terms that are > 0: whether an anchor's are among them.
inline bool takes(Reduction reduction, double terms) {
  return reduction != Reduction::mean_nonzero || !(terms <= 0);  // a NaN passes
}

// Adds up the terms of the anchors, one or two groups of them, and writes the loss.
template <class T>
class Epilogue {
 public:
  // joint: both groups are divided by one common count of terms that are > 0.
  Epilogue(Reduction reduction, bool nonfinite, const ForwardOut<T>& out, bool joint = false)
      : reduction_(reduction), nonfinite_(nonfinite), joint_(joint), out_(out) {}

  // terms: [groups] of the anchor in row `row`; weights: null, or [groups] how often each counts.
  void add(int64_t row, const TermSums* terms, int groups = 1, const double* weights = nullptr) {
    double own = 0;
    for (int g = 0; g < groups; ++g) {
      const double weight = weights == nullptr ? 1 : weights[g];
      if (takes(reduction_, terms[g].term)) sum_[g] += weight * terms[g].term;
      count_[g] += weight * double(terms[g].count);
      nonzero_[g] += weight * double(terms[g].nonzero);
      if (!(weight > 0)) continue;
      all_.add(terms[g]);
      if (terms[g].count > 0) own += terms[g].term / double(terms[g].count);
    }
    if (reduction_ == Reduction::none) out_.loss[row] = or_nan<T>(nonfinite_, own);
  }

  // Call once, after all anchors.
  void write() const {
    SavedHeader& header = *reinterpret_cast<SavedHeader*>(out_.saved);
    double loss = 0;
    for (int g = 0; g < 2; ++g) {
      double n = reduction_ == Reduction::mean ? count_[g] : nonzero_[g];
      if (joint_ && reduction_ == Reduction::mean_nonzero) n = nonzero_[0] + nonzero_[1];
      header.denominator[g] = reduction_ == Reduction::sum || !(n > 0) ? 1 : n;
      header.sum[g] = nonfinite_ ? std::numeric_limits<double>::quiet_NaN() : sum_[g];
      header.count[g] = n;
      loss += sum_[g] / header.denominator[g];
    }
    header.nonfinite = nonfinite_;
    if (reduction_ != Reduction::none) *out_.loss = or_nan<T>(nonfinite_, loss);
    if (out_.stat_counts == nullptr) return;
    out_.stat_counts[0] = all_.count;
    out_.stat_counts[1] = all_.violated;
    out_.stat_values[0] = or_nan<T>(nonfinite_, all_.violation);
  }

 private:
  Reduction reduction_;
  bool nonfinite_, joint_;
  const ForwardOut<T>& out_;
  double sum_[2] = {}, count_[2] = {}, nonzero_[2] = {};
  TermSums all_;
};

// The statistics that all losses share, distances and hardest pairs, from what a sweep with
// StatsAccumulator gathered.
template <class T>
DMLAP_ONCE void write_statistics(const ForwardState<T>& state, const ForwardOut<T>& out) {
  const Prepared<T>& p = state.p;
  double positive_sum = 0;
  int64_t positives = 0, negatives = 0;
  for (int64_t i = 0; i < p.x.n; ++i) {
    const AnchorState<T>& a = state.anchors[i];
    const int64_t row = p.x.order[i];
    positive_sum += a.positive_sum;
    positives += p.positives(i);
    negatives += p.negatives(i);
    out.stat_counts[2 + row] = a.positive_at < 0 ? -1 : p.y().order[a.positive_at];
    out.stat_counts[2 + p.x.n + row] = a.negative_at < 0 ? -1 : p.y().order[a.negative_at];
  }
  const double nan = std::numeric_limits<double>::quiet_NaN();
  out.stat_values[1] = or_nan<T>(p.nonfinite, positives ? positive_sum / double(positives) : nan);
  out.stat_values[2] =
      or_nan<T>(p.nonfinite, negatives ? state.negative_total() / double(negatives) : nan);
}

// The same by sweeps of their own; thresholds are the farthest positives' distances plus a margin.
template <class T>
DMLAP_ONCE void sweep_statistics(const ForwardState<T>& state, T margin, const ForwardOut<T>& out) {
  const Prepared<T>& p = state.p;
  sweep_positives(p, state.anchors.get(), [&](AnchorState<T>& a, T d2, int64_t at) {
    note_hardest_positive(p, a, d2, at);
  });
  sweep_negatives<T, StatsAccumulator<T>>(state.shared(nullptr));
  for (int64_t i = 0; out.thresholds != nullptr && i < p.x.n; ++i) {
    out.thresholds[p.x.order[i]] = farthest_positive(p, state.anchors[i]) + margin;
  }
  write_statistics(state, out);
}

// d loss / d (each term of group g) of one anchor row that has `count` of them.
template <class T>
struct Upstream {
  const T* grad;
  Reduction reduction;
  const SavedHeader* header;

  Upstream(const LossOptions& options, const BackwardArgs<T>& args)
      : grad(args.grad), reduction(options.reduction), header(&SavedHeader::of(args.saved)) {}

  T at(int64_t row, int group, int64_t count) const {
    if (reduction == Reduction::none) return count > 0 ? grad[row] / T(count) : T(0);
    return static_cast<T>(double(*grad) / header->denominator[group]);
  }
};

// Whether forward met rows that are not finite; all gradients are NaN then.
template <class T>
inline bool nonfinite_gradients(const Pairs<T>& pairs, const BackwardArgs<T>& args) {
  if (SavedHeader::of(args.saved).nonfinite == 0) return false;
  const T nan = std::numeric_limits<T>::quiet_NaN();
  fill(args.gx, pairs.x.n * pairs.dim, nan);
  if (args.gy != nullptr) fill(args.gy, pairs.y.n * pairs.dim, nan);
  if (args.g_anchor != nullptr) fill(args.g_anchor, pairs.x.n, nan);
  return true;
}

}  // namespace dmlap::cpu::DMLAP_ISA

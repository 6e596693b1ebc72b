// Float problems whose rows are finite, but so long that the squares of their distances overflow:
// once more in double. Nobody trains there, so that it need not be fast.
#pragma once

#include "engine/finish.h"

namespace dmlap::cpu::DMLAP_ISA {

// The sweeps found some row that is not finite, or whose square overflows.
inline bool nonfinite(const uint8_t* saved) {
  return reinterpret_cast<const SavedHeader*>(saved)->nonfinite != 0;
}

// What the means divide by and their sums, all but the mark that the float sweep left.
inline void copy_reduction(const uint8_t* from, uint8_t* to) {
  SavedHeader header = *reinterpret_cast<const SavedHeader*>(from);
  header.nonfinite = reinterpret_cast<const SavedHeader*>(to)->nonfinite;
  *reinterpret_cast<SavedHeader*>(to) = header;
}

inline bool can_widen(const Pairs<float>& pairs) {
  return !not_finite(pairs.x, pairs.dim) && (pairs.self || !not_finite(pairs.y, pairs.dim));
}

template <class From, class To>
inline void convert(const From* from, int64_t n, To* to) {
  for (int64_t i = 0; from != nullptr && to != nullptr && i < n; ++i) {
    to[i] = static_cast<To>(from[i]);
  }
}

// The problem in double, and the tensors that it reads.
class WidePairs {
 public:
  Pairs<double> pairs;

  explicit WidePairs(const Pairs<float>& p) : params_(p.anchor_params == nullptr ? 0 : p.x.n) {
    widen(p.x, p.dim, x_, pairs.x);
    if (p.self) {
      pairs.y = pairs.x;
      pairs.y.labels = p.y.labels;
    } else {
      widen(p.y, p.dim, y_, pairs.y);
    }
    pairs.dim = p.dim;
    pairs.self = p.self;
    pairs.distance = p.distance;
    pairs.normalize = p.normalize;
    pairs.threads = p.threads;
    pairs.self_index = p.self_index;
    if (p.anchor_params == nullptr) return;
    convert(p.anchor_params, p.x.n, params_.get());
    pairs.anchor_params = params_.get();
  }

 private:
  static void widen(const Rows<float>& from, int64_t dim, Buffer<double>& to, Rows<double>& rows) {
    to.reset(from.n * dim);
    for (int64_t i = 0; i < from.n; ++i) {
      convert(from.data + i * from.stride, dim, to.get() + i * dim);
    }
    rows = {to.get(), from.labels, from.n, dim};
  }

  Buffer<double> x_, y_, params_;
};

// Kernels: those of the loss in double.
template <class Kernels>
inline void forward_wide(const WidePairs& wide, const LossOptions& options, uint8_t* saved,
                         const ForwardOut<float>* out) {
  const int64_t n = wide.pairs.x.n, losses = options.reduction == Reduction::none ? n : 1;
  const bool stats = out != nullptr && out->stat_counts != nullptr;
  Buffer<double> loss(losses), thresholds(n);
  double values[3];
  ForwardOut<double> own;
  own.loss = loss.get();
  own.saved = saved;
  if (stats) {
    own.stat_counts = out->stat_counts;
    own.stat_values = values;
    own.thresholds = thresholds.get();
  }
  Kernels::forward(wide.pairs, options, own);
  if (out == nullptr) return;
  convert(loss.get(), losses, out->loss);
  if (!stats) return;
  convert(values, 3, out->stat_values);
  convert(thresholds.get(), n, out->thresholds);
}

template <class Kernels>
inline void forward_wide(const Pairs<float>& pairs, const LossOptions& options,
                         const ForwardOut<float>& out) {
  const WidePairs wide(pairs);
  const Buffer<uint8_t> saved(
      Kernels::saved_size(pairs.self).bytes(wide.pairs.x.n, wide.pairs.y.n));
  forward_wide<Kernels>(wide, options, saved.get(), &out);
  copy_reduction(saved.get(), out.saved);
}

template <class Kernels>
inline void backward_wide(const Pairs<float>& pairs, const LossOptions& options,
                          const BackwardArgs<float>& args) {
  const WidePairs wide(pairs);
  const int64_t nx = pairs.x.n, ny = pairs.self ? 0 : pairs.y.n, dim = pairs.dim;
  const Buffer<uint8_t> saved(
      Kernels::saved_size(pairs.self).bytes(wide.pairs.x.n, wide.pairs.y.n));
  forward_wide<Kernels>(wide, options, saved.get(), nullptr);
  copy_reduction(args.saved, saved.get());
  const int64_t grads = options.reduction == Reduction::none ? nx : 1;
  Buffer<double> grad(grads), gx(nx * dim), gy(ny * dim), g_anchor(nx);
  convert(args.grad, grads, grad.get());
  BackwardArgs<double> own;
  own.saved = saved.get();
  own.grad = grad.get();
  own.gx = gx.get();
  own.gy = pairs.self ? nullptr : gy.get();
  own.g_anchor = args.g_anchor == nullptr ? nullptr : g_anchor.get();
  Kernels::backward(wide.pairs, options, own);
  convert(gx.get(), nx * dim, args.gx);
  convert(gy.get(), ny * dim, args.gy);
  convert(g_anchor.get(), nx, args.g_anchor);
}

}  // namespace dmlap::cpu::DMLAP_ISA

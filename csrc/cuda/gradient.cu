// Gradients of losses whose pairs have weights of their own.
#include "gradient.cuh"

#include "weights.cuh"

namespace dmlap::cuda {

namespace {

template <class Kind>
__device__ inline void weighted_block(const Sides& s, const Weights& in, const GradientWork& work) {
  using Numbers = typename Kind::Numbers;
  const int64_t i = least(work.row0 + threadIdx.x / 4, s.rows - 1);
  Numbers row = {};
  if (in.rows != nullptr) row = Kind::load(in.rows, s.rows, i);
  const auto weigh = [&](int64_t j, float d, bool positive) {
    Numbers column = {};
    if (in.columns != nullptr) column = Kind::load(in.columns, s.cols, j);
    return Kind::weight(in, row, column, d, positive);
  };
  clear_gradient(s, work.row0, work.chunk, work.out);
  gradient_block(s, work.row0, work.chunk, work.begin, work.end, work.out,
                 [&](int64_t col0, float* scores, float& row_sum) {
                   return fill_weights(s, work.row0, col0, work.end, work.chunk, weigh, scores,
                                       row_sum, work.out);
                 });
}

template <class Kind>
__global__ void __launch_bounds__(kThreads, 1)
    gradient_kernel(Sides s, Weights in, int64_t split_length, float* out) {
  weighted_block<Kind>(s, in, gradient_work(s, split_length, out));
}

}  // namespace

int gradient_splits(const Sides& s) {
  constexpr int64_t kWantedBlocks = 256;  // to fill a GPU
  const int64_t blocks = ceil_div(s.rows, Square::kM) * ceil_div(s.dim, kChunk);
  const int64_t tiles = ceil_div(s.cols, Square::kN);
  int64_t splits = blocks == 0 ? 1 : ceil_div(kWantedBlocks, blocks);
  splits = splits < 8 ? splits : 8;
  splits = splits < tiles ? splits : tiles;
  return static_cast<int>(splits > 1 ? splits : 1);
}

int launch_gradient(const Sides& s, const Weights& weights, float* out, float* workspace,
                    const Queue& queue) {
  const auto run = [&](auto kernel) {
    return launch_gradient_kernel(kernel, s, weights, 0, out, workspace, queue);
  };
  switch (weights.kind) {
    case WeightKind::hinge: return run(gradient_kernel<HingeWeights<false>>);
    case WeightKind::squared_hinge: return run(gradient_kernel<HingeWeights<true>>);
    case WeightKind::exponential: return run(gradient_kernel<ExponentialWeights<false>>);
    case WeightKind::mined: return run(gradient_kernel<ExponentialWeights<true>>);
    case WeightKind::nt_xent: return run(gradient_kernel<NTXentWeights>);
    case WeightKind::lifted: return run(gradient_kernel<LiftedWeights>);
    case WeightKind::logistic: return run(gradient_kernel<LogisticWeights>);
  }
  return 0;
}

}  // namespace dmlap::cuda

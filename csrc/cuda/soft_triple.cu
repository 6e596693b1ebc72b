// Terms of SoftTriple.
#include "soft_triple.cuh"

#include "dmlap/dual.h"
#include "log_sum.cuh"

namespace dmlap::cuda {

namespace {

// What an anchor keeps of some classes: the log-sum of the other classes' logits, and the logit of
// its own (-inf if it is not among them).
struct Logits {
  LogSum others;
  float own;

  __device__ static Logits empty() { return {{-INFINITY, 0}, -INFINITY}; }
  __device__ void add(float logit, bool is_own) {
    if (is_own) {
      own = logit;
    } else {
      others.add({logit, 1});
    }
  }
  __device__ void merge(const Logits& other) {
    others.add(other.others);
    own = fmaxf(own, other.own);
  }
};
static_assert(sizeof(Logits) == sizeof(ClassScore));

constexpr size_t kTermsShared = (Square::kFloats + kExchangeFloats) * sizeof(float);

// A block has 64 anchors, four threads each, and the classes that begin in its part of the centres.
__global__ void __launch_bounds__(kThreads, 2)
    logits_kernel(Sides s, SoftTripleIn in, int64_t split_length, Logits* partials) {
  float* scores = shared_memory();
  auto* exchange = reinterpret_cast<ClassScore*>(scores + Square::kFloats);
  const int row = threadIdx.x / 4, part = threadIdx.x % 4;
  const int64_t row0 = static_cast<int64_t>(blockIdx.x) * Square::kM, i = row0 + row;
  const bool exists = i < s.rows && s.last[i] > s.first[i];
  const int64_t own = exists ? s.first[i] : -1;  // first centre of the anchor's class
  const Centres centres(in, s.cols, blockIdx.y * split_length, (blockIdx.y + 1) * split_length);
  Logits logits = Logits::empty();
  ClassScore large = ClassScore::empty();
  for (int64_t at = centres.begin; at < centres.end;) {
    const CentreTile tile = centres.tile(at);
    tile_distances<Square>(s, row0, at, scores);
    const CentreStrip strip = {scores + row * Square::kScorePitch, 1, tile};
    if (!tile.large) {
      strip.each_class(centres, in.policy, part, [&](int64_t first, int64_t, ClassScore score) {
        logits.add(in.policy.logit(score.mean()), first == own);
      });
    } else {
      strip.add_to(large, in.policy, part);
      if (tile.end == centres.last[at]) {
        const ClassScore whole = meet(large, exchange, row * 4, 1);
        if (part == 0) logits.add(in.policy.logit(whole.mean()), centres.first[at] == own);
        large = ClassScore::empty();
      }
    }
    __syncthreads();
    at = tile.end;
  }
  auto* quarters = reinterpret_cast<Logits*>(exchange);
  quarters[threadIdx.x] = logits;
  __syncwarp();
  if (part != 0 || i >= s.rows) return;
  for (int q = 1; q < 4; ++q) logits.merge(quarters[threadIdx.x + q]);
  partials[blockIdx.y * s.rows + i] = logits;
}

// One thread per anchor.
__global__ void __launch_bounds__(kThreads)
    terms_kernel(Sides s, SoftTripleIn in, int splits, const Logits* partials, float* out) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (i >= s.rows) return;
  Logits logits = Logits::empty();
  for (int p = 0; p < splits; ++p) logits.merge(partials[p * s.rows + i]);
  const float other = logits.others.value(), own = logits.own - in.policy.own_offset();
  const bool counts = s.last[i] > s.first[i] && other > -INFINITY;
  out[i] = counts ? softplus(other - own) : 0.f;
  out[s.rows + i] = other;
  out[2 * s.rows + i] = own;
}

int logit_splits(const Sides& s) {
  constexpr int64_t kWantedBlocks = 256, kMostSplits = 64;  // to fill a GPU
  const int64_t blocks = ceil_div(s.rows, Square::kM), tiles = ceil_div(s.cols, Square::kN);
  int64_t splits = blocks == 0 ? 1 : ceil_div(kWantedBlocks, blocks);
  splits = splits < kMostSplits ? splits : kMostSplits;
  return static_cast<int>(splits < tiles ? splits : tiles);
}

}  // namespace

int64_t soft_triple_workspace(const Sides& s) {
  return logit_splits(s) * s.rows * static_cast<int64_t>(sizeof(Logits));
}

int launch_soft_triple(const Sides& s, const SoftTripleIn& in, float* out, void* workspace,
                       const Queue& queue) {
  if (s.rows == 0) return 0;
  const int splits = logit_splits(s);
  auto* partials = static_cast<Logits*>(workspace);
  if (splits > 0) {
    const int64_t length = ceil_div(ceil_div(s.cols, Square::kN), splits) * Square::kN;
    const dim3 grid(static_cast<unsigned>(ceil_div(s.rows, Square::kM)),
                    static_cast<unsigned>(splits));
    const int status = launch(logits_kernel, queue, grid, kTermsShared, s, in, length, partials);
    if (status != 0) return status;
  }
  const dim3 grid(static_cast<unsigned>(ceil_div(s.rows, kThreads)));
  return launch(terms_kernel, queue, grid, 0, s, in, splits, partials, out);
}

}  // namespace dmlap::cuda

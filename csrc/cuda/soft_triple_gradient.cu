// Gradients of SoftTriple, at the anchors and at the centres.
#include "dmlap/dual.h"
#include "soft_triple.cuh"

namespace dmlap::cuda {

namespace {

static_assert((kGradientFloats + kExchangeFloats) * sizeof(float) <= kMostShared);

// What gives the weights of an anchor's pairs.
struct LogitWeights {
  int64_t own;  // first centre of its class
  float other;
  float by_logits;  // d loss / d logit, of all other classes together; minus that of its own

  __device__ LogitWeights(const SoftTripleKept& in, int64_t i, int64_t begin, int64_t end)
      : own(begin), other(0), by_logits(0) {
    if (begin == end || in.other[i] == -INFINITY) return;
    other = in.other[i];
    by_logits = in.weight[i] * sigmoid(other - in.own[i]);
  }

  // d loss / d logit of the class that begins at `first`.
  __device__ float by_logit(const SoftTriple<float>& policy, float mean, int64_t first) const {
    if (first == own) return -by_logits;
    return by_logits * expf(fminf(policy.logit(mean) - other, 0.f));
  }

  // Turns every `step`-th distance to the centres [begin, end) of a class into a weight. Returns
  // whether any is not 0.
  __device__ bool weigh(const SoftTriple<float>& policy, const CentreStrip& strip, int64_t first,
                        const ClassScore& score, int64_t begin, int64_t end, int step) const {
    const float mean = score.mean(), by = by_logits == 0 ? 0.f : by_logit(policy, mean, first);
    for (int64_t j = begin; j < end; j += step) {
      float& at = strip.at(j);
      const float similarity = -at;
      const float share = expf(fminf(policy.exponent(similarity) - score.top, 0.f)) / score.sum;
      at = by == 0 ? 0.f : -by * policy.slope(share, similarity, mean);
    }
    return by != 0 && begin < end;
  }
};

// The thread's part of a tile, its anchor, and the score of the large class, if the tile has one.
__device__ inline bool weigh_strip(const SoftTripleKept& in, const Centres& centres,
                                   const LogitWeights& anchor, const CentreStrip& strip, int part,
                                   const ClassScore& large) {
  const SoftTriple<float>& policy = in.forward.policy;
  const CentreTile& tile = strip.tile;
  for (int64_t j = tile.end + part; j < tile.begin + Square::kN; j += 4) strip.at(j) = 0;
  if (tile.large) {
    return anchor.weigh(policy, strip, centres.first[tile.begin], large, tile.begin + part,
                        tile.end, 4);
  }
  bool active = false;
  strip.each_class(centres, policy, part, [&](int64_t begin, int64_t end, ClassScore score) {
    active = anchor.weigh(policy, strip, begin, score, begin, end, 1) || active;
  });
  return active;
}

// Rows: anchors, four threads each. Columns: the classes that begin in the block's part.
struct ClassByClass {
  const Sides& s;
  const SoftTripleKept& in;
  const Centres& centres;
  int64_t row0;
  ClassScore* exchange;
  ClassScore& large;

  __device__ int64_t next(int64_t col0) const { return centres.tile(col0).end; }
  // The score of a large class comes first.
  __device__ void prepare(int64_t col0) const {
    if (!centres.tile(col0).large || centres.first[col0] != col0) return;
    float* scores = shared_memory();
    const int row = threadIdx.x / 4, part = threadIdx.x % 4;
    ClassScore score = ClassScore::empty();
    for (int64_t at = col0; at < centres.last[col0]; at += Square::kN) {
      tile_distances<Square>(s, row0, at, scores);
      const CentreStrip strip = {scores + row * Square::kScorePitch, 1, centres.tile(at)};
      strip.add_to(score, in.forward.policy, part);
      __syncthreads();
    }
    large = meet(score, exchange, row * 4, 1);
  }
};

__device__ inline void anchors_block(const Sides& s, const SoftTripleKept& in,
                                     const GradientWork& work, ClassScore* exchange) {
  const Centres centres(in.forward, s.cols, work.begin, work.end);
  const int row = threadIdx.x / 4, part = threadIdx.x % 4;
  const int64_t i = least(work.row0 + row, s.rows - 1);
  const LogitWeights anchor(in, i, s.first[i], s.last[i]);
  ClassScore large = ClassScore::empty();
  const auto fill = [&](int64_t col0, float* scores, float&) {
    const CentreStrip strip = {scores + row * Square::kScorePitch, 1, centres.tile(col0)};
    return weigh_strip(in, centres, anchor, strip, part, large);
  };
  clear_gradient(s, work.row0, work.chunk, work.out);
  gradient_block(s, work.row0, work.chunk, centres.begin, centres.end, work.out, fill,
                 ClassByClass{s, in, centres, work.row0, exchange, large});
}

// Rows: the centres of a tile. Columns: anchors, four threads each.
struct AnchorsOfLarge {
  const Sides& s;
  const SoftTripleKept& in;
  const Centres& centres;
  CentreTile tile;
  ClassScore* exchange;
  ClassScore& large;

  __device__ int64_t next(int64_t col0) const { return col0 + Square::kN; }
  __device__ void prepare(int64_t col0) const {
    if (!tile.large) return;
    float* scores = shared_memory();
    const int column = threadIdx.x % Square::kN, part = threadIdx.x / Square::kN;
    ClassScore score = ClassScore::empty();
    for (int64_t at = centres.first[tile.begin]; at < centres.last[tile.begin]; at += Square::kM) {
      tile_distances<Square>(s, at, col0, scores);
      const CentreStrip strip = {scores + column, Square::kScorePitch, centres.tile(at)};
      strip.add_to(score, in.forward.policy, part);
      __syncthreads();
    }
    large = meet(score, exchange, column, Square::kN);
  }
};

// The centres of the classes that begin within the block's rows.
__device__ inline void centres_block(const Sides& s, const SoftTripleKept& in,
                                     const GradientWork& work, ClassScore* exchange) {
  const Centres centres(in.forward, s.rows, work.row0, work.row0 + Square::kM);
  const int column = threadIdx.x % Square::kN, part = threadIdx.x / Square::kN;
  for (int64_t row0 = centres.begin; row0 < centres.end;) {
    const CentreTile tile = centres.tile(row0);
    ClassScore large = ClassScore::empty();
    const auto fill = [&](int64_t col0, float* scores, float&) {
      const int64_t i = least(col0 + column, s.cols - 1);
      LogitWeights anchor(in, i, s.col_first[i], s.col_last[i]);
      if (col0 + column >= work.end) anchor.by_logits = 0;
      const CentreStrip strip = {scores + column, Square::kScorePitch, tile};
      return weigh_strip(in, centres, anchor, strip, part, large);
    };
    Sides of_tile = s;
    of_tile.rows = tile.end;
    clear_gradient(of_tile, row0, work.chunk, work.out);
    gradient_block(of_tile, row0, work.chunk, work.begin, work.end, work.out, fill,
                   AnchorsOfLarge{s, in, centres, tile, exchange, large});
    row0 = tile.end;
  }
}

__global__ void __launch_bounds__(kThreads, 1)
    anchors_kernel(Sides s, SoftTripleKept in, int64_t split_length, float* out) {
  auto* exchange = reinterpret_cast<ClassScore*>(shared_memory() + kGradientFloats);
  anchors_block(s, in, gradient_work(s, split_length, out), exchange);
}

__global__ void __launch_bounds__(kThreads, 1)
    centres_kernel(Sides s, SoftTripleKept in, int64_t split_length, float* out) {
  auto* exchange = reinterpret_cast<ClassScore*>(shared_memory() + kGradientFloats);
  centres_block(s, in, gradient_work(s, split_length, out), exchange);
}

}  // namespace

int launch_soft_triple_gradient(const Sides& s, const SoftTripleKept& kept, float* out,
                                float* workspace, const Queue& queue) {
  return launch_gradient_kernel(kept.centres ? centres_kernel : anchors_kernel, s, kept,
                                kExchangeFloats, out, workspace, queue);
}

}  // namespace dmlap::cuda

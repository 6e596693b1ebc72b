// Anchors against classes of several centres. The centres of a class are consecutive. A tile holds
// as many whole classes as fit; a class that does not fit has tiles of its own, visited twice.
#pragma once

#include "dmlap/cuda/soft_triple_launchers.h"
#include "gradient.cuh"

namespace dmlap::cuda {

// Centres of a tile: [begin, end), of whole classes or of one `large` class.
struct CentreTile {
  int64_t begin, end;
  bool large;
};

struct Centres {
  const int* first;  // as SoftTripleIn has them
  const int* last;
  int64_t begin, end;

  // Of `count` centres, those of the classes that begin in [from, to).
  __device__ Centres(const SoftTripleIn& in, int64_t count, int64_t from, int64_t to)
      : first(in.first), last(in.last) {
    begin = class_from(from, count);
    end = class_from(to, count);
  }

  // The tile that begins with a class, or continues a large one.
  __device__ CentreTile tile(int64_t j) const {
    if (last[j] - first[j] > Square::kN) return {j, least(j + Square::kN, last[j]), true};
    if (j + Square::kN >= end) return {j, end, false};
    return {j, first[j + Square::kN], false};
  }
  // The first beginning of a class that is not below j.
  __device__ int64_t class_from(int64_t j, int64_t count) const {
    if (j >= count) return count;
    return first[j] == j ? j : last[j];
  }
};

// Of an anchor's similarities s to the centres of a class: the largest exponent `top`, the sum of
// e^(exponent - top), and the sum of that times s.
struct ClassScore {
  float top, sum, weighted;

  __device__ static ClassScore empty() { return {-INFINITY, 0, 0}; }

  __device__ void add(float exponent, float similarity) { merge({exponent, 1, similarity}); }
  __device__ void merge(const ClassScore& other) {
    if (other.top == -INFINITY) return;
    const float higher = fmaxf(top, other.top);
    const float mine = expf(top - higher), its = expf(other.top - higher);
    sum = sum * mine + other.sum * its;
    weighted = weighted * mine + other.weighted * its;
    top = higher;
  }
  __device__ float mean() const { return weighted / sum; }
};

// The distances of one anchor in a tile, `pitch` apart, and their centres.
struct CentreStrip {
  float* distances;
  int pitch;
  CentreTile tile;

  __device__ float& at(int64_t centre) const { return distances[(centre - tile.begin) * pitch]; }

  // Adds every fourth centre, beginning at `part`.
  __device__ void add_to(ClassScore& score, const SoftTriple<float>& policy, int part) const {
    for (int64_t j = tile.begin + part; j < tile.end; j += 4) {
      score.add(policy.exponent(-at(j)), -at(j));
    }
  }

  // Calls visit(begin, end, score) for every fourth class, beginning at `part`.
  template <class Visit>
  __device__ void each_class(const Centres& centres, const SoftTriple<float>& policy, int part,
                             const Visit& visit) const {
    int number = 0;
    for (int64_t begin = tile.begin; begin < tile.end; begin = centres.last[begin]) {
      if (number++ % 4 != part) continue;
      ClassScore score = ClassScore::empty();
      const int64_t end = centres.last[begin];
      for (int64_t j = begin; j < end; ++j) score.add(policy.exponent(-at(j)), -at(j));
      visit(begin, end, score);
    }
  }
};

// The score of a whole class from the parts of an anchor's four threads, which are `step` apart,
// beginning at `from`. All add in the same order and so get the same bits.
__device__ inline ClassScore meet(const ClassScore& mine, ClassScore* exchange, int from,
                                  int step) {
  exchange[threadIdx.x] = mine;
  __syncthreads();
  ClassScore all = exchange[from];
  for (int q = 1; q < 4; ++q) all.merge(exchange[from + q * step]);
  return all;
}

constexpr int kExchangeFloats = kThreads * sizeof(ClassScore) / sizeof(float);

}  // namespace dmlap::cuda

// Hard-class scores: mean violation and smallest distance between classes, a class of anchors at a
// time, so that no thread shares a sum and nothing of the size of the pairs is held.
#pragma once

#include "engine/tile.h"

namespace dmlap::cpu::DMLAP_ISA {

template <class T>
class ScoreWorker {
  using P = Tile<T>;
  using V = typename P::V;

 public:
  ScoreWorker(const Prepared<T>& p, const T* thresholds, int64_t classes,
              const int32_t* column_class, const int64_t* class_size)
      : p_(p),
        thresholds_(thresholds),
        classes_(classes),
        column_class_(column_class),
        class_size_(class_size),
        sums_(classes),
        pairs_(classes) {}

  // Anchors at positions begin .. end - 1, one class, of rank `rank`.
  void operator()(int64_t begin, int64_t end, T* mean, T* least) {
    for (int64_t c = 0; c < classes_; ++c) {
      sums_[c] = 0;
      pairs_[c] = class_size_[c] * (end - begin);
      least[c] = kInf<T>;
    }
    for (int64_t i = begin; i < end; ++i) {
      if (!p_.self && p_.itself(i) >= 0) --pairs_[column_class_[p_.itself(i)]];
    }
    for (int64_t tile_row = begin / P::kRows * P::kRows; tile_row < end; tile_row += P::kRows) {
      for (int64_t py = 0; py < p_.y().panels; ++py) {
        DistanceTile<T> tile;
        const bool disjoint =
            DistanceTile<T>::classes(p_, tile_row, py) == DistanceTile<T>::Classes::disjoint;
        tile.compute(p_, tile_row / P::kWidth, tile_row % P::kWidth, py, !disjoint, false);
        for (int r = 0; r < P::kRows; ++r) {
          const int64_t i = tile_row + r;
          if (i >= begin && i < end) add(tile, r, i, py, least);
        }
      }
    }
    for (int64_t c = 0; c < classes_; ++c) {
      mean[c] = or_nan(sums_[c] / double(pairs_[c] > 0 ? pairs_[c] : 1));
      least[c] = or_nan(p_.from_squared(least[c]));
    }
  }

 private:
  T or_nan(double value) const {
    return p_.nonfinite ? std::numeric_limits<T>::quiet_NaN() : static_cast<T>(value);
  }

  void add(const DistanceTile<T>& tile, int r, int64_t i, int64_t py, T* least) {
    const T threshold = thresholds_[p_.x.order[i]];
    const T reach = p_.to_squared(threshold);
    for (int c = 0; c < P::kWidth; ++c) {
      const T d2 = tile.d2[r][c / P::kLanes][c % P::kLanes];
      if (!(d2 < kInf<T>)) continue;
      const int32_t column = column_class_[py * P::kWidth + c];
      least[column] = d2 < least[column] ? d2 : least[column];
      if (d2 < reach) sums_[column] += threshold - p_.from_squared(d2);
    }
  }

  const Prepared<T>& p_;
  const T* thresholds_;
  int64_t classes_;
  const int32_t* column_class_;
  const int64_t* class_size_;
  Buffer<double> sums_;
  Buffer<int64_t> pairs_;
};

// Whether distances overflowed, or some row is not finite.
template <class T>
inline bool find_scores(const Pairs<T>& pairs, const T* thresholds, int64_t first, int64_t count,
                        T* mean, T* least) {
  Prepared<T> p;
  prepare(p, pairs, true);
  const Side<T>& y = p.y();
  // Classes of the references, and the runs of the anchors' classes.
  Buffer<int32_t> column_class(y.panels * Tile<T>::kWidth);
  Buffer<int64_t> class_size(y.n), run(p.x.n + 1);
  int64_t classes = 0, runs = 0;
  for (int64_t j = 0; j < y.n; ++j) {
    if (j == 0 || y.rank[j] != y.rank[j - 1]) class_size[classes++] = 0;
    column_class[j] = static_cast<int32_t>(classes - 1);
    ++class_size[classes - 1];
  }
  for (int64_t i = 0; i < p.x.n; ++i) {
    if (i == 0 || p.x.rank[i] != p.x.rank[i - 1]) run[runs++] = i;
  }
  run[runs] = p.x.n;
  std::atomic<int64_t> next(0);
#pragma omp parallel num_threads(p.threads) if (p.threads > 1)
  {
    ScoreWorker<T> worker(p, thresholds, classes, column_class.get(), class_size.get());
    for (int64_t c; (c = next.fetch_add(1)) < count;) {
      worker(run[first + c], run[first + c + 1], mean + c * classes, least + c * classes);
    }
  }
  return p.nonfinite;
}

}  // namespace dmlap::cpu::DMLAP_ISA

#include "labels.h"

#include <algorithm>
#include <numeric>

namespace dmlap::cpu {

void sort_by_label(const int64_t* labels, int64_t n, int64_t* order) {
  std::iota(order, order + n, int64_t{0});
  std::sort(order, order + n, [labels](int64_t a, int64_t b) {
    return labels[a] != labels[b] ? labels[a] < labels[b] : a < b;
  });
}

int64_t rank_labels(const int64_t* x_labels, const int64_t* x_order, int64_t nx,
                    const int64_t* y_labels, const int64_t* y_order, int64_t ny, bool self,
                    int32_t* x_rank, int32_t* y_rank, int64_t* begin, int64_t* end) {
  int32_t rank = 0;
  int64_t i = 0, j = 0;
  while (i < nx || (!self && j < ny)) {
    const bool from_x = i < nx && (self || j >= ny || x_labels[x_order[i]] <= y_labels[y_order[j]]);
    const int64_t label = from_x ? x_labels[x_order[i]] : y_labels[y_order[j]];
    const int64_t i0 = i, j0 = j;
    while (i < nx && x_labels[x_order[i]] == label) x_rank[i++] = rank;
    if (!self) {
      while (j < ny && y_labels[y_order[j]] == label) y_rank[j++] = rank;
    }
    for (int64_t r = i0; r < i; ++r) {
      begin[r] = self ? i0 : j0;
      end[r] = self ? i : j;
    }
    ++rank;
  }
  return rank;
}

}  // namespace dmlap::cpu

// Sorting rows by label, and the ranks of their classes.
#include "engine/labels.h"

#include <algorithm>
#include <numeric>
#include <vector>

namespace dmlap::cpu {

namespace {

// Stable, in O(n + span): labels are low .. low + span - 1.
void count_by_label(const int64_t* labels, int64_t n, int64_t low, int64_t span, int64_t* order) {
  std::vector<int64_t> next(span + 1, 0);
  for (int64_t i = 0; i < n; ++i) ++next[labels[i] - low + 1];
  for (int64_t c = 0; c < span; ++c) next[c + 1] += next[c];
  for (int64_t i = 0; i < n; ++i) order[next[labels[i] - low]++] = i;
}

}  // namespace

void sort_by_label(const int64_t* labels, int64_t n, int64_t* order) {
  if (n == 0) return;
  const auto [low, high] = std::minmax_element(labels, labels + n);
  // Unsigned: the span of any two int64 fits, and 0 stands for 2^64.
  const uint64_t span = static_cast<uint64_t>(*high) - static_cast<uint64_t>(*low) + 1;
  if (span != 0 && span <= static_cast<uint64_t>(n) * 4 + 64) {
    return count_by_label(labels, n, *low, static_cast<int64_t>(span), order);
  }
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

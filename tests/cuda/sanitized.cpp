// Runs every launcher on ragged sizes. Arrays are on the heap and of the exact size, so that
// AddressSanitizer sees an access past their ends, and shared memory likewise.
#include <cstdio>
#include <vector>

#include "dmlap/cuda/sweeps.h"

using namespace dmlap;
using namespace dmlap::cuda;

namespace {

using Floats = std::vector<float>;
using Ints = std::vector<int>;

Floats numbers(int64_t count) {
  Floats out(static_cast<size_t>(count));
  unsigned seed = 1;
  for (float& value : out) {
    seed = seed * 1664525u + 1013904223u;
    value = static_cast<float>(seed >> 8) / (1 << 24) - 0.5f;
  }
  return out;
}

// Each third row is close to the one before it, so that distances are taken from differences, too.
Floats near_rows(int64_t rows, int64_t dim) {
  Floats out = numbers(rows * dim);
  for (int64_t k = dim; k < rows * dim; ++k) {
    if (k / dim % 3 == 1) out[static_cast<size_t>(k)] = out[static_cast<size_t>(k - dim)] + 1e-3f;
  }
  return out;
}

Floats norms(const Floats& rows, int64_t dim) {
  Floats out(rows.size() / static_cast<size_t>(dim), 0.f);
  for (size_t k = 0; k < rows.size(); ++k) out[k / static_cast<size_t>(dim)] += rows[k] * rows[k];
  return out;
}

// Runs of columns for rows whose labels ascend: `classes` labels on both sides.
void runs(int64_t rows, int64_t cols, int64_t classes, Ints& first, Ints& last) {
  for (int64_t i = 0; i < rows; ++i) {
    const int64_t label = i * classes / rows;
    first.push_back(static_cast<int>((label * cols + classes - 1) / classes));
    last.push_back(static_cast<int>(((label + 1) * cols + classes - 1) / classes));
  }
}

int run(int64_t rows, int64_t cols, int64_t dim, bool self, int distance, int precision) {
  const Floats x = near_rows(rows, dim), other = near_rows(cols, dim);
  const Floats& y = self ? x : other;
  const Floats x_norms = norms(x, dim), y_norms = norms(y, dim);
  Ints first, last, col_first, col_last;
  runs(rows, cols, 3, first, last);
  runs(cols, rows, 3, col_first, col_last);
  const Sides s{
      x.data(),         y.data(),        x_norms.data(), y_norms.data(), first.data(), last.data(),
      col_first.data(), col_last.data(), rows,           cols,           dim,          self,
      distance,         precision};
  const Queue queue{0, nullptr};
  std::vector<char> workspace(static_cast<size_t>(sweep_workspace(s)));
  const auto n = static_cast<size_t>(rows);
  std::vector<Floats> out(6, Floats(n));
  std::vector<Ints> counts(2, Ints(n));
  const Floats bound(n, 1.f), of_columns(static_cast<size_t>(cols), -1.f);
  int status = launch_extremes(s,
                               {out[0].data(), counts[0].data(), out[1].data(), counts[1].data(),
                                out[2].data(), out[3].data()},
                               workspace.data(), queue);
  status |= launch_hinge_sums(s, {bound.data(), bound.data(), true},
                              {out[0].data(), out[1].data(), out[2].data(), out[3].data(),
                               counts[0].data(), counts[1].data()},
                              workspace.data(), queue);
  const Exponent<float> up{1, 0, 0, 0}, down{-1, 0, 0, 0};
  status |= launch_log_sums(s, {up, down, bound.data(), bound.data()},
                            {out[0].data(), out[1].data(), out[2].data()}, workspace.data(), queue);
  status |= launch_pair_terms(
      s, {PairKind::lifted, up, bound.data(), of_columns.data(), of_columns.data()},
      {out[0].data(), counts[0].data(), out[1].data()}, workspace.data(), queue);
  Floats gradient(x.size()), parts(x.size() * static_cast<size_t>(gradient_splits(s)));
  for (const int kind : {0, 1, 2, 3, 4, 5}) {
    const size_t table_rows = kind < 2 ? 4 : kind == 2 ? 5 : kind == 3 ? 7 : 3;
    const Floats of_x(table_rows * n, 1.f), of_y(table_rows * static_cast<size_t>(cols), 1.f);
    const Weights weights{static_cast<WeightKind>(kind), of_x.data(), of_y.data(), up, down};
    status |= launch_gradient(s, weights, gradient.data(), parts.data(), queue);
  }
  const std::vector<int64_t> ends_x{rows / 2, rows}, ends_y{1, cols / 2 + 1, cols};
  Floats sums(6, 0.f), smallest(6, INFINITY);
  status |= launch_class_scores(
      s, {bound.data(), ends_x.data(), ends_y.data(), 2, 3, sums.data(), smallest.data()}, queue);
  for (const int k : {1, 5, 129}) {
    const auto size = static_cast<size_t>(nearest_groups(s) * rows * k);
    Floats near(size);
    Ints columns(size);
    status |= launch_nearest(s, k, near.data(), columns.data(), queue);
  }
  return status;
}

}  // namespace

int main() {
  int status = 0;
  status |= run(131, 131, 16, true, 0, 0);
  status |= run(7, 70, 32, false, 2, 1);
  status |= run(66, 3, 272, false, 1, 2);
  status |= run(3, 2100, 16, false, 0, 1);  // several tiles of columns a block
  std::printf("%d\n", status);
  return status;
}

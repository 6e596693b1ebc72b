// Runs every launcher on ragged sizes. Arrays are on the heap and of the exact size, so that
// AddressSanitizer sees an access past their ends, and shared memory likewise.
#include <cstdio>
#include <utility>
#include <vector>

#include "dmlap/cuda/soft_triple_launchers.h"
#include "dmlap/cuda/sweeps.h"
#include "dmlap/cuda/windows.h"

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

// The references as anchors of themselves; `first` and `last` are their runs.
Sides among_references(const Sides& s, const float* norms, const Ints& first, const Ints& last) {
  Sides among = s;
  among.x = s.y;
  among.x_norms = norms;
  among.first = among.col_first = first.data();
  among.last = among.col_last = last.data();
  among.rows = s.cols;
  among.self = true;
  among.itself = nullptr;
  return among;
}

Sides swapped(const Sides& s) {
  Sides other = s;
  std::swap(other.x, other.y);
  std::swap(other.x_norms, other.y_norms);
  std::swap(other.first, other.col_first);
  std::swap(other.last, other.col_last);
  std::swap(other.rows, other.cols);
  std::swap(other.itself, other.col_itself);
  return other;
}

// Losses of windows of ranks, in windows of two sizes.
int run_windows(const Sides& s, const Sides& among, const Queue& queue) {
  const auto n = static_cast<size_t>(s.rows), m = static_cast<size_t>(s.cols);
  const auto dim = static_cast<size_t>(s.dim);
  const Floats weight(n, 1.f);
  std::vector<int64_t> numbers(n, 3);
  std::vector<double> sums(5 * n);
  const double params[] = {0.3, 0, 1, 0.5, 1.4, 7};
  Floats gx(n * dim), gy(m * dim);
  int64_t largest = s.cols;
  int status = 0;
  for (const int64_t ranks : {int64_t{5}, s.cols}) {
    const auto kept = static_cast<size_t>(ranks) * n;
    std::vector<Floats> tables(3, Floats(kept));
    Ints negative(kept);
    for (const Window window : {Window{0, ranks}, Window{ranks, ranks}}) {
      for (const Mining mining : {Mining::semihard, Mining::distance_weighted}) {
        MinedIn in{
            mining, Triplet<float>(params), DistanceWeights(params, s.dim), numbers.data(), window,
            nullptr};
        const MinedOut forward{sums.data(), nullptr, nullptr, nullptr, nullptr};
        status |= launch_mined(s, among, in, forward, queue);
        in.weight = weight.data();
        const MinedOut backward{nullptr, tables[0].data(), tables[1].data(), tables[2].data(),
                                negative.data()};
        status |= launch_mined(s, among, in, backward, queue);
        const MinedPairs pairs{window,           &largest,         tables[0].data(),
                               tables[1].data(), tables[2].data(), negative.data()};
        float* to = s.self ? gx.data() : gy.data();
        status |= launch_mined_gradient(s, pairs, false, gx.data(), queue);
        status |= launch_mined_gradient(s, pairs, true, to, queue);
      }
      for (const WindowKind kind :
           {WindowKind::triplets, WindowKind::swapped, WindowKind::angular}) {
        const WindowRule rule{kind, Triplet<float>(params), Angular<float>(0.7)};
        if (rule.third() && ranks > 5) continue;  // a tile for each rank: slow here
        WindowSumsIn in{rule, window, nullptr};
        status |= launch_window_sums(s, among, in, {sums.data(), nullptr, nullptr, nullptr}, queue);
        in.weight = weight.data();
        const WindowSumsOut backward{nullptr, tables[0].data(), tables[1].data(), tables[2].data()};
        status |= launch_window_sums(s, among, in, backward, queue);
        const auto add = [&](WindowRows which, const Sides& rows) {
          Floats parts(static_cast<size_t>(gradient_splits(rows) * rows.rows * rows.dim));
          const WindowPairs pairs{
              rule,          window,           &largest,         which,
              weight.data(), tables[0].data(), tables[1].data(), tables[2].data()};
          status |= launch_window_gradient(rows, s, among, pairs, parts.data(), queue);
        };
        if (s.self) {
          add(WindowRows::both, s);
        } else {
          add(WindowRows::anchors, s);
          add(WindowRows::references, swapped(s));
        }
        if (rule.third()) add(WindowRows::positives, among);
      }
    }
  }
  return status;
}

// With the classes of the references, and with one class that does not fit a tile.
int run_soft_triple(const Sides& s, const Ints& first, const Ints& last, const Queue& queue) {
  const auto n = static_cast<size_t>(s.rows);
  const double params[] = {20, 0.1, 0.01};
  const Floats weight(n, 1.f);
  Floats out(3 * n);
  const Ints begin(first.size(), 0), end(first.size(), static_cast<int>(s.cols));
  int status = 0;
  for (const bool one : {false, true}) {
    const SoftTripleIn in{SoftTriple<float>(params), (one ? begin : first).data(),
                          (one ? end : last).data()};
    std::vector<char> workspace(static_cast<size_t>(soft_triple_workspace(s)));
    status |= launch_soft_triple(s, in, out.data(), workspace.data(), queue);
    for (const bool centres : {false, true}) {
      const Sides rows = centres ? swapped(s) : s;
      const SoftTripleKept kept{in, out.data() + n, out.data() + 2 * n, weight.data(), centres};
      Floats gradient(static_cast<size_t>(rows.rows * rows.dim));
      Floats parts(gradient.size() * static_cast<size_t>(gradient_splits(rows)));
      status |= launch_soft_triple_gradient(rows, kept, gradient.data(), parts.data(), queue);
    }
  }
  return status;
}

// With `named` each anchor has a column that is itself, or -1.
int run(int64_t rows, int64_t cols, int64_t dim, bool self, int distance, int precision,
        bool named) {
  const Floats x = near_rows(rows, dim), other = near_rows(cols, dim);
  const Floats& y = self ? x : other;
  const Floats x_norms = norms(x, dim), y_norms = norms(y, dim);
  Ints first, last, col_first, col_last;
  runs(rows, cols, 3, first, last);
  runs(cols, rows, 3, col_first, col_last);
  Ints itself;
  for (int64_t i = 0; i < rows; ++i) itself.push_back(static_cast<int>(i * 5 % (cols + 1)) - 1);
  const Sides s{x.data(),
                y.data(),
                x_norms.data(),
                y_norms.data(),
                first.data(),
                last.data(),
                col_first.data(),
                col_last.data(),
                rows,
                cols,
                dim,
                self,
                static_cast<Distance>(distance),
                static_cast<Precision>(precision),
                named ? itself.data() : nullptr};
  const Queue queue{0, nullptr};
  std::vector<char> workspace(static_cast<size_t>(sweep_workspace(s)));
  const auto n = static_cast<size_t>(rows);
  std::vector<Floats> out(6, Floats(n));
  std::vector<Ints> counts(2, Ints(n));
  std::vector<char> more_workspace(static_cast<size_t>(sweep_workspace(swapped(s))));
  std::vector<Floats> of_refs(2, Floats(static_cast<size_t>(cols)));
  Ints of_refs_counts(static_cast<size_t>(cols));
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
  status |= launch_logistic_sums(s, up, down, out[0].data(), workspace.data(), queue);
  status |= launch_log_sums(s, {up, down, bound.data(), bound.data()},
                            {out[0].data(), out[1].data(), out[2].data()}, workspace.data(), queue);
  status |= launch_pair_terms(
      s, {PairKind::lifted, up, bound.data(), of_columns.data(), of_columns.data()},
      {out[0].data(), counts[0].data(), out[1].data()}, workspace.data(), queue);
  Floats gradient(x.size()), parts(x.size() * static_cast<size_t>(gradient_splits(s)));
  status |= launch_pair_terms(
      swapped(s), {PairKind::nt_xent, up, of_columns.data(), nullptr, bound.data()},
      {of_refs[0].data(), of_refs_counts.data(), of_refs[1].data()}, more_workspace.data(), queue);
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
  Ints first_among, last_among;
  runs(cols, cols, 3, first_among, last_among);
  const Sides among = among_references(s, y_norms.data(), first_among, last_among);
  status |= run_windows(s, among, queue);
  return status | run_soft_triple(s, first_among, last_among, queue);
}

}  // namespace

int main() {
  int status = 0;
  status |= run(131, 131, 16, true, 0, 0, false);
  status |= run(7, 70, 32, false, 2, 1, true);
  status |= run(66, 3, 272, false, 1, 2, true);
  status |= run(3, 2100, 16, false, 0, 1, false);  // several tiles of columns a block
  std::printf("%d\n", status);
  return status;
}

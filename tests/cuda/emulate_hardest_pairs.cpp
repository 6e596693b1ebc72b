#include <vector>

#include "emulation.h"
#include "hardest_pairs.cuh"

using namespace dmlap::cuda;

// The two kernels, launched as hardest_pairs.cu does; splits = 0 takes the launcher's number.
// Returns 0, or 1 if threads diverged at a barrier.
extern "C" int emulate_hardest_pairs(const float* x, const float* y, const int64_t* labels,
                                     const int64_t* ref_labels, int64_t anchors, int64_t refs,
                                     int64_t dim, int self_case, int64_t splits, int descending,
                                     float* positive_d2, float* negative_d2, int64_t* positive,
                                     int64_t* negative) {
  const HardestPairs problem{x,           y,           labels,   ref_labels,
                             anchors,     refs,        dim,      self_case != 0,
                             positive_d2, negative_d2, positive, negative};
  if (splits == 0) splits = count_splits(anchors, refs);
  std::vector<int64_t> workspace(static_cast<size_t>(3 * anchors * splits) + 1, -7);
  const Partials parts = carve(workspace.data(), anchors, splits);
  try {
    if (splits > 0) {
      const int64_t refs_per_split = ceil_div(ceil_div(refs, kTile), splits) * kTile;
      const dim3 grid{static_cast<unsigned>(ceil_div(anchors, kTile)),
                      static_cast<unsigned>(splits)};
      emulation::launch(grid, {kSide, kSide}, descending != 0,
                        [&] { hardest_pairs_kernel(problem, parts, refs_per_split); });
    }
    const dim3 grid{static_cast<unsigned>(ceil_div(anchors, kThreads))};
    emulation::launch(grid, {kThreads}, descending != 0,
                      [&] { merge_splits_kernel(problem, parts, splits); });
  } catch (const std::exception&) {
    return 1;
  }
  return 0;
}

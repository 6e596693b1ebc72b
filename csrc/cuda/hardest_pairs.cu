#include "hardest_pairs.cuh"

#include <cuda_runtime.h>

namespace dmlap::cuda {

namespace {

// The runtime linked in here has a current device of its own, whatever other libraries selected.
class DeviceGuard {
 public:
  explicit DeviceGuard(int device) {
    status_ = cudaGetDevice(&previous_);
    if (status_ == cudaSuccess) status_ = cudaSetDevice(device);
  }
  ~DeviceGuard() {
    if (status_ == cudaSuccess) cudaSetDevice(previous_);
  }
  DeviceGuard(const DeviceGuard&) = delete;
  DeviceGuard& operator=(const DeviceGuard&) = delete;
  cudaError_t status() const { return status_; }

 private:
  int previous_ = 0;
  cudaError_t status_;
};

}  // namespace

int64_t hardest_pairs_workspace(int64_t anchors, int64_t refs) {
  if (anchors == 0) return 0;
  const int64_t slots = anchors * count_splits(anchors, refs);
  return slots * 2 * static_cast<int64_t>(sizeof(int64_t) + sizeof(float));
}

int launch_hardest_pairs(const HardestPairs& problem, void* workspace, int device, void* stream) {
  if (problem.anchors == 0) return cudaSuccess;
  const DeviceGuard guard(device);
  if (guard.status() != cudaSuccess) return guard.status();
  const int64_t splits = count_splits(problem.anchors, problem.refs);
  const Partials parts = carve(workspace, problem.anchors, splits);
  const auto queue = static_cast<cudaStream_t>(stream);
  if (splits > 0) {
    const int64_t tiles = ceil_div(problem.refs, kTile);
    const int64_t refs_per_split = ceil_div(tiles, splits) * kTile;
    const dim3 grid(static_cast<unsigned>(ceil_div(problem.anchors, kTile)),
                    static_cast<unsigned>(splits));
    hardest_pairs_kernel<<<grid, dim3(kSide, kSide), 0, queue>>>(problem, parts, refs_per_split);
    if (const cudaError_t status = cudaGetLastError(); status != cudaSuccess) return status;
  }
  const auto blocks = static_cast<unsigned>(ceil_div(problem.anchors, kThreads));
  merge_splits_kernel<<<blocks, kThreads, 0, queue>>>(problem, parts, splits);
  return cudaGetLastError();
}

}  // namespace dmlap::cuda

// How kernels are launched. nvcc compiles it, or a host compiler after tests/cuda/emulation.h,
// which emulates CUDA on the CPU.
#pragma once

#include <cstddef>
#include <cstdint>

#include "dmlap/cuda/sides.h"

#ifdef __CUDACC__
#include <cuda_runtime.h>
#endif

namespace dmlap::cuda {

constexpr int kThreads = 256;  // of every block
constexpr unsigned kWholeWarp = 0xffffffffu;
// Bytes of shared memory that a block can have on every GPU from capability 8.0 on.
constexpr size_t kMostShared = 99 << 10;

__host__ __device__ inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// The block's dynamic shared memory.
__device__ inline float* shared_memory() {
#ifdef __CUDACC__
  extern __shared__ float4 dmlap_shared[];
  return reinterpret_cast<float*>(dmlap_shared);
#else
  return reinterpret_cast<float*>(emulation::dynamic_shared);
#endif
}

#ifdef __CUDACC__

// The runtime linked into this extension has its own current device.
class DeviceGuard {
 public:
  explicit DeviceGuard(int device) {
    status_ = cudaGetDevice(&previous_);
    if (status_ == cudaSuccess && previous_ != device) status_ = cudaSetDevice(device);
    changed_ = status_ == cudaSuccess && previous_ != device;
  }
  ~DeviceGuard() {
    if (changed_) cudaSetDevice(previous_);
  }
  DeviceGuard(const DeviceGuard&) = delete;
  DeviceGuard& operator=(const DeviceGuard&) = delete;
  cudaError_t status() const { return status_; }

 private:
  int previous_ = 0;
  bool changed_ = false;
  cudaError_t status_;
};

// Returns a cudaError_t.
template <class... Params, class... Args>
int launch(void (*kernel)(Params...), const Queue& queue, dim3 grid, size_t shared_bytes,
           const Args&... args) {
  const DeviceGuard guard(queue.device);
  if (guard.status() != cudaSuccess) return guard.status();
  if (shared_bytes > (48 << 10)) {  // more must be asked for
    const cudaError_t status = cudaFuncSetAttribute(
        kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(shared_bytes));
    if (status != cudaSuccess) return status;
  }
  kernel<<<grid, kThreads, shared_bytes, static_cast<cudaStream_t>(queue.stream)>>>(args...);
  return cudaGetLastError();
}

#else

template <class... Params, class... Args>
int launch(void (*kernel)(Params...), const Queue&, dim3 grid, size_t shared_bytes,
           const Args&... args) {
  return emulation::launch(grid, dim3(kThreads), shared_bytes, [&] { kernel(args...); });
}

#endif

}  // namespace dmlap::cuda

// Asynchronous copies from global to shared memory.
#pragma once

#include "runtime.cuh"

namespace dmlap::cuda {

// Copies 16 bytes; both addresses are multiples of 16.
__device__ inline void copy_async(float* shared, const float* global) {
#ifdef __CUDACC__
  const unsigned to = static_cast<unsigned>(__cvta_generic_to_shared(shared));
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(to), "l"(global) : "memory");
#else
  emulation::start_copy(shared, global, 16);
#endif
}

// Commits the copies since the last call as a group.
__device__ inline void commit_copies() {
#ifdef __CUDACC__
  asm volatile("cp.async.commit_group;" ::: "memory");
#else
  emulation::commit_copies();
#endif
}

// Waits until at most `kPending` of this thread's latest groups are in flight. Other threads'
// copies are there after a barrier.
template <int kPending>
__device__ inline void wait_copies() {
#ifdef __CUDACC__
  asm volatile("cp.async.wait_group %0;" ::"n"(kPending) : "memory");
#else
  emulation::wait_copies(kPending);
#endif
}

}  // namespace dmlap::cuda

// Copies from global to shared memory that run beside the arithmetic.
#pragma once

#include "runtime.cuh"

namespace dmlap::cuda {

// 16 bytes, both addresses multiples of 16.
__device__ inline void copy_async(float* shared, const float* global) {
#ifdef __CUDACC__
  const unsigned to = static_cast<unsigned>(__cvta_generic_to_shared(shared));
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(to), "l"(global) : "memory");
#else
  emulation::current->open.push_back({shared, global, 16});
#endif
}

// The copies since the last group become a group.
__device__ inline void commit_copies() {
#ifdef __CUDACC__
  asm volatile("cp.async.commit_group;" ::: "memory");
#else
  emulation::Fiber& thread = *emulation::current;
  thread.groups.push_back(std::move(thread.open));
  thread.open.clear();
#endif
}

// Until at most `kPending` of this thread's latest groups are under way; what others copied is
// there after a barrier.
template <int kPending>
__device__ inline void wait_copies() {
#ifdef __CUDACC__
  asm volatile("cp.async.wait_group %0;" ::"n"(kPending) : "memory");
#else
  auto& groups = emulation::current->groups;
  while (groups.size() > size_t{kPending}) {
    for (const emulation::Copy& copy : groups.front()) std::memcpy(copy.to, copy.from, copy.bytes);
    groups.erase(groups.begin());
  }
#endif
}

}  // namespace dmlap::cuda

#pragma once

// Enough of CUDA's language to run a kernel body on the CPU: the threads of a block are fibers that
// take turns at every __syncthreads(), blocks run one after another. A shared variable is a static
// one. Threads take turns in ascending or in descending order, so that a missing barrier shows as a
// difference between the two.

#include <ucontext.h>

#include <cstdint>
#include <functional>
#include <memory>
#include <stdexcept>
#include <vector>

#define __global__
#define __device__
#define __host__
#define __shared__ static
#define __launch_bounds__(...)

struct dim3 {
  unsigned x = 1, y = 1, z = 1;
};

struct alignas(16) float4 {
  float x, y, z, w;
};

inline dim3 threadIdx, blockIdx, blockDim, gridDim;

namespace emulation {

struct Fiber {
  ucontext_t context;
  std::unique_ptr<char[]> stack;
  dim3 index;
  bool done = false;
};

inline ucontext_t scheduler;
inline Fiber* current = nullptr;
inline const std::function<void()>* body = nullptr;

inline void enter() {
  (*body)();
  current->done = true;
  swapcontext(&current->context, &scheduler);
}

inline void run_block(dim3 block, bool descending) {
  constexpr size_t kStack = 64 << 10;
  std::vector<Fiber> fibers(size_t{block.x} * block.y * block.z);
  for (size_t t = 0; t < fibers.size(); ++t) {
    Fiber& fiber = fibers[t];
    const auto n = static_cast<unsigned>(t);
    fiber.index = {n % block.x, n / block.x % block.y, n / (block.x * block.y)};
    fiber.stack = std::make_unique<char[]>(kStack);
    getcontext(&fiber.context);
    fiber.context.uc_stack.ss_sp = fiber.stack.get();
    fiber.context.uc_stack.ss_size = kStack;
    makecontext(&fiber.context, enter, 0);
  }
  for (size_t done = 0; done < fibers.size();) {
    done = 0;
    for (size_t t = 0; t < fibers.size(); ++t) {
      current = &fibers[descending ? fibers.size() - 1 - t : t];
      if (!current->done) {
        threadIdx = current->index;
        swapcontext(&scheduler, &current->context);
      }
      done += current->done;
    }
    if (done != 0 && done != fibers.size()) {
      throw std::runtime_error("some threads of a block left while others wait at a barrier");
    }
  }
}

inline void launch(dim3 grid, dim3 block, bool descending, const std::function<void()>& kernel) {
  body = &kernel;
  gridDim = grid;
  blockDim = block;
  for (unsigned y = 0; y < grid.y; ++y) {
    for (unsigned x = 0; x < grid.x; ++x) {
      blockIdx = {x, y, 0};
      run_block(block, descending);
    }
  }
}

}  // namespace emulation

inline void __syncthreads() { swapcontext(&emulation::current->context, &emulation::scheduler); }

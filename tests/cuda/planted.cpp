// Kernels with and without a mistake, to show that the harness finds it. Prints sums of the output.
#include <cstdio>
#include <string>
#include <vector>

#include "async.cuh"
#include "mma.cuh"

using namespace dmlap::cuda;

// Each thread hands its number to the next one by shared memory.
__global__ void hand_on_kernel(float* out, bool with_barrier) {
  float* shared = shared_memory();
  shared[threadIdx.x] = static_cast<float>(threadIdx.x);
  if (with_barrier) __syncthreads();
  out[threadIdx.x] = shared[(threadIdx.x + 1) % kThreads];
}

// The same within a warp.
__global__ void hand_on_in_warp_kernel(float* out, bool with_barrier) {
  float* shared = shared_memory();
  const unsigned next = threadIdx.x / 32 * 32 + (threadIdx.x + 1) % 32;
  shared[threadIdx.x] = static_cast<float>(threadIdx.x);
  if (with_barrier) __syncwarp();
  out[threadIdx.x] = shared[next];
}

// A shuffle orders nothing but its own numbers.
__global__ void hand_on_after_shuffle_kernel(float* out, bool with_barrier) {
  float* shared = shared_memory();
  const unsigned next = threadIdx.x / 32 * 32 + (threadIdx.x + 1) % 32;
  shared[threadIdx.x] = __shfl_xor_sync(kWholeWarp, static_cast<float>(threadIdx.x ^ 1), 1);
  const float zero = __shfl_sync(kWholeWarp, 0.f, 0);
  if (with_barrier) __syncwarp();
  out[threadIdx.x] = shared[next] + zero;
}

// Each thread reads what its neighbour's next copy is to take the place of.
__global__ void overwrite_kernel(const float* in, float* out, bool with_barrier) {
  float* shared = shared_memory();
  shared[threadIdx.x] = 1;
  __syncthreads();
  out[threadIdx.x] = shared[(threadIdx.x + 4) % kThreads];
  if (with_barrier) __syncthreads();
  if (threadIdx.x < kThreads / 4) copy_async(shared + 4 * threadIdx.x, in + 4 * threadIdx.x);
  commit_copies();
  wait_copies<0>();
}

// Two blocks, each with a half of the output for itself.
__global__ void halves_kernel(float* out, bool apart) {
  const unsigned half = kThreads / 2;
  if (threadIdx.x < half) out[(apart ? blockIdx.x * half : 0) + threadIdx.x] = 1;
}

__global__ void copy_kernel(const float* in, float* out, bool with_wait) {
  float* shared = shared_memory();
  if (threadIdx.x < kThreads / 4) copy_async(shared + 4 * threadIdx.x, in + 4 * threadIdx.x);
  commit_copies();
  if (with_wait) wait_copies<0>();
  __syncthreads();
  out[threadIdx.x] = shared[threadIdx.x];
}

__global__ void divergent_kernel(bool diverges) {
  if (!diverges || threadIdx.x != 7) __syncthreads();
}

__global__ void past_the_end_kernel(const float* in, float* out, int by) {
  out[threadIdx.x] = in[threadIdx.x + by];
}

__global__ void past_shared_kernel(float* out, int by) {
  float* shared = shared_memory();
  shared[threadIdx.x + by] = 1;
  __syncthreads();
  out[threadIdx.x] = 1;
}

int main(int count, char** arguments) {
  const std::string what = arguments[1];
  const bool wrong = count > 2 && std::string(arguments[2]) == "wrong";
  emulation::descending = count > 3;
  // On the heap and of the exact size, so that AddressSanitizer sees both ends.
  const std::vector<float> in(kThreads, 1.f);
  std::vector<float> out(kThreads, -1.f);
  const Queue queue{0, nullptr};
  const size_t shared = kThreads * sizeof(float);
  int status = -1;
  if (what == "barrier") {
    status = launch(hand_on_kernel, queue, dim3(1), shared, out.data(), !wrong);
  } else if (what == "warp") {
    status = launch(hand_on_in_warp_kernel, queue, dim3(1), shared, out.data(), !wrong);
  } else if (what == "shuffle") {
    status = launch(hand_on_after_shuffle_kernel, queue, dim3(1), shared, out.data(), !wrong);
  } else if (what == "overwrite") {
    status = launch(overwrite_kernel, queue, dim3(1), shared, in.data(), out.data(), !wrong);
  } else if (what == "blocks") {
    status = launch(halves_kernel, queue, dim3(2), 0, out.data(), !wrong);
  } else if (what == "wait") {
    status = launch(copy_kernel, queue, dim3(1), shared, in.data(), out.data(), !wrong);
  } else if (what == "divergence") {
    status = launch(divergent_kernel, queue, dim3(1), 0, wrong);
  } else if (what == "global") {
    status = launch(past_the_end_kernel, queue, dim3(1), 0, in.data(), out.data(), int{wrong});
  } else if (what == "shared") {
    status = launch(past_shared_kernel, queue, dim3(1), shared, out.data(), int{wrong});
  }
  double sum = 0;
  for (const float value : out) sum += value;
  std::printf("%d %g\n", status, sum);
  return 0;
}

#pragma once

// Enough of CUDA to run .cu files on the CPU: compile them with
//   g++ -x c++ -include tests/cuda/emulation.h
// The threads of a block are fibers of one host thread; blocks run one after another. A fiber runs
// until it comes to a barrier of its warp or block, so that a missing barrier lets a thread read
// what another has yet to write: results then differ between threads taken in ascending and in
// descending order. Shared memory starts as NaN and has the size that was asked for, on the heap,
// where AddressSanitizer watches its ends. Asynchronous copies arrive when they are waited for, and
// leave NaN until then. With ThreadSanitizer (races.h) accesses that no barrier orders are
// reported; shuffles, votes and products exchange what they are given, and order nothing else.

#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <vector>

#include "races.h"

#if !defined(__x86_64__)
#include <ucontext.h>
#endif

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __restrict__ __restrict

struct dim3 {
  unsigned x = 1, y = 1, z = 1;
  dim3(unsigned x_ = 1, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_) {}
};

struct alignas(8) float2 {
  float x, y;
};
struct alignas(16) float4 {
  float x, y, z, w;
};

inline thread_local dim3 threadIdx, blockIdx, blockDim, gridDim;

namespace emulation {

#if defined(__x86_64__)
// A switch that leaves the signal mask alone, unlike swapcontext: no system call.
asm(R"(
.text
.weak emulation_switch
.type emulation_switch, @function
emulation_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size emulation_switch, .-emulation_switch
)");
extern "C" void emulation_switch(void** save, void* load);

struct Context {
  void* stack_pointer = nullptr;
  races::Thread thread{};
  void start(char* stack, size_t bytes, void (*entry)()) {
    // The stack that emulation_switch expects: six registers, then where to return to, so that
    // `entry` finds it aligned as after a call.
    auto top = (reinterpret_cast<uintptr_t>(stack) + bytes) & ~uintptr_t{15};
    auto* words = reinterpret_cast<uintptr_t*>(top) - 8;
    for (int i = 0; i < 6; ++i) words[i] = 0;
    words[6] = reinterpret_cast<uintptr_t>(entry);
    words[7] = 0;
    stack_pointer = words;
  }
  EMULATION_UNCHECKED static void change(Context& from, Context& to) {
    races::change(to.thread);
    emulation_switch(&from.stack_pointer, to.stack_pointer);
  }
};
#else
struct Context {
  ucontext_t context;
  races::Thread thread{};
  void start(char* stack, size_t bytes, void (*entry)()) {
    getcontext(&context);
    context.uc_stack.ss_sp = stack;
    context.uc_stack.ss_size = bytes;
    makecontext(&context, entry, 0);
  }
  EMULATION_UNCHECKED static void change(Context& from, Context& to) {
    races::change(to.thread);
    swapcontext(&from.context, &to.context);
  }
};
#endif

constexpr int kWarp = 32;
constexpr size_t kStack = 64 << 10;

struct Copy {
  void* to;
  const void* from;
  size_t bytes;
};

struct Fiber {
  Context context;
  std::unique_ptr<char[]> stack;
  dim3 index;
  bool done = false;
  const unsigned* awaited = nullptr;  // a barrier's round, and the one it was in on arrival
  unsigned round = 0;
  std::vector<Copy> open;                 // copies of no group yet
  std::vector<std::vector<Copy>> groups;  // that nobody waited for yet

  bool runs() const { return !done && (awaited == nullptr || *awaited != round); }
};

// Threads that wait for one another, and what they lay down for an operation on all of them.
struct Meeting {
  unsigned expected = 0, arrived = 0, round = 0;
  void* given[kWarp] = {};
  char tokens[2] = {};  // of even and odd rounds: the next one may begin before all have left

  char* token() { return &tokens[round % 2]; }
};

struct Block {
  std::vector<Fiber> fibers;
  std::vector<Meeting> warps;
  Meeting all;
  int votes = 0, last_votes = 0;
  std::vector<char*> shared;  // static and dynamic
};

inline thread_local Context scheduler;
inline thread_local Block* block = nullptr;
inline thread_local Fiber* current = nullptr;
inline thread_local const std::function<void()>* body = nullptr;
inline thread_local char* dynamic_shared = nullptr;
inline bool descending = false;
inline char launched, finished;  // tokens: of what the host did before, and of what a kernel did

inline int lane() { return static_cast<int>((current - block->fibers.data()) % kWarp); }
inline Meeting& warp() { return block->warps[(current - block->fibers.data()) / kWarp]; }

// Asynchronous copies: what lies at `to` is undefined from the start of a copy to its arrival.
inline void start_copy(void* to, const void* from, size_t bytes) {
  std::memset(to, 0xff, bytes);
  current->open.push_back({to, from, bytes});
}

inline void commit_copies() {
  current->groups.push_back(std::move(current->open));
  current->open.clear();
}

inline void wait_copies(size_t pending) {
  auto& groups = current->groups;
  while (groups.size() > pending) {
    for (const Copy& copy : groups.front()) std::memcpy(copy.to, copy.from, copy.bytes);
    groups.erase(groups.begin());
  }
}

EMULATION_UNCHECKED inline void enter() {
  races::acquire(&launched);
  (*body)();
  // What nobody waited for arrives some time.
  commit_copies();
  wait_copies(0);
  races::release(&finished);
  current->done = true;
  Context::change(current->context, scheduler);
  std::abort();  // nobody returns to a fiber that is done
}

// Whoever comes last does `work` and lets the others go on.
template <class Work>
void meet(Meeting& meeting, const Work& work) {
  const races::Unseen unseen;
  if (++meeting.arrived == meeting.expected) {
    work();
    meeting.arrived = 0;
    ++meeting.round;
    return;
  }
  current->awaited = &meeting.round;
  current->round = meeting.round;
  Context::change(current->context, scheduler);
}

// What all did before it comes before what any does after it.
template <class Work>
void barrier(Meeting& meeting, const Work& work) {
  char* const token = meeting.token();
  races::release(token);
  meet(meeting, work);
  races::acquire(token);
}

// An operation on what the 32 threads of a warp lay down; `work` gets 32 pointers by lane.
template <class T, class Work>
void with_warp(T& mine, const Work& work) {
  const races::Unseen unseen;
  Meeting& meeting = warp();
  meeting.given[lane()] = &mine;
  meet(meeting, [&] { work(reinterpret_cast<T**>(meeting.given)); });
}

// Lets each thread of a warp run to its next barrier; whether any of them could.
inline bool run_warp(unsigned w) {
  bool moved = false;
  for (unsigned n = 0; n < kWarp; ++n) {
    const unsigned t = w * kWarp + (descending ? kWarp - 1 - n : n);
    if (t >= block->fibers.size() || !block->fibers[t].runs()) continue;
    current = &block->fibers[t];
    current->awaited = nullptr;
    threadIdx = current->index;
    Context::change(scheduler, current->context);
    moved = true;
  }
  return moved;
}

// Runs one block of a launch; false if some of its threads wait for others that have left.
inline bool run_block(dim3 size, unsigned number) {
  Block state;
  block = &state;
  const unsigned threads = size.x * size.y * size.z;
  state.fibers.resize(threads);
  state.warps.resize((threads + kWarp - 1) / kWarp);
  state.all.expected = threads;
  for (unsigned t = 0; t < threads; ++t) {
    Fiber& fiber = state.fibers[t];
    fiber.index = {t % size.x, t / size.x % size.y, t / (size.x * size.y)};
    fiber.stack.reset(new char[kStack]);
    fiber.context.start(fiber.stack.get(), kStack, enter);
    fiber.context.thread = races::thread(number, t);
    ++state.warps[t / kWarp].expected;
  }
  // A warp runs until all of its threads wait for other warps: these lag as far as they can.
  const auto warps = static_cast<unsigned>(state.warps.size());
  for (bool moved = true; moved;) {
    moved = false;
    for (unsigned w = 0; w < warps; ++w) {
      while (run_warp(descending ? warps - 1 - w : w)) moved = true;
    }
  }
  bool whole = true;
  for (const Fiber& fiber : state.fibers) whole = whole && fiber.done;
  return whole;
}

// Returns 0, or 1 if the threads of a block parted at a barrier.
inline int launch(dim3 grid, dim3 size, size_t shared_bytes, const std::function<void()>& kernel) {
  races::release(&launched);
  const races::Unseen unseen;
  scheduler.thread = races::self();
  body = &kernel;
  gridDim = grid;
  blockDim = size;
  for (unsigned z = 0; z < grid.z; ++z) {
    for (unsigned y = 0; y < grid.y; ++y) {
      for (unsigned x = 0; x < grid.x; ++x) {
        const std::unique_ptr<void, void (*)(void*)> memory(std::malloc(shared_bytes), std::free);
        std::memset(memory.get(), 0xff, shared_bytes);
        dynamic_shared = static_cast<char*>(memory.get());
        blockIdx = {x, y, z};
        if (!run_block(size, (z * grid.y + y) * grid.x + x)) return 1;
      }
    }
  }
  races::acquire(&finished);
  return 0;
}

}  // namespace emulation

inline void __syncthreads() {
  emulation::barrier(emulation::block->all, [] {});
}

inline int __syncthreads_or(int predicate) {
  const emulation::races::Unseen unseen;
  emulation::Block& b = *emulation::block;
  b.votes |= predicate != 0;
  emulation::barrier(b.all, [&] {
    b.last_votes = b.votes;
    b.votes = 0;
  });
  return b.last_votes;
}

inline void __syncwarp(unsigned = ~0u) {
  emulation::barrier(emulation::warp(), [] {});
}

inline unsigned __ballot_sync(unsigned, int predicate) {
  unsigned vote = predicate != 0;
  emulation::with_warp(vote, [](unsigned** votes) {
    unsigned all = 0;
    for (int l = 0; l < emulation::kWarp; ++l) all |= *votes[l] << l;
    for (int l = 0; l < emulation::kWarp; ++l) *votes[l] = all;
  });
  return vote;
}

inline int __any_sync(unsigned mask, int predicate) { return __ballot_sync(mask, predicate) != 0; }

namespace emulation {
template <class T, class From>
T shuffle(T value, const From& from) {
  with_warp(value, [&](T** values) {
    T old[kWarp];
    for (int l = 0; l < kWarp; ++l) old[l] = *values[l];
    for (int l = 0; l < kWarp; ++l) *values[l] = old[from(l)];
  });
  return value;
}
}  // namespace emulation

template <class T>
T __shfl_xor_sync(unsigned, T value, int mask) {
  return emulation::shuffle(value, [=](int l) { return l ^ mask; });
}

template <class T>
T __shfl_sync(unsigned, T value, int source) {
  return emulation::shuffle(value, [=](int) { return source; });
}

inline int __ffs(unsigned bits) { return __builtin_ffs(static_cast<int>(bits)); }
inline int __popc(unsigned bits) { return __builtin_popcount(bits); }
inline unsigned __float_as_uint(float value) {
  unsigned bits;
  std::memcpy(&bits, &value, 4);
  return bits;
}
inline float __uint_as_float(unsigned bits) {
  float value;
  std::memcpy(&value, &bits, 4);
  return value;
}
template <class T>
T __ldg(const T* address) {
  return *address;
}

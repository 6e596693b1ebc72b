#pragma once

// What ThreadSanitizer is told of the emulated threads, in builds with -fsanitize=thread: that each
// is a thread of its own, and what orders their accesses to memory. Two accesses to one place that
// no barrier orders are then reported, whatever turns the threads take. Nothing in other builds.

#if defined(__has_feature)
#if __has_feature(thread_sanitizer)
#define EMULATION_RACES
#endif
#endif
#if defined(__SANITIZE_THREAD__) || defined(EMULATION_RACES)

#include <sanitizer/tsan_interface.h>

#include <vector>

extern "C" {
void AnnotateIgnoreReadsBegin(const char* file, int line);
void AnnotateIgnoreReadsEnd(const char* file, int line);
void AnnotateIgnoreWritesBegin(const char* file, int line);
void AnnotateIgnoreWritesEnd(const char* file, int line);
}

namespace emulation::races {

using Thread = void*;
// Thread `number` of a block. Threads are used again, as making one takes long, but not by the next
// blocks, so that what blocks do to one another shows.
inline Thread thread(unsigned block, unsigned number) {
  static std::vector<std::vector<Thread>> made(4);
  std::vector<Thread>& of_block = made[block % made.size()];
  while (of_block.size() <= number) of_block.push_back(__tsan_create_fiber(0));
  return of_block[number];
}
inline Thread self() { return __tsan_get_current_fiber(); }
// To be followed by the switch itself; orders nothing.
__attribute__((no_sanitize("thread"))) inline void change(Thread to) {
  __tsan_switch_to_fiber(to, __tsan_switch_to_fiber_no_sync);
}

// What threads did before they release a token comes before what those do that acquire it.
inline void release(void* token) { __tsan_release(token); }
inline void acquire(void* token) { __tsan_acquire(token); }

// While it lives, accesses of this thread are the harness's own.
struct Unseen {
  Unseen() {
    AnnotateIgnoreReadsBegin(__FILE__, __LINE__);
    AnnotateIgnoreWritesBegin(__FILE__, __LINE__);
  }
  ~Unseen() {
    AnnotateIgnoreWritesEnd(__FILE__, __LINE__);
    AnnotateIgnoreReadsEnd(__FILE__, __LINE__);
  }
  Unseen(const Unseen&) = delete;
  Unseen& operator=(const Unseen&) = delete;
};

}  // namespace emulation::races

#define EMULATION_UNCHECKED __attribute__((no_sanitize("thread")))

#else

namespace emulation::races {

struct Thread {};
inline Thread thread(unsigned, unsigned) { return {}; }
inline Thread self() { return {}; }
inline void change(Thread) {}
inline void release(void*) {}
inline void acquire(void*) {}
struct Unseen {
  Unseen() {}
};

}  // namespace emulation::races

#define EMULATION_UNCHECKED

#endif

// Threads and memory for the sweeps: buffers, parallel loops, and the schedule that keeps sums in
// one order. Everything lives in the unit's own namespace: a template of
// the standard library instantiated here could be merged with one of a lesser instruction set.
#pragma once

#include <omp.h>
#include <sched.h>

#include <atomic>
#include <cstdint>
#include <cstdlib>
#include <new>

namespace dmlap::cpu::DMLAP_ISA {

// Uninitialised, 64-byte aligned, freed with its scope.
template <class T>
class Buffer {
 public:
  Buffer() = default;
  explicit Buffer(int64_t n) { reset(n); }
  ~Buffer() { std::free(data_); }
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;

  void reset(int64_t n) {
    std::free(data_);
    const size_t bytes = (static_cast<size_t>(n) * sizeof(T) + 64) / 64 * 64;
    data_ = static_cast<T*>(std::aligned_alloc(64, bytes));
    if (data_ == nullptr) throw std::bad_alloc();
  }
  void fill(int64_t n, T value) {
    for (int64_t i = 0; i < n; ++i) data_[i] = value;
  }
  void swap(Buffer& other) {
    T* data = data_;
    data_ = other.data_;
    other.data_ = data;
  }
  T* get() const { return data_; }
  T& operator[](int64_t i) const { return data_[i]; }

 private:
  T* data_ = nullptr;
};

template <class T>
inline void fill(T* out, int64_t n, T value) {
  for (int64_t i = 0; i < n; ++i) out[i] = value;
}

template <class F>
inline void parallel_for(int threads, int64_t n, F body) {
  if (threads <= 1 || n <= 1) {
    for (int64_t i = 0; i < n; ++i) body(i);
    return;
  }
#pragma omp parallel for num_threads(threads) schedule(static)
  for (int64_t i = 0; i < n; ++i) body(i);
}

// body(next) runs on every thread; next() hands out 0, 1, ... and beyond n.
template <class F>
inline void parallel_tasks(int threads, int64_t n, F body) {
  std::atomic<int64_t> counter(0);
  const auto next = [&counter] { return counter.fetch_add(1, std::memory_order_relaxed); };
  if (threads <= 1 || n <= 1) {
    body(next);
    return;
  }
#pragma omp parallel num_threads(threads)
  body(next);
}

inline void relax(int& spins) {
  if (++spins < 512) {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#endif
  } else {
    spins = 0;
    sched_yield();
  }
}

// Visits pairs of blocks so that whatever is accumulated into a block is accumulated in one fixed
// order, for any number of threads.
//
// Rounds are Latin: no block occurs twice in a round, and the tasks of a block are ordered by
// round. Threads take tasks in order and wait until both blocks have finished their earlier
// rounds, which they nearly always have: a block's previous task was issued a round ago.
//
//   self: pairs i <= j with (i + j) mod n = round;
//   else: pairs (i, (i + round) mod m) if there are more columns than rows, or the mirror image.
class Schedule {
 public:
  Schedule(int64_t rows, int64_t columns, bool self)
      : rows_(rows),
        columns_(columns),
        self_(self),
        n_(rows > columns ? rows : columns),
        row_done_(rows),
        column_done_(self ? 1 : columns) {
    for (int64_t i = 0; i < rows; ++i) new (&row_done_[i]) std::atomic<int64_t>(0);
    for (int64_t j = 0; j < (self ? 1 : columns); ++j)
      new (&column_done_[j]) std::atomic<int64_t>(0);
  }

  // make(thread) gives each thread its own worker; worker(i, j) is one task.
  template <class Make>
  void run(int threads, Make make) {
    if (rows_ == 0 || columns_ == 0) return;
    std::atomic<int64_t> next(0);
    const int64_t total = n_ * n_;
    if (threads <= 1) {
      auto worker = make(0);
      for (int64_t t = 0; t < total; ++t) step(t, worker);
      return;
    }
#pragma omp parallel num_threads(threads)
    {
      auto worker = make(omp_get_thread_num());
      for (;;) {
        const int64_t t = next.fetch_add(1, std::memory_order_relaxed);
        if (t >= total) break;
        step(t, worker);
      }
    }
  }

 private:
  // How many of the rounds before `round` held a task of block `b` on the longer side, where the
  // shorter side has `small` blocks: those with (b - r) mod n < small.
  int64_t earlier(int64_t b, int64_t round, int64_t small) const {
    int64_t count = 0;
    const int64_t low = b - round + 1;  // values b, b - 1, ..., low, modulo n
    const int64_t first = low > 0 ? low : 0, last = b < small - 1 ? b : small - 1;
    if (last >= first) count += last - first + 1;
    if (low < 0 && small > n_ + low) count += small - (n_ + low);
    return count;
  }

  static void wait(const std::atomic<int64_t>& done, int64_t target) {
    int spins = 0;
    while (done.load(std::memory_order_acquire) < target) relax(spins);
  }

  template <class Worker>
  void step(int64_t t, Worker& worker) {
    const int64_t round = t / n_, i = t % n_;
    if (self_) {
      const int64_t j = (round - i + n_) % n_;
      if (i > j) return;
      wait(row_done_[i], round);
      if (i != j) wait(row_done_[j], round);
      worker(i, j);
      row_done_[i].store(round + 1, std::memory_order_release);
      if (i != j) row_done_[j].store(round + 1, std::memory_order_release);
      return;
    }
    const bool wide = columns_ >= rows_;
    const int64_t small = wide ? rows_ : columns_;
    if (i >= small) return;
    const int64_t large = (i + round) % n_;
    std::atomic<int64_t>& short_side = wide ? row_done_[i] : column_done_[i];
    std::atomic<int64_t>& long_side = wide ? column_done_[large] : row_done_[large];
    const int64_t before = earlier(large, round, small);
    wait(short_side, round);
    wait(long_side, before);
    wide ? worker(i, large) : worker(large, i);
    short_side.store(round + 1, std::memory_order_release);
    long_side.store(before + 1, std::memory_order_release);
  }

  int64_t rows_, columns_;
  bool self_;
  int64_t n_;
  Buffer<std::atomic<int64_t>> row_done_, column_done_;
};

}  // namespace dmlap::cpu::DMLAP_ISA

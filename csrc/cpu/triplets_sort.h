// Sorting the distances of an anchor.
#pragma once

#include "triplets_slots.h"

namespace dmlap::cpu::DMLAP_ISA {

// A distance as an integer of the same order, and where it was.
template <class T>
struct Keyed {
  using Int = typename Simd<T>::Int;
  Int key, at;

  // Numbers that are not negative are ordered as their bits are.
  Keyed() = default;
  Keyed(T value, int64_t position) : at(static_cast<Int>(position)) {
    const T clamped = value < 0 ? T(0) : value;
    std::memcpy(&key, &clamped, sizeof key);
  }
  T value() const {
    T v;
    std::memcpy(&v, &key, sizeof v);
    return v;
  }
};

// Radix sort from the lowest digit: linear in the length of a row, equal distances keep their
// order.
template <class T>
class Sorter {
  static constexpr int kBits = 8;
  static constexpr int64_t kBuckets = int64_t{1} << kBits;

 public:
  explicit Sorter(int64_t capacity) : a_(capacity), b_(capacity), start_(kBuckets) {}

  // In ascending order, until the next call.
  const Keyed<T>* sort(const T* values, int64_t n) {
    Keyed<T>*from = a_.get(), *to = b_.get();
    for (int64_t i = 0; i < n; ++i) from[i] = Keyed<T>(values[i], i);
    for (int shift = 0; shift < int(8 * sizeof(T)); shift += kBits) {
      const auto digit = [shift](const Keyed<T>& k) {
        return static_cast<uint64_t>(k.key) >> shift & (kBuckets - 1);
      };
      start_.fill(kBuckets, 0);
      for (int64_t i = 0; i < n; ++i) start_[digit(from[i])] += 1;
      if (n == 0 || start_[digit(from[0])] == n) continue;
      int64_t sum = 0;
      for (int64_t b = 0; b < kBuckets; ++b) {
        const int64_t count = start_[b];
        start_[b] = sum;
        sum += count;
      }
      for (int64_t i = 0; i < n; ++i) to[start_[digit(from[i])]++] = from[i];
      Keyed<T>* t = from;
      from = to;
      to = t;
    }
    return from;
  }

 private:
  Buffer<Keyed<T>> a_, b_;
  Buffer<int64_t> start_;
};

}  // namespace dmlap::cpu::DMLAP_ISA

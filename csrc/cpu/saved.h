// What the forward sweep leaves for the backward sweep, in one block of bytes: a header, then per
// anchor arrays of the policy, then the bits of the active tiles.
#pragma once

#include <cstring>

#include "kernels.h"
#include "tile.h"

namespace dmlap::cpu::DMLAP_ISA {

struct SavedHeader {
  double denominator[2];  // of the two groups of terms, for the mean reductions
  double poisoned;
  double reserved;
};

// Triplet hard: rows of the triplet and its pair weights, by anchor row.
template <class T>
struct SavedTriplet {
  SavedHeader* header;
  int64_t* positive;  // [n] row of y, -1 where the anchor has no term
  int64_t* negative;  // [n]
  T* pull;            // [n] d term / d d_ap * factor of the pair (anchor, positive)
  T* push;            // [n] the same for (anchor, negative)
  T* between;         // [n] and for (positive, negative), which a swap may take instead

  static constexpr SavedSize size() {
    return {sizeof(SavedHeader), 2 * sizeof(int64_t) + 3 * sizeof(T)};
  }
  SavedTriplet(uint8_t* base, int64_t n) {
    header = reinterpret_cast<SavedHeader*>(base);
    positive = reinterpret_cast<int64_t*>(base + sizeof(SavedHeader));
    negative = positive + n;
    pull = reinterpret_cast<T*>(negative + n);
    push = pull + n;
    between = push + n;
  }
};

// With the bits of the tiles that hold an active pair, a byte for each pair of panels.
template <class T>
constexpr SavedSize with_active(SavedSize size, bool self) {
  size.panel = Tile<T>::kWidth;
  size.triangle = self;
  return size;
}

}  // namespace dmlap::cpu::DMLAP_ISA

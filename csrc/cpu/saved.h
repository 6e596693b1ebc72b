// What the forward sweep leaves for the backward sweep, in one block of bytes: a header, then per
// anchor arrays of the policy, then the bits of the active tiles.
#pragma once

#include <cstring>

#include "tile.h"

namespace dmlap::cpu::DMLAP_ISA {

struct SavedHeader {
  double denominator[2];  // of the two groups of terms, for the mean reductions
  double poisoned;
  double reserved;
};

// Triplet hard: rows of the triplet and the two pair weights, by anchor row.
template <class T>
struct SavedTriplet {
  SavedHeader* header;
  int64_t* positive;  // [n] row of y, -1 where the anchor has no term
  int64_t* negative;  // [n]
  T* pull;            // [n] d term / d d_ap * factor of the pair (anchor, positive)
  T* push;            // [n] the same for the pair with the negative, taken from the anchor,
  uint8_t* swapped;   // [n] or from the positive

  static size_t bytes(int64_t n) {
    return sizeof(SavedHeader) + n * (2 * sizeof(int64_t) + 2 * sizeof(T) + 1);
  }
  SavedTriplet(uint8_t* base, int64_t n) {
    header = reinterpret_cast<SavedHeader*>(base);
    positive = reinterpret_cast<int64_t*>(base + sizeof(SavedHeader));
    negative = positive + n;
    pull = reinterpret_cast<T*>(negative + n);
    push = pull + n;
    swapped = reinterpret_cast<uint8_t*>(push + n);
  }
};

// The bits of the tiles that hold an active pair, a byte for each pair of panels.
template <class T>
inline size_t active_bytes(const Pairs<T>& pairs) {
  constexpr int64_t W = Tile<T>::kWidth;
  return panel_pairs((pairs.x.n + W - 1) / W, (pairs.y.n + W - 1) / W, pairs.self);
}

}  // namespace dmlap::cpu::DMLAP_ISA

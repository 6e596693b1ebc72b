// Label order: who is a positive of whom, settled once before any sweep.
#pragma once

#include <cstdint>

namespace dmlap::cpu {

// Sorts rows by label; equal labels keep their order. order: [n], position -> row.
void sort_by_label(const int64_t* labels, int64_t n, int64_t* order);

// Class ranks over both sides, so that equal labels have equal ranks. The arrays are indexed by
// sorted position; x_order == y_order in the self case, where only x_rank is written.
// begin, end: [nx], the positions of y whose label is that of x's position (self included).
// Returns the number of ranks.
int64_t rank_labels(const int64_t* x_labels, const int64_t* x_order, int64_t nx,
                    const int64_t* y_labels, const int64_t* y_order, int64_t ny, bool self,
                    int32_t* x_rank, int32_t* y_rank, int64_t* begin, int64_t* end);

}  // namespace dmlap::cpu

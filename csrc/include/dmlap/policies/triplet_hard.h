// Batch-hard triplet loss (1703.07737): one triplet an anchor, farthest positive, nearest negative.
#pragma once

#include "dmlap/policies/triplet.h"

namespace dmlap {

template <class T>
using TripletHard = Triplet<T>;

}  // namespace dmlap

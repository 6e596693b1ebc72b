// The kernels compiled for any processor.
#define DMLAP_ISA baseline
#include "kernel_set.h"

namespace dmlap::cpu {

const KernelSet& kernels_baseline() {
  static constexpr KernelSet set{"baseline", baseline::table<float>(), baseline::table<double>()};
  return set;
}

}  // namespace dmlap::cpu

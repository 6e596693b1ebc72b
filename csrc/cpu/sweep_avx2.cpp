// The kernels compiled for AVX2.
#define DMLAP_ISA avx2
#include "kernel_set.h"

namespace dmlap::cpu {

const KernelSet& kernels_avx2() {
  static constexpr KernelSet set{"avx2", avx2::table<float>(), avx2::table<double>()};
  return set;
}

}  // namespace dmlap::cpu

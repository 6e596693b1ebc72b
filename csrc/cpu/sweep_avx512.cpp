// The kernels compiled for AVX-512.
#define DMLAP_ISA avx512
#include "kernel_set.h"

namespace dmlap::cpu {

const KernelSet& kernels_avx512() {
  static constexpr KernelSet set{"avx512", avx512::table<float>(), avx512::table<double>()};
  return set;
}

}  // namespace dmlap::cpu

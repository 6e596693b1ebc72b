// The choice among the instruction sets, once at run time.
#include <cstdlib>
#include <cstring>
#include <stdexcept>
#include <string>

#include "kernels.h"

namespace dmlap::cpu {

int available_levels(const KernelSet** out) {
  int n = 0;
#if defined(__x86_64__)
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  if (avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
      __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl")) {
    out[n++] = &kernels_avx512();
  }
  if (avx2) out[n++] = &kernels_avx2();
#endif
  out[n++] = &kernels_baseline();
  return n;
}

namespace {

const KernelSet& pick() {
  const KernelSet* levels[kMaxLevels];
  const int n = available_levels(levels);
  const char* wanted = std::getenv("DMLAP_SIMD");
  if (wanted == nullptr || *wanted == '\0') return *levels[0];
  std::string names;
  for (int i = 0; i < n; ++i) {
    if (std::strcmp(levels[i]->name, wanted) == 0) return *levels[i];
    names += (i ? ", " : "") + std::string(levels[i]->name);
  }
  throw std::runtime_error("DMLAP_SIMD must be one of " + names + " on this processor, got " +
                           wanted);
}

}  // namespace

const KernelSet& kernels() {
  static const KernelSet& set = pick();
  return set;
}

}  // namespace dmlap::cpu

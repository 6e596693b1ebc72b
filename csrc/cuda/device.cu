#include "dmlap/cuda/device.h"

#include <cuda_runtime.h>

namespace dmlap::cuda {

std::string error_text(int code) {
  const auto error = static_cast<cudaError_t>(code);
  return std::string(cudaGetErrorString(error)) + " (" + cudaGetErrorName(error) + ")";
}

Machine describe_machine() {
  Machine machine{0, 0, {}, {}};
  cudaRuntimeGetVersion(&machine.runtime_version);
  cudaDriverGetVersion(&machine.driver_version);
  int count = 0;
  cudaError_t status = cudaGetDeviceCount(&count);
  for (int i = 0; status == cudaSuccess && i < count; ++i) {
    cudaDeviceProp properties;
    status = cudaGetDeviceProperties(&properties, i);
    if (status == cudaSuccess) {
      machine.devices.push_back({properties.name, properties.major, properties.minor});
    }
  }
  if (status != cudaSuccess) {
    machine.error = error_text(status);
    cudaGetLastError();  // leave no error behind for the next launch to find
  }
  return machine;
}

}  // namespace dmlap::cuda

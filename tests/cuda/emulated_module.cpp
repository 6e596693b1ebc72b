// The Python module `dmlap_emulated`: the bindings of the CUDA launchers, on the CPU.
#include "../../python_bindings/cuda_sweeps.h"
#include "dmlap/cuda/device.h"

namespace dmlap::cuda {
std::string error_text(int) { return "the threads of a block parted at a barrier"; }
}  // namespace dmlap::cuda

PYBIND11_MODULE(dmlap_emulated, m) {
  register_cuda_sweeps(m);
  m.def("set_descending", [](bool descending) { emulation::descending = descending; });
}

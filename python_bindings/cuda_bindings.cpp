#if DMLAP_WITH_CUDA

#include "cuda_bindings.h"

#include <pybind11/stl.h>

#include "cuda_sweeps.h"
#include "dmlap/cuda/device.h"

namespace py = pybind11;
namespace cuda = dmlap::cuda;

namespace {

py::dict machine() {
  cuda::Machine found;
  {
    py::gil_scoped_release release;
    found = cuda::describe_machine();
  }
  py::list devices;
  for (const cuda::Device& device : found.devices) {
    devices.append(py::dict(py::arg("name") = device.name,
                            py::arg("capability") = py::make_tuple(device.major, device.minor)));
  }
  return py::dict(py::arg("runtime_version") = found.runtime_version,
                  py::arg("driver_version") = found.driver_version, py::arg("error") = found.error,
                  py::arg("devices") = devices);
}

}  // namespace

void register_cuda(py::module_& m) {
  m.def("cuda_machine", &machine,
        "Versions of CUDA (runtime linked in, driver; 1000 * major + 10 * minor, 0: no driver), "
        "the devices, and why they could not be listed.");
  register_cuda_sweeps(m);
}

#endif

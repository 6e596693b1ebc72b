#if DMLAP_WITH_CUDA

#include "cuda_bindings.h"

#include <pybind11/stl.h>

#include <cstdint>
#include <stdexcept>
#include <string>

#include "dmlap/cuda/device.h"
#include "dmlap/cuda/hardest_pairs.h"

namespace py = pybind11;
namespace cuda = dmlap::cuda;

namespace {

template <typename T>
T* pointer(uintptr_t address) {
  return reinterpret_cast<T*>(address);
}

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

void hardest_pairs(uintptr_t x, uintptr_t y, uintptr_t labels, uintptr_t ref_labels,
                   int64_t anchors, int64_t refs, int64_t dim, bool self_case,
                   uintptr_t positive_d2, uintptr_t negative_d2, uintptr_t positive,
                   uintptr_t negative, uintptr_t workspace, int device, uintptr_t stream) {
  const cuda::HardestPairs problem{pointer<const float>(x),
                                   pointer<const float>(y),
                                   pointer<const int64_t>(labels),
                                   pointer<const int64_t>(ref_labels),
                                   anchors,
                                   refs,
                                   dim,
                                   self_case,
                                   pointer<float>(positive_d2),
                                   pointer<float>(negative_d2),
                                   pointer<int64_t>(positive),
                                   pointer<int64_t>(negative)};
  int status = 0;
  {
    py::gil_scoped_release release;
    status = cuda::launch_hardest_pairs(problem, pointer<void>(workspace), device,
                                        pointer<void>(stream));
  }
  if (status != 0) {
    throw std::runtime_error("CUDA could not launch batch-hard mining on device " +
                             std::to_string(device) + ": " + cuda::error_text(status));
  }
}

}  // namespace

void register_cuda(py::module_& m) {
  m.def("cuda_machine", &machine,
        "Versions of CUDA (runtime linked in, driver; 1000 * major + 10 * minor, 0: no driver), "
        "the devices, and why they could not be listed.");
  m.def("cuda_hardest_pairs_workspace", &cuda::hardest_pairs_workspace, py::arg("anchors"),
        py::arg("refs"), "Bytes of device memory that cuda_hardest_pairs needs as workspace.");
  m.def("cuda_hardest_pairs", &hardest_pairs, py::arg("x"), py::arg("y"), py::arg("labels"),
        py::arg("ref_labels"), py::arg("anchors"), py::arg("refs"), py::arg("dim"),
        py::arg("self_case"), py::arg("positive_d2"), py::arg("negative_d2"), py::arg("positive"),
        py::arg("negative"), py::arg("workspace"), py::arg("device"), py::arg("stream"),
        "Enqueues batch-hard mining; pointers and the stream are addresses, see "
        "dmlap/cuda/hardest_pairs.h.");
}

#endif

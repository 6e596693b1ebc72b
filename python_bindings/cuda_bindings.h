#pragma once

#include <pybind11/pybind11.h>

// The CUDA half of the module: cuda_machine, and the functions of cuda_sweeps.h. Only defined in
// a build with CUDA.
void register_cuda(pybind11::module_& m);

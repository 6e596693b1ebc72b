#pragma once

#include <pybind11/pybind11.h>

// The launchers of dmlap/cuda/sweeps.h as functions of a module. Pointers and streams are
// addresses, an absent array is 0. Only defined in a build with CUDA.
void register_cuda_sweeps(pybind11::module_& m);

// The Python module `dmlap_kernels._native`: raw addresses in, nothing owned, the GIL released.
#include <pybind11/pybind11.h>

#include <algorithm>
#include <string>

#include "cuda_bindings.h"
#include "kernels.h"

namespace py = pybind11;
using namespace dmlap;

namespace {

template <class P>
P* address(uintptr_t value) {
  return reinterpret_cast<P*>(value);
}

template <class T>
const cpu::Kernels<T>& kernels();
template <>
const cpu::Kernels<float>& kernels<float>() {
  return cpu::kernels().f32;
}
template <>
const cpu::Kernels<double>& kernels<double>() {
  return cpu::kernels().f64;
}

// The leading arguments of every call, in this order.
struct PairArguments {
  bool is_double;
  uintptr_t x;
  int64_t nx, x_stride;
  uintptr_t y;
  int64_t ny, y_stride, dim;
  bool self;
  int distance;
  bool normalize;
  int threads;
  uintptr_t x_labels = 0, y_labels = 0, anchor_params = 0, self_index = 0;

  template <class T>
  Pairs<T> as() const {
    Pairs<T> p;
    p.x = {address<const T>(x), address<const int64_t>(x_labels), nx, x_stride};
    p.y = {address<const T>(y), address<const int64_t>(y_labels), ny, y_stride};
    p.dim = dim;
    p.self = self;
    p.distance = static_cast<Distance>(distance);
    p.normalize = normalize;
    p.threads = threads;
    p.anchor_params = address<const T>(anchor_params);
    p.self_index = address<const int64_t>(self_index);
    return p;
  }
};

LossOptions loss_options(int loss, int reduction, const py::tuple& params) {
  LossOptions options;
  options.loss = static_cast<Loss>(loss);
  options.reduction = static_cast<Reduction>(reduction);
  const size_t n = std::min<size_t>(params.size(), kMaxParams);
  for (size_t i = 0; i < n; ++i) options.params[i] = params[i].cast<double>();
  return options;
}

template <class F>
void dispatch(bool is_double, F f) {
  py::gil_scoped_release release;
  if (is_double) {
    f(double{});
  } else {
    f(float{});
  }
}

// constant, anchor, reference, panel, triangle: see SavedSize.
py::tuple saved_size(int loss, bool self, bool is_double) {
  const auto number = static_cast<Loss>(loss);
  const cpu::SavedSize s = is_double ? kernels<double>().saved_size(number, self)
                                     : kernels<float>().saved_size(number, self);
  return py::make_tuple(s.constant, s.anchor, s.reference, s.panel, s.triangle);
}

// The size of a problem as the kernels count it.
size_t saved_bytes(int loss, int64_t nx, int64_t ny, bool self, bool is_double) {
  const auto number = static_cast<Loss>(loss);
  return is_double ? kernels<double>().saved_size(number, self).bytes(nx, ny)
                   : kernels<float>().saved_size(number, self).bytes(nx, ny);
}

#define DMLAP_PAIR_PARAMETERS                                                         \
  bool is_double, uintptr_t x, int64_t nx, int64_t x_stride, uintptr_t y, int64_t ny, \
      int64_t y_stride, int64_t dim, bool self, int distance, bool normalize, int threads
#define DMLAP_PAIR_ARGUMENTS \
  is_double, x, nx, x_stride, y, ny, y_stride, dim, self, distance, normalize, threads

constexpr const char* kKept = "dmlap.kept";

// What a forward sweep kept, as a Python object that owns it; None for nothing.
py::object owned(Kept* kept) {
  if (kept == nullptr) return py::none();
  return py::reinterpret_steal<py::object>(PyCapsule_New(kept, kKept, [](PyObject* capsule) {
    Kept* k = static_cast<Kept*>(PyCapsule_GetPointer(capsule, kKept));
    k->destroy(k);
  }));
}

const Kept* kept_in(const py::object& object) {
  if (object.is_none()) return nullptr;
  return static_cast<const Kept*>(PyCapsule_GetPointer(object.ptr(), kKept));
}

// Returns what may be handed to the backward of the same call, on the same tensors; None without
// `keep`.
py::object forward(DMLAP_PAIR_PARAMETERS, uintptr_t x_labels, uintptr_t y_labels, int loss,
                   int reduction, const py::tuple& params, uintptr_t loss_out, uintptr_t saved,
                   uintptr_t counts, uintptr_t values, uintptr_t thresholds,
                   uintptr_t anchor_params, uintptr_t self_index, bool keep) {
  const PairArguments a{DMLAP_PAIR_ARGUMENTS, x_labels, y_labels, anchor_params, self_index};
  const LossOptions options = loss_options(loss, reduction, params);
  Kept* kept = nullptr;
  dispatch(is_double, [&](auto zero) {
    using T = decltype(zero);
    const ForwardOut<T> out{address<T>(loss_out), address<uint8_t>(saved), address<int64_t>(counts),
                            address<T>(values),   address<T>(thresholds),  keep ? &kept : nullptr};
    kernels<T>().forward(a.as<T>(), options, out);
  });
  return owned(kept);
}

void backward(DMLAP_PAIR_PARAMETERS, uintptr_t x_labels, uintptr_t y_labels, int loss,
              int reduction, const py::tuple& params, uintptr_t saved, uintptr_t grad, uintptr_t gx,
              uintptr_t gy, uintptr_t anchor_params, uintptr_t self_index, uintptr_t g_anchor,
              const py::object& kept_object) {
  const PairArguments a{DMLAP_PAIR_ARGUMENTS, x_labels, y_labels, anchor_params, self_index};
  const LossOptions options = loss_options(loss, reduction, params);
  const Kept* kept = kept_in(kept_object);
  dispatch(is_double, [&](auto zero) {
    using T = decltype(zero);
    const BackwardArgs<T> args{address<const uint8_t>(saved),
                               address<const T>(grad),
                               address<T>(gx),
                               address<T>(gy),
                               address<T>(g_anchor),
                               kept};
    kernels<T>().backward(a.as<T>(), options, args);
  });
}

void nearest(DMLAP_PAIR_PARAMETERS, int64_t k, uintptr_t distances, uintptr_t indices) {
  const PairArguments a{DMLAP_PAIR_ARGUMENTS};
  dispatch(is_double, [&](auto zero) {
    using T = decltype(zero);
    kernels<T>().nearest(a.as<T>(), k, address<T>(distances), address<int64_t>(indices));
  });
}

void class_scores(DMLAP_PAIR_PARAMETERS, uintptr_t x_labels, uintptr_t y_labels,
                  uintptr_t self_index, uintptr_t thresholds, int64_t first, int64_t count,
                  uintptr_t mean, uintptr_t least, int64_t classes) {
  const PairArguments a{DMLAP_PAIR_ARGUMENTS, x_labels, y_labels, 0, self_index};
  dispatch(is_double, [&](auto zero) {
    using T = decltype(zero);
    kernels<T>().class_scores(a.as<T>(), address<const T>(thresholds), first, count,
                              address<T>(mean), address<T>(least), classes);
  });
}

// The number of each loss by its name.
py::dict losses() {
  py::dict numbers;
#define DMLAP_NUMBER(name, ...) numbers[#name] = static_cast<int>(Loss::name);
  DMLAP_LOSSES(DMLAP_NUMBER)
#undef DMLAP_NUMBER
  return numbers;
}

// The numbers of distances and of reductions by their names.
py::dict distances() {
  py::dict numbers;
  numbers["euclidean"] = static_cast<int>(Distance::euclidean);
  numbers["sqeuclidean"] = static_cast<int>(Distance::sqeuclidean);
  numbers["cosine"] = static_cast<int>(Distance::cosine);
  numbers["dot"] = static_cast<int>(Distance::dot);
  return numbers;
}

py::dict reductions() {
  py::dict numbers;
  numbers["mean"] = static_cast<int>(Reduction::mean);
  numbers["mean_nonzero"] = static_cast<int>(Reduction::mean_nonzero);
  numbers["sum"] = static_cast<int>(Reduction::sum);
  numbers["none"] = static_cast<int>(Reduction::none);
  return numbers;
}

py::list simd_levels() {
  const cpu::KernelSet* sets[cpu::kMaxLevels];
  const int n = cpu::available_levels(sets);
  py::list names;
  for (int i = 0; i < n; ++i) names.append(sets[i]->name);
  return names;
}

}  // namespace

PYBIND11_MODULE(_native, m) {
  m.doc() = "Compiled sweeps; `dmlap_kernels.backends` is their only caller.";
  m.def("build_info", [] { return std::string(DMLAP_BUILD_INFO); });
  m.def("simd_level", [] { return std::string(cpu::kernels().name); });
  m.def("simd_levels", simd_levels);
  m.def("losses", losses);
  m.def("distances", distances);
  m.def("reductions", reductions);
  m.def("saved_size", saved_size);
  m.def("saved_bytes", saved_bytes);
  m.def("forward", forward);
  m.def("backward", backward);
  m.def("nearest", nearest);
  m.def("class_scores", class_scores);
#if DMLAP_WITH_CUDA
  register_cuda(m);
#endif
}

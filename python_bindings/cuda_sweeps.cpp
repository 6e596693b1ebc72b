// Bindings of the CUDA launchers: addresses and sizes in, the GIL released.
#if DMLAP_WITH_CUDA

#include "cuda_sweeps.h"

#include <pybind11/stl.h>

#include <array>
#include <cstdint>
#include <stdexcept>
#include <string>
#include <tuple>

#include "dmlap/cuda/device.h"
#include "dmlap/cuda/soft_triple_launchers.h"
#include "dmlap/cuda/sweeps.h"
#include "dmlap/cuda/windows.h"

namespace py = pybind11;
using namespace dmlap;
using namespace dmlap::cuda;

namespace {

using Address = uintptr_t;
template <size_t kCount>
using Addresses = std::array<Address, kCount>;

// In the order of the fields of cuda::Sides: addresses, sizes, choices, addresses.
using SidesIn =
    std::tuple<Addresses<8>, std::array<int64_t, 3>, bool, std::string, std::string, Addresses<2>>;
using ExponentIn = std::tuple<float, float, int, float>;
using QueueIn = std::tuple<int, Address>;

template <class T>
T* pointer(Address address) {
  return reinterpret_cast<T*>(address);
}
const float* floats(Address address) { return pointer<const float>(address); }
float* out(Address address) { return pointer<float>(address); }
int* counts(Address address) { return pointer<int>(address); }

// Python names choices; their numbers are known here alone.
template <class E>
struct Name {
  const char* name;
  E value;
};
constexpr Name<Distance> kDistances[] = {{"euclidean", Distance::euclidean},
                                         {"sqeuclidean", Distance::sqeuclidean},
                                         {"cosine", Distance::cosine},
                                         {"dot", Distance::dot}};
constexpr Name<Precision> kPrecisions[] = {
    {"highest", Precision::highest}, {"high", Precision::high}, {"medium", Precision::medium}};
constexpr Name<PairKind> kPairKinds[] = {{"nt_xent", PairKind::nt_xent},
                                         {"lifted", PairKind::lifted}};
constexpr Name<WeightKind> kWeightKinds[] = {{"hinge", WeightKind::hinge},
                                             {"squared_hinge", WeightKind::squared_hinge},
                                             {"exponential", WeightKind::exponential},
                                             {"mined", WeightKind::mined},
                                             {"nt_xent", WeightKind::nt_xent},
                                             {"lifted", WeightKind::lifted},
                                             {"logistic", WeightKind::logistic}};
constexpr Name<Mining> kMining[] = {{"semihard", Mining::semihard},
                                    {"distance_weighted", Mining::distance_weighted}};
constexpr Name<WindowKind> kWindowKinds[] = {{"triplets", WindowKind::triplets},
                                             {"swapped", WindowKind::swapped},
                                             {"angular", WindowKind::angular}};
constexpr Name<WindowRows> kWindowRows[] = {{"both", WindowRows::both},
                                            {"anchors", WindowRows::anchors},
                                            {"references", WindowRows::references},
                                            {"positives", WindowRows::positives}};

template <class E, size_t kCount>
E named(const std::string& name, const Name<E> (&names)[kCount]) {
  for (const Name<E>& one : names) {
    if (name == one.name) return one.value;
  }
  throw std::invalid_argument("the CUDA kernels do not know '" + name + "'");
}

Sides sides_of(const SidesIn& in) {
  const auto& [at, sizes, self, distance, precision, itself] = in;
  return {floats(at[0]),
          floats(at[1]),
          floats(at[2]),
          floats(at[3]),
          counts(at[4]),
          counts(at[5]),
          counts(at[6]),
          counts(at[7]),
          sizes[0],
          sizes[1],
          sizes[2],
          self,
          named(distance, kDistances),
          named(precision, kPrecisions),
          counts(itself[0]),
          counts(itself[1])};
}

Exponent<float> exponent_of(const ExponentIn& in) {
  const auto& [rate, zero, side, pivot] = in;
  return {rate, zero, side, pivot};
}

// Enqueues without the GIL; what went wrong becomes a RuntimeError.
template <class Launch>
void enqueue(const char* what, const QueueIn& in, const Launch& launch) {
  const Queue queue{std::get<0>(in), pointer<void>(std::get<1>(in))};
  int status = 0;
  {
    py::gil_scoped_release release;
    status = launch(queue);
  }
  if (status != 0) {
    throw std::runtime_error(std::string("CUDA could not launch ") + what + " on device " +
                             std::to_string(queue.device) + ": " + error_text(status));
  }
}

void extremes(const SidesIn& sides, const Addresses<6>& to, Address workspace,
              const QueueIn& where) {
  const ExtremesOut results{out(to[0]),    counts(to[1]), out(to[2]),
                            counts(to[3]), out(to[4]),    out(to[5])};
  enqueue("extremes", where, [&](const Queue& queue) {
    return launch_extremes(sides_of(sides), results, pointer<void>(workspace), queue);
  });
}

void hinge_sums(const SidesIn& sides, const Addresses<2>& bounds, bool squared,
                const Addresses<6>& to, Address workspace, const QueueIn& where) {
  const HingeBounds in{floats(bounds[0]), floats(bounds[1]), squared};
  const HingeOut results{out(to[0]), out(to[1]),    out(to[2]),
                         out(to[3]), counts(to[4]), counts(to[5])};
  enqueue("hinge_sums", where, [&](const Queue& queue) {
    return launch_hinge_sums(sides_of(sides), in, results, pointer<void>(workspace), queue);
  });
}

void logistic_sums(const SidesIn& sides, const ExponentIn& positive, const ExponentIn& negative,
                   Address to, Address workspace, const QueueIn& where) {
  const Exponent<float> pull = exponent_of(positive), push = exponent_of(negative);
  enqueue("logistic_sums", where, [&](const Queue& queue) {
    return launch_logistic_sums(sides_of(sides), pull, push, out(to), pointer<void>(workspace),
                                queue);
  });
}

void log_sums(const SidesIn& sides, const ExponentIn& positive, const ExponentIn& negative,
              const Addresses<2>& mining, const Addresses<3>& to, Address workspace,
              const QueueIn& where) {
  const LogSumsIn in{exponent_of(positive), exponent_of(negative), floats(mining[0]),
                     floats(mining[1])};
  const LogSumsOut results{out(to[0]), out(to[1]), out(to[2])};
  enqueue("log_sums", where, [&](const Queue& queue) {
    return launch_log_sums(sides_of(sides), in, results, pointer<void>(workspace), queue);
  });
}

void pair_terms(const SidesIn& sides, const std::string& kind, const ExponentIn& exponent,
                const Addresses<3>& given, const Addresses<3>& to, Address workspace,
                const QueueIn& where) {
  const PairTermsIn in{named(kind, kPairKinds), exponent_of(exponent), floats(given[0]),
                       floats(given[1]), floats(given[2])};
  const PairTermsOut results{out(to[0]), counts(to[1]), out(to[2])};
  enqueue("pair_terms", where, [&](const Queue& queue) {
    return launch_pair_terms(sides_of(sides), in, results, pointer<void>(workspace), queue);
  });
}

void gradient(const SidesIn& sides, const std::string& kind, const ExponentIn& positive,
              const ExponentIn& negative, const Addresses<2>& tables, Address to, Address workspace,
              const QueueIn& where) {
  const Weights in{named(kind, kWeightKinds), floats(tables[0]), floats(tables[1]),
                   exponent_of(positive), exponent_of(negative)};
  enqueue("gradient", where, [&](const Queue& queue) {
    return launch_gradient(sides_of(sides), in, out(to), out(workspace), queue);
  });
}

// Which negatives, the loss's numbers as its policy reads them, features, the anchors' numbers.
using MiningIn = std::tuple<std::string, std::array<double, 6>, int64_t, Address>;
using WindowIn = std::array<int64_t, 2>;

void mined(const SidesIn& sides, const SidesIn& among, const MiningIn& mining,
           const WindowIn& window, Address weight, const Addresses<5>& to, const QueueIn& where) {
  const auto& [kind, params, features, numbers] = mining;
  const MinedIn in{named(kind, kMining),
                   Triplet<float>(params.data()),
                   DistanceWeights(params.data(), features),
                   pointer<const int64_t>(numbers),
                   {window[0], window[1]},
                   floats(weight)};
  const MinedOut results{pointer<double>(to[0]), out(to[1]), out(to[2]), out(to[3]), counts(to[4])};
  enqueue("mined", where, [&](const Queue& queue) {
    return launch_mined(sides_of(sides), sides_of(among), in, results, queue);
  });
}

void mined_gradient(const SidesIn& sides, const WindowIn& window, Address largest,
                    const Addresses<4>& pairs, bool references, Address to, const QueueIn& where) {
  const MinedPairs in{{window[0], window[1]}, pointer<const int64_t>(largest),
                      floats(pairs[0]),       floats(pairs[1]),
                      floats(pairs[2]),       counts(pairs[3])};
  enqueue("mined_gradient", where, [&](const Queue& queue) {
    return launch_mined_gradient(sides_of(sides), in, references, out(to), queue);
  });
}

// The kind, margin and smooth and swap of triplets, the tangent of angular.
using WindowRuleIn = std::tuple<std::string, std::array<double, 3>, double>;

WindowRule window_rule_of(const WindowRuleIn& in) {
  const auto& [kind, params, tangent] = in;
  return {named(kind, kWindowKinds), Triplet<float>(params.data()), Angular<float>(tangent)};
}

void window_sums(const SidesIn& sides, const SidesIn& among, const WindowRuleIn& rule,
                 const WindowIn& window, Address weight, const Addresses<4>& to,
                 const QueueIn& where) {
  const WindowSumsIn in{window_rule_of(rule), {window[0], window[1]}, floats(weight)};
  const WindowSumsOut results{pointer<double>(to[0]), out(to[1]), out(to[2]), out(to[3])};
  enqueue("window_sums", where, [&](const Queue& queue) {
    return launch_window_sums(sides_of(sides), sides_of(among), in, results, queue);
  });
}

// The sides of the rows, of the anchors, of the references.
void window_gradient(const std::array<SidesIn, 3>& sides, const WindowRuleIn& rule,
                     const WindowIn& window, Address largest, const std::string& rows,
                     const Addresses<4>& given, Address parts, const QueueIn& where) {
  const WindowPairs in{
      window_rule_of(rule),     {window[0], window[1]}, pointer<const int64_t>(largest),
      named(rows, kWindowRows), floats(given[0]),       floats(given[1]),
      floats(given[2]),         floats(given[3])};
  enqueue("window_gradient", where, [&](const Queue& queue) {
    return launch_window_gradient(sides_of(sides[0]), sides_of(sides[1]), sides_of(sides[2]), in,
                                  out(parts), queue);
  });
}

// The loss's numbers as its policy reads them, runs of the centres' classes.
using SoftTripleRuleIn = std::tuple<std::array<double, 3>, Addresses<2>>;

SoftTripleIn soft_triple_of(const SoftTripleRuleIn& in) {
  const auto& [params, runs] = in;
  return {SoftTriple<float>(params.data()), counts(runs[0]), counts(runs[1])};
}

void soft_triple(const SidesIn& sides, const SoftTripleRuleIn& rule, Address to, Address workspace,
                 const QueueIn& where) {
  enqueue("soft_triple", where, [&](const Queue& queue) {
    return launch_soft_triple(sides_of(sides), soft_triple_of(rule), out(to),
                              pointer<void>(workspace), queue);
  });
}

void soft_triple_gradient(const SidesIn& sides, const SoftTripleRuleIn& rule,
                          const Addresses<3>& kept, bool centres, Address to, Address workspace,
                          const QueueIn& where) {
  const SoftTripleKept in{soft_triple_of(rule), floats(kept[0]), floats(kept[1]), floats(kept[2]),
                          centres};
  enqueue("soft_triple_gradient", where, [&](const Queue& queue) {
    return launch_soft_triple_gradient(sides_of(sides), in, out(to), out(workspace), queue);
  });
}

void class_scores(const SidesIn& sides, Address thresholds, const Addresses<2>& ends,
                  const std::array<int64_t, 2>& classes, const Addresses<2>& to,
                  const QueueIn& where) {
  const ClassScores scores{floats(thresholds),
                           pointer<const int64_t>(ends[0]),
                           pointer<const int64_t>(ends[1]),
                           classes[0],
                           classes[1],
                           out(to[0]),
                           out(to[1])};
  enqueue("class_scores", where,
          [&](const Queue& queue) { return launch_class_scores(sides_of(sides), scores, queue); });
}

void nearest(const SidesIn& sides, int k, const Addresses<2>& to, const QueueIn& where) {
  enqueue("nearest", where, [&](const Queue& queue) {
    return launch_nearest(sides_of(sides), k, out(to[0]), counts(to[1]), queue);
  });
}

}  // namespace

void register_cuda_sweeps(py::module_& m) {
  m.def("cuda_sweep_workspace",
        [](const SidesIn& sides) { return sweep_workspace(sides_of(sides)); });
  m.def("cuda_gradient_splits",
        [](const SidesIn& sides) { return gradient_splits(sides_of(sides)); });
  m.def("cuda_extremes", &extremes);
  m.def("cuda_hinge_sums", &hinge_sums);
  m.def("cuda_logistic_sums", &logistic_sums);
  m.def("cuda_log_sums", &log_sums);
  m.def("cuda_pair_terms", &pair_terms);
  m.def("cuda_gradient", &gradient);
  m.def("cuda_mined", &mined);
  m.def("cuda_mined_gradient", &mined_gradient);
  m.def("cuda_window_sums", &window_sums);
  m.def("cuda_window_gradient", &window_gradient);
  m.def("cuda_soft_triple_workspace",
        [](const SidesIn& sides) { return soft_triple_workspace(sides_of(sides)); });
  m.def("cuda_soft_triple", &soft_triple);
  m.def("cuda_soft_triple_gradient", &soft_triple_gradient);
  m.def("cuda_class_scores", &class_scores);
  m.def("cuda_nearest_groups",
        [](const SidesIn& sides) { return nearest_groups(sides_of(sides)); });
  m.def("cuda_nearest", &nearest);
}

#endif

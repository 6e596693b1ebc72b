// The losses of the CPU, one line each: the name by which Python asks for it, and what runs it.
// CUDA does not include this: a new loss rebuilds none of it.
#pragma once

#include "dmlap/types.h"

#define DMLAP_LOSSES(X)                                                                    \
  X(triplet_hard, TripletHardKernels<T>)                                                   \
  X(triplet_easy_positive, TripletHardKernels<T, Mining::easy_positive>)                   \
  X(triplet_easy_positive_semihard, TripletHardKernels<T, Mining::easy_positive_semihard>) \
  X(triplet_semihard, TripletSemihardKernels<T>)                                           \
  X(triplet_all, WithSwapKernels<T, TripletAllKernels<T>>)                                 \
  X(triplet_distance_weighted, TripletDistanceWeightedKernels<T>)                          \
  X(contrastive, HingeKernels<T, Contrastive<T>>)                                          \
  X(margin, HingeKernels<T, Margin<T>>)                                                    \
  X(siglip, HingeKernels<T, SigLIP<T>>)                                                    \
  X(multi_similarity, LogSumKernels<T, MultiSimilarity<T>>)                                \
  X(lifted_structure, LogSumKernels<T, LiftedStructure<T>>)                                \
  X(lifted_structure_original, LogSumKernels<T, LiftedStructureOriginal<T>>)               \
  X(nt_xent, LogSumKernels<T, NTXent<T>>)                                                  \
  X(nt_xent_hardness, LogSumKernels<T, WithHardness<T, NTXent<T>>>)                        \
  X(n_pairs, NPairsKernels<T>)                                                             \
  X(sup_con, LogSumKernels<T, SupCon<T>>)                                                  \
  X(sup_con_hardness, LogSumKernels<T, WithHardness<T, SupCon<T>>>)                        \
  X(circle, LogSumKernels<T, Circle<T>>)                                                   \
  X(proxy_nca, LogSumKernels<T, ProxyNCA<T>, kKeptOfProxies>)                              \
  X(cosface, LogSumKernels<T, CosFace<T>, kKeptOfProxies>)                                 \
  X(arcface, LogSumKernels<T, ArcFace<T>, kKeptOfProxies>)                                 \
  X(proxy_anchor, LogSumKernels<T, ProxyAnchor<T>, kKeptOfProxies>)                        \
  X(angular, AngularKernels<T>)                                                            \
  X(soft_triple, SoftTripleKernels<T>)

namespace dmlap {

#define DMLAP_ENUMERATOR(name, ...) name,
enum class Loss : int { DMLAP_LOSSES(DMLAP_ENUMERATOR) };
#undef DMLAP_ENUMERATOR

constexpr int kMaxParams = 8;

struct LossOptions {
  Loss loss = Loss::triplet_hard;
  Reduction reduction = Reduction::mean;
  double params[kMaxParams] = {};
};

}  // namespace dmlap

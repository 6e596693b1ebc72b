// The losses, one line each: the name by which Python asks for it, and what runs it on the CPU.
#pragma once

#define DMLAP_LOSSES(X)                                                    \
  X(triplet_hard, TripletHardKernels<T>)                                   \
  X(triplet_semihard, TripletSemihardKernels<T>)                           \
  X(triplet_all, WithSwapKernels<T, TripletAllKernels<T>>)                 \
  X(triplet_distance_weighted, TripletDistanceWeightedKernels<T>)          \
  X(contrastive, HingeKernels<T, Contrastive<T>>)                          \
  X(margin, HingeKernels<T, Margin<T>>)                                    \
  X(multi_similarity, SoftKernels<T, MultiSimilarity<T>>)                  \
  X(lifted_structure, SoftKernels<T, LiftedStructure<T>>)                  \
  X(lifted_structure_original, SoftKernels<T, LiftedStructureOriginal<T>>) \
  X(nt_xent, SoftKernels<T, NTXent<T>>)                                    \
  X(n_pairs, NPairsKernels<T>)                                             \
  X(sup_con, SoftKernels<T, SupCon<T>>)                                    \
  X(circle, SoftKernels<T, Circle<T>>)                                     \
  X(proxy_nca, SoftKernels<T, ProxyNCA<T>>)                                \
  X(proxy_anchor, SoftKernels<T, ProxyAnchor<T>>)                          \
  X(angular, AngularKernels<T>)                                            \
  X(soft_triple, SoftTripleKernels<T>)

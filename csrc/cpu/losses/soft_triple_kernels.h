// SoftTriple: rows are centres, one run per class; columns are samples.
#pragma once

#include "dmlap/policies/soft_triple.h"
#include "losses/class_runs.h"

namespace dmlap::cpu::DMLAP_ISA {

// By anchor row: log of the sum of e^logit over the classes; +inf for no term.
template <class T>
struct SavedSoftTriple {
  T* log_sum;  // [n]

  static constexpr SavedSize size() { return {sizeof(SavedHeader), sizeof(T)}; }
  explicit SavedSoftTriple(uint8_t* base) {
    log_sum = reinterpret_cast<T*>(base + sizeof(SavedHeader));
  }
};

// Centres as rows, aligned by class; samples as columns.
template <class T>
struct SoftTripleProblem {
  Prepared<T> p;
  RunLayout<T> layout;

  explicit SoftTripleProblem(const Pairs<T>& pairs) {
    Pairs<T> swapped = pairs;
    swapped.x = pairs.y;
    swapped.y = pairs.x;
    swapped.self_index = nullptr;
    prepare(p, swapped, true);
    align_runs(p, layout);
  }
};

// The sum of e^logit of a sample's classes, as e^top * sum, and the logit of its own class.
template <class T>
struct SampleLogits {
  T top = -kInf<T>;
  double sum = 0;
  T own = 0;

  void add(T other_top, T other_sum) {
    if (other_top > top) {
      sum *= std::exp(double(top) - double(other_top));
      top = other_top;
    }
    sum += other_sum * std::exp(double(other_top) - double(top));
  }
};

// One thread's similarities of centres and samples, and the classes' similarities from them.
template <class T>
class CentreRuns {
  using P = Tile<T>;
  using V = typename P::V;
  using I = typename P::I;
  static constexpr int W = P::kWidth;

 public:
  // Running softmax over the centres of a class, one lane per sample. Exponents are of differences
  // of similarities: products of large ones with the rate would round by more than 1.
  struct Class {
    V top[P::kVectors];       // similarity
    V sum[P::kVectors];       // of e^exponent(similarity - top)
    V weighted[P::kVectors];  // the same times the similarity

    void clear() {
      for (int c = 0; c < P::kVectors; ++c) {
        top[c] = splat<T>(std::numeric_limits<T>::lowest());
        sum[c] = weighted[c] = V{};
      }
    }
    V similarity(int c) const { return weighted[c] / sum[c]; }
  };

  CentreRuns(const SoftTripleProblem<T>& problem, const SoftTriple<T>& policy)
      : problem_(problem), policy_(policy) {}

  void fill(int64_t px, int64_t py) {
    const Prepared<T>& p = problem_.p;
    const T from = p.dot() ? T(0) : T(1);
    similarity.fill(p, px, problem_.layout.used[px], py, false,
                    [&](V d2) { return d2 < kInf<T> ? from - p.from_squared(d2) : V{}; });
  }

  void add(Class& k, int first, int stop) const {
    for (int c = 0; c < P::kVectors; ++c) {
      V top = k.top[c];
      for (int r = first; r < stop; ++r) {
        const V s = similarity.at(r, c);
        top = s > top ? s : top;
      }
      const V shrink = vexp(policy_.exponent(k.top[c] - top));
      V sum = k.sum[c] * shrink, weighted = k.weighted[c] * shrink;
      for (int r = first; r < stop; ++r) {
        const V s = similarity.at(r, c);
        const V e = vexp(policy_.exponent(s - top));
        sum += e;
        weighted += e * s;
      }
      k.top[c] = top;
      k.sum[c] = sum;
      k.weighted[c] = weighted;
    }
  }

  // Logits of a class of a rank; own: the lanes of its samples.
  V logit(const Class& k, int32_t rank, int64_t py, int c, I* own) const {
    typename P::S::Int ranks[P::kLanes];
    const int32_t* of = problem_.p.y().rank.get() + py * W + c * P::kLanes;
    for (int l = 0; l < P::kLanes; ++l) ranks[l] = of[l];
    *own = load_int(ranks) == splat_int<T>(rank);
    const V logit = policy_.logit(k.similarity(c));
    return *own ? logit - policy_.own_offset() : logit;
  }

  PairBuffer<T> similarity;

 private:
  const SoftTripleProblem<T>& problem_;
  SoftTriple<T> policy_;
};

template <class T>
class SoftTripleForward {
  using P = Tile<T>;
  using V = typename P::V;
  using I = typename P::I;
  static constexpr int W = P::kWidth;

 public:
  SoftTripleForward(const SoftTripleProblem<T>& problem, const SoftTriple<T>& policy,
                    const RunBlocks<T>& rows, SampleLogits<T>* samples)
      : problem_(problem),
        rows_(rows),
        columns_(problem.p.y().panels),
        samples_(samples),
        runs_(problem, policy) {}

  void operator()(int64_t block_x, int64_t block_y) {
    for (int64_t py = columns_.begin(block_y); py < columns_.end(block_y); ++py) {
      for (int c = 0; c < P::kVectors; ++c) {
        top_[c] = splat<T>(std::numeric_limits<T>::lowest());
        sum_[c] = own_[c] = V{};
      }
      class_.clear();
      for (int64_t px = rows_.begin(block_x); px < rows_.end(block_x); ++px) panel(px, py);
      give(py);
    }
  }

 private:
  void panel(int64_t px, int64_t py) {
    const RunLayout<T>& layout = problem_.layout;
    runs_.fill(px, py);
    for (int r = 0; r < layout.used[px]; r = layout.end[px * W + r]) {
      const int stop = layout.end[px * W + r];
      runs_.add(class_, r, stop);
      if (layout.last[px] != px) return;
      offer(problem_.p.x.rank[px * W + r], py);
      class_.clear();
    }
  }

  void offer(int32_t rank, int64_t py) {
    for (int c = 0; c < P::kVectors; ++c) {
      I own;
      const V logit = runs_.logit(class_, rank, py, c, &own);
      const V top = logit > top_[c] ? logit : top_[c];
      sum_[c] = sum_[c] * vexp(top_[c] - top) + vexp(logit - top);
      top_[c] = top;
      own_[c] = own ? logit : own_[c];
    }
  }

  void give(int64_t py) {
    for (int j = 0; j < W && py * W + j < problem_.p.y().n; ++j) {
      const int c = j / P::kLanes, l = j % P::kLanes;
      SampleLogits<T>& sample = samples_[py * W + j];
      sample.add(top_[c][l], sum_[c][l]);
      sample.own += own_[c][l];
    }
  }

  const SoftTripleProblem<T>& problem_;
  const RunBlocks<T>& rows_;
  Blocks columns_;
  SampleLogits<T>* samples_;
  CentreRuns<T> runs_;
  typename CentreRuns<T>::Class class_;
  V top_[P::kVectors], sum_[P::kVectors], own_[P::kVectors];
};

template <class T>
class SoftTripleBackward {
  using P = Tile<T>;
  using V = typename P::V;
  using I = typename P::I;
  static constexpr int W = P::kWidth;

 public:
  // log_sum, coefficient: [panels of y * kWidth]
  SoftTripleBackward(const SoftTripleProblem<T>& problem, const SoftTriple<T>& policy,
                     const RunBlocks<T>& rows, const T* log_sum, const T* coefficient,
                     GradientSide<T>& x, GradientSide<T>& y)
      : problem_(problem),
        policy_(policy),
        rows_(rows),
        columns_(problem.p.y().panels),
        log_sum_(log_sum),
        coefficient_(coefficient),
        runs_(problem, policy),
        panels_(problem.p, x, y, false) {}

  void operator()(int64_t block_x, int64_t block_y) {
    const RunLayout<T>& layout = problem_.layout;
    for (int64_t py = columns_.begin(block_y); py < columns_.end(block_y); ++py) {
      for (int64_t px = rows_.begin(block_x); px < rows_.end(block_x); ++px) {
        if (layout.large(px) && (px == 0 || layout.last[px - 1] != layout.last[px])) {
          gather(px, py);
        }
        panel(px, py);
      }
    }
  }

 private:
  // For a class that begins in px and is larger than a panel: its sums, before its weights.
  void gather(int64_t px, int64_t py) {
    class_.clear();
    for (int64_t at = px; at <= problem_.layout.last[px]; ++at) {
      runs_.fill(at, py);
      runs_.add(class_, 0, problem_.layout.used[at]);
    }
  }

  void panel(int64_t px, int64_t py) {
    const RunLayout<T>& layout = problem_.layout;
    const int used = layout.used[px];
    runs_.fill(px, py);
    for (int r = 0; r < used; r = layout.end[px * W + r]) {
      const int stop = layout.end[px * W + r];
      if (!layout.large(px)) {
        class_.clear();
        runs_.add(class_, r, stop);
      }
      weigh(problem_.p.x.rank[px * W + r], r, stop, py);
    }
    const int64_t rows = used;
    panels_.add({px, py, px, rows, rows_in<T>(problem_.p.y(), nullptr, py), 0, rows},
                weights_.row(0));
  }

  void weigh(int32_t rank, int first, int stop, int64_t py) {
    for (int c = 0; c < P::kVectors; ++c) {
      I own;
      const V logit = runs_.logit(class_, rank, py, c, &own);
      const int64_t j = py * W + c * P::kLanes;
      const V other = vexp(logit - load(log_sum_ + j));
      const V pull = load(coefficient_ + j) * (own ? other - T(1) : other);
      const V mean = class_.similarity(c), scale = 1 / class_.sum[c];
      for (int r = first; r < stop; ++r) {
        const V s = runs_.similarity.at(r, c);
        const V share = vexp(policy_.exponent(s - class_.top[c])) * scale;
        store(weights_.row(r) + c * P::kLanes, -pull * policy_.slope(share, s, mean));
      }
    }
  }

  const SoftTripleProblem<T>& problem_;
  SoftTriple<T> policy_;
  const RunBlocks<T>& rows_;
  Blocks columns_;
  const T* log_sum_;
  const T* coefficient_;
  CentreRuns<T> runs_;
  PairBuffer<T> weights_;
  PanelGradient<T> panels_;
  typename CentreRuns<T>::Class class_;
};

template <class T>
struct SoftTripleKernels {
  static constexpr bool kSkipsReferences = false;

  static constexpr SavedSize saved_size(bool) { return SavedSoftTriple<T>::size(); }

  static void forward(const Pairs<T>& pairs, const LossOptions& options, const ForwardOut<T>& out) {
    const SoftTriple<T> policy(options.params);
    const SoftTripleProblem<T> problem(pairs);
    const Prepared<T>& p = problem.p;
    const Side<T>& samples = p.y();
    Buffer<SampleLogits<T>> logits(samples.n);
    logits.fill(samples.n, SampleLogits<T>{});
    const RunBlocks<T> rows(problem.layout);
    Schedule schedule(rows.count, Blocks(samples.panels).count, false);
    schedule.run(p.threads,
                 [&](int) { return SoftTripleForward<T>(problem, policy, rows, logits.get()); });

    Buffer<uint8_t> present(p.ranks);
    present.fill(p.ranks, 0);
    for (int64_t k = 0; k < p.x.n; ++k) {
      if (p.x.rank[k] != INT32_MAX) present[p.x.rank[k]] = 1;
    }
    const SavedSoftTriple<T> saved(out.saved);
    Epilogue<T> end(options.reduction, p.nonfinite, out);
    for (int64_t j = 0; j < samples.n; ++j) {
      const int64_t row = samples.order[j];
      const bool counted = present[samples.rank[j]];
      const double above = double(logits[j].top) - double(logits[j].own);
      const double loss = counted ? above + std::log(logits[j].sum) : 0.0;
      const double term = loss < 0 ? 0.0 : loss;  // rounding, if its own logit dominates the sum
      const bool taken = counted && takes(options.reduction, term);
      saved.log_sum[row] = taken ? logits[j].top + T(std::log(logits[j].sum)) : kInf<T>;
      const TermSums terms{term, term, counted, term > 0, term > 0};
      end.add(row, &terms);
    }
    end.write();
    if (out.stat_counts != nullptr) sweep_statistics(ForwardState<T>(pairs), T(0), out);
  }

  static void backward(const Pairs<T>& pairs, const LossOptions& options,
                       const BackwardArgs<T>& args) {
    const SavedSoftTriple<T> saved(const_cast<uint8_t*>(args.saved));
    if (nonfinite_gradients(pairs, args)) return;
    SoftTripleProblem<T> problem(pairs);
    const Prepared<T>& p = problem.p;
    const Side<T>& samples = p.y();
    GradientSide<T> gx, gy;
    gx.out = args.gy;
    gy.out = args.gx;
    gx.reset(p.x.panels, p.packed_dim);
    gy.reset(samples.panels, p.packed_dim);
    constexpr int W = Tile<T>::kWidth;
    Buffer<T> log_sum(samples.panels * W), coefficient(samples.panels * W);
    log_sum.fill(samples.panels * W, kInf<T>);
    coefficient.fill(samples.panels * W, T(0));
    const Upstream<T> upstream(options, args);
    for (int64_t j = 0; j < samples.n; ++j) {
      const int64_t row = samples.order[j];
      log_sum[j] = saved.log_sum[row];
      coefficient[j] = log_sum[j] < kInf<T> ? upstream.at(row, 0, 1) : T(0);
    }
    const RunBlocks<T> rows(problem.layout);
    Schedule schedule(rows.count, Blocks(samples.panels).count, false);
    schedule.run(p.threads, [&](int) {
      return SoftTripleBackward<T>(problem, SoftTriple<T>(options.params), rows, log_sum.get(),
                                   coefficient.get(), gx, gy);
    });
    fill(gx.out, pairs.y.n * p.dim, T(0));
    fill(gy.out, pairs.x.n * p.dim, T(0));
    add_weighted(p, p.x, problem.layout.used.get(), gx);
    add_weighted(p, samples, nullptr, gy);
    if (!p.unit) return;
    through_normalize(p.y_storage, p.dim, args.gx, p.threads);
    runs_through_normalize(problem.p, pairs.y.n, args.gy);
  }
};

}  // namespace dmlap::cpu::DMLAP_ISA

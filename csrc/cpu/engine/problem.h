// The packed problem of one call: what the forward sweep works on, and what it keeps of it for the
// backward sweep.
#pragma once

#include "engine/forward.h"
#include "kernels.h"

namespace dmlap::cpu::DMLAP_ISA {

// What the saved block of every loss begins with; arrays of the loss follow, then the bytes of the
// active tiles.
struct SavedHeader {
  double denominator[2];    // of the two groups of terms, for the mean reductions
  double sum[2], count[2];  // what the means divide, for a batch that several processes share
  double nonfinite;
  double reserved;

  static const SavedHeader& of(const uint8_t* saved) {
    return *reinterpret_cast<const SavedHeader*>(saved);
  }
};

// With the bits of the tiles that hold an active pair, a byte for each pair of panels.
template <class T>
constexpr SavedSize with_active(SavedSize size, bool self) {
  size.panel = Tile<T>::kWidth;
  size.triangle = self;
  return size;
}

// Owns what forward may hand over to backward, until it does.
template <class K>
class Keeping {
 public:
  explicit Keeping(K* kept) : kept_(kept) {}
  ~Keeping() {
    if (kept_ != nullptr) kept_->destroy(kept_);
  }
  Keeping(const Keeping&) = delete;
  Keeping& operator=(const Keeping&) = delete;

  K& operator*() const { return *kept_; }
  K* operator->() const { return kept_; }
  void hand_over(Kept** to) {
    *to = kept_;
    kept_ = nullptr;
  }

 private:
  K* kept_;
};

// What may be kept of a problem for its backward sweep: of its packed rows and of its distances so
// many bytes each. Between the rows of a batch, as much as stays in cache; of losses whose every
// distance is used, but whose problem is small beside the batch (proxies, N-pairs), more.
constexpr int64_t kKeptOfBatch = int64_t{4} << 20;
constexpr int64_t kKeptOfProxies = int64_t{32} << 20;

// A small problem's packed rows and the distances of its tiles, kept for the backward sweep, where
// packing and multiplying again take a share of the time.
template <class T>
struct KeptRows : Kept {
  Prepared<T> p;
  KeptTiles<T> tiles;

  KeptRows() : Kept{[](Kept* k) { delete static_cast<KeptRows*>(k); }} {}

  static bool rows_fit(const Prepared<T>& p, int64_t bytes) {
    const int64_t panels = p.x.panels + (p.self ? 0 : p.y_storage.panels);
    return panels * Tile<T>::kWidth * p.packed_dim * int64_t{sizeof(T)} <= bytes;
  }
  // Tiles come with their rows.
  static bool tiles_fit(const Prepared<T>& p, int64_t bytes) {
    const double pairs = double(p.x.n) * double(p.y().n) / (p.self ? 2 : 1);
    return rows_fit(p, bytes) && pairs * sizeof(T) <= double(bytes);
  }
};

// The packed rows of a backward sweep: those that forward kept, or packed again.
template <class T>
class BackwardRows {
 public:
  BackwardRows(const Pairs<T>& pairs, const Kept* kept) {
    if (kept == nullptr) prepare(own_, pairs, true);
    const auto* rows = static_cast<const KeptRows<T>*>(kept);
    p_ = rows == nullptr ? &own_ : &rows->p;
    tiles_ = rows != nullptr && rows->tiles.any() ? &rows->tiles : nullptr;
  }
  const Prepared<T>& get() const { return *p_; }
  // Those that are active, or null.
  const KeptTiles<T>* tiles() const { return tiles_; }

 private:
  Prepared<T> own_;
  const Prepared<T>* p_;
  const KeptTiles<T>* tiles_;
};

// The problem of a forward sweep, packed, and what it gathers.
template <class T>
class ForwardState {
  Keeping<KeptRows<T>> rows_{new KeptRows<T>()};
  int64_t kept_bytes_;

 public:
  const Prepared<T>& p = rows_->p;
  Buffer<AnchorState<T>> anchors;     // [x.n]
  Buffer<AnchorState<T>> references;  // [y.n], where they are anchors as well
  Buffer<double> negative_sum;        // [blocks of x]

  // out: of a sweep whose backward takes the tiles again, which are kept where they fit.
  explicit ForwardState(const Pairs<T>& pairs, const ForwardOut<T>* out = nullptr,
                        int64_t kept_bytes = kKeptOfBatch)
      : kept_bytes_(kept_bytes) {
    prepare(rows_->p, pairs, true);
    anchors.reset(p.x.n);
    anchors.fill(p.x.n, AnchorState<T>{});
    const int64_t blocks = Blocks(p.x.panels).count;
    negative_sum.reset(blocks);
    negative_sum.fill(blocks, 0.0);
    if (out == nullptr || out->kept == nullptr || !KeptRows<T>::tiles_fit(p, kept_bytes)) return;
    rows_->tiles.reset(panel_pairs(p.x.panels, p.y().panels, p.self));
  }

  // Leaves the rows of a small problem to the backward sweep, and its tiles. Nothing may use `p`
  // afterwards.
  void keep_rows(const ForwardOut<T>& out) {
    if (out.kept != nullptr && KeptRows<T>::rows_fit(p, kept_bytes_)) rows_.hand_over(out.kept);
  }

  void count_references() {
    if (p.self) return;
    references.reset(p.y().n);
    references.fill(p.y().n, AnchorState<T>{});
  }
  // The states of the columns; null where they have none.
  AnchorState<T>* columns() const { return p.self ? anchors.get() : references.get(); }

  ForwardShared<T> shared(uint8_t* active) const {
    const KeptTiles<T>* kept = active != nullptr && rows_->tiles.any() ? &rows_->tiles : nullptr;
    return {&p,     anchors.get(), columns(),          negative_sum.get(),
            active, kept,          Blocks(p.x.panels), Blocks(p.y().panels)};
  }

  // Of distances. The sweep of the self case meets every pair once, the statistics count it twice.
  double negative_total() const {
    double s = 0;
    for (int64_t b = 0; b < Blocks(p.x.panels).count; ++b) s += negative_sum[b];
    return p.self ? 2 * s : s;
  }
};

}  // namespace dmlap::cpu::DMLAP_ISA

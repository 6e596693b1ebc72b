// Rows packed for the sweeps: in label order, centred, feature by feature.
#pragma once

#include <cfloat>
#include <limits>

#include "dmlap/types.h"
#include "engine/labels.h"
#include "engine/parallel.h"
#include "engine/simd.h"

namespace dmlap::cpu::DMLAP_ISA {

template <class T>
constexpr T kInf = std::numeric_limits<T>::infinity();

// A pair whose squared distance is below this share of the norms is recomputed from differences:
// the cancellation of n_i + n_j - 2 x_i.x_j would cost it more than a few digits.
template <class T>
constexpr T kCancelling = T(1) / 64;

// torch.nn.functional.normalize divides by max(norm, this).
constexpr double kNormalizeEps = 1e-12;

template <class T>
struct Side {
  const T* rows = nullptr;  // [n][stride], original order, L2-normalised if the problem says so
  int64_t stride = 0;
  int64_t n = 0;
  int64_t panels = 0;
  Buffer<int64_t> order;      // [n] position -> row
  Buffer<int32_t> rank;       // [panels * kWidth] class of each position
  Buffer<T> packed;           // [panels][packed_dim][kWidth]
  Buffer<T> norm;             // [panels * kWidth] what the tiles add: squared norms, +inf beyond n
  Buffer<T> panel_norm;       // [panels] largest finite norm; -inf where no pair is recomputed
  Buffer<T> panel_size;       // [panels] largest squared norm of a row
  Buffer<T> unit;             // [n][dim], where rows are normalised
  Buffer<T> scale;            // [n] 1 / max(norm, eps), where rows are normalised
  Buffer<uint8_t> nonfinite;  // [panels] a row that is not finite, or whose square overflows

  const T* row(int64_t position) const { return rows + order[position] * stride; }
};

template <class T>
struct Prepared {
  static constexpr int kWidth = Tile<T>::kWidth;

  Side<T> x, y_storage;
  bool self;
  Distance distance;
  int64_t dim, packed_dim;
  int threads;
  int row_threads;             // of what takes O(n * dim), where a second thread pays later
  bool unit;                   // rows are L2-normalised
  bool nonfinite = false;      // some row is not finite, or its square overflows
  bool any_short = false;      // cosine: some row is too short to be normalised
  Buffer<int64_t> begin, end;  // [x.n] positions of y with the label of x's position
  Buffer<int64_t> own;         // null, or [x.panels * kWidth]: Pairs::self_index by position
  int64_t ranks = 0;

  const Side<T>& y() const { return self ? x : y_storage; }
  // The position of y that is the anchor itself, -1 for none: no pair of the two.
  int64_t itself(int64_t anchor) const {
    if (self) return anchor;
    return own.get() == nullptr ? -1 : own[anchor];
  }
  int64_t positives(int64_t anchor) const {
    return end[anchor] - begin[anchor] - in_class(anchor, itself(anchor));
  }
  int64_t negatives(int64_t anchor) const {
    const int64_t at = itself(anchor);
    return y().n - (end[anchor] - begin[anchor]) - (at >= 0 && !in_class(anchor, at));
  }
  bool in_class(int64_t anchor, int64_t at) const {
    return begin[anchor] <= at && at < end[anchor];
  }

  bool euclidean() const { return distance == Distance::euclidean; }
  bool dot() const { return distance == Distance::dot; }
  // Whether gradients are sums of weight * -x_j and not of weight * (x_i - x_j). Of the cosine it
  // makes no difference where rows have length 1, as they lose what lies along them.
  bool products() const { return dot() || any_short; }
  // Squared distance -> distance, where no square root is taken.
  T linear() const {
    return distance == Distance::cosine || distance == Distance::dot ? T(0.5) : T(1);
  }

  T from_squared(T d2) const {
    if (dot()) return d2 * linear();
    const T clamped = d2 < 0 ? T(0) : d2;
    return euclidean() ? std::sqrt(clamped) : clamped * linear();
  }
  typename Simd<T>::V from_squared(typename Simd<T>::V d2) const {
    if (dot()) return d2 * linear();
    const typename Simd<T>::V clamped = d2 < 0 ? typename Simd<T>::V{} : d2;
    return euclidean() ? vsqrt(clamped) : clamped * linear();
  }
  // The squared distance of pairs at distance d.
  T to_squared(T d) const {
    if (dot()) return d / linear();
    if (!(d > 0)) return 0;
    return euclidean() ? d * d : d / linear();
  }
  // d distance / d x_i = factor * (x_i - x_j); with products(), factor * -x_j.
  T factor(T d) const {
    if (!euclidean()) return 2 * linear();
    return d > 0 ? 1 / d : T(0);
  }

  // Of w = d loss / d distance the weight of x_i - x_j; with products(), of -x_j.
  typename Simd<T>::V pair_weight(typename Simd<T>::V w, typename Simd<T>::V d) const {
    if (!euclidean()) return w * (2 * linear());
    return d > 0 ? w / d : typename Simd<T>::V{};
  }

  // Exact squared distance of two rows, from their differences (-2 x.y for the inner product).
  T pair(const T* a, const T* b) const;
};

template <class T>
DMLAP_ONCE T Prepared<T>::pair(const T* a, const T* b) const {
  using V = typename Simd<T>::V;
  constexpr int L = Simd<T>::kLanes;
  V s0{}, s1{};
  int64_t k = 0;
  T tail = 0;
  if (any_short || dot()) {
    for (; k + L <= dim; k += L) s0 += load(a + k) * load(b + k);
    for (; k < dim; ++k) tail += a[k] * b[k];
    // Else 1 - cos of rows that are not of unit length.
    return (dot() ? T(0) : T(2)) - 2 * (sum_lanes<T>(s0) + tail);
  }
  for (; k + 2 * L <= dim; k += 2 * L) {
    const V t0 = load(a + k) - load(b + k), t1 = load(a + k + L) - load(b + k + L);
    s0 += t0 * t0;
    s1 += t1 * t1;
  }
  for (; k + L <= dim; k += L) {
    const V t = load(a + k) - load(b + k);
    s0 += t * t;
  }
  for (; k < dim; ++k) tail += (a[k] - b[k]) * (a[k] - b[k]);
  return sum_lanes<T>(s0 + s1) + tail;
}

// In double; several sums side by side, because one would be a chain of dependent additions.
template <class T>
inline double inner_product(const T* a, const T* b, int64_t dim) {
  constexpr int kSums = 16;
  double sums[kSums] = {};
  int64_t k = 0;
  for (; k + kSums <= dim; k += kSums) {
    for (int l = 0; l < kSums; ++l) sums[l] += double(a[k + l]) * double(b[k + l]);
  }
  for (int l = 0; k < dim; ++k, ++l) sums[l] += double(a[k]) * double(b[k]);
  for (int half = kSums / 2; half > 0; half /= 2) {
    for (int l = 0; l < half; ++l) sums[l] += sums[l + half];
  }
  return sums[0];
}

// 1 / max(length of a row, eps), whatever the size of its numbers; NaN if some are not finite.
template <class T>
inline double inverse_length(const T* row, int64_t dim) {
  const double squares = inner_product(row, row, dim);
  if (squares < kInf<double>) {
    const double length = std::sqrt(squares);
    return 1 / (length > kNormalizeEps ? length : kNormalizeEps);
  }
  double largest = 0, sum = 0;
  bool finite = true;
  for (int64_t k = 0; k < dim; ++k) {
    const double v = row[k] < 0 ? -double(row[k]) : double(row[k]);
    finite &= v < kInf<double>;
    largest = v > largest ? v : largest;
  }
  if (!finite) return std::numeric_limits<double>::quiet_NaN();
  for (int64_t k = 0; k < dim; ++k) sum += (row[k] / largest) * (row[k] / largest);
  return 1 / largest / std::sqrt(sum);
}

// L2-normalised copies of the rows.
template <class T>
inline void normalize_rows(Side<T>& side, int64_t dim, int threads) {
  side.unit.reset(side.n * dim);
  side.scale.reset(side.n);
  const T* rows = side.rows;
  const int64_t stride = side.stride;
  T *unit = side.unit.get(), *scale = side.scale.get();
  parallel_for(threads, (side.n + 63) / 64, [=, &side](int64_t block) {
    const int64_t last = block * 64 + 64 < side.n ? block * 64 + 64 : side.n;
    for (int64_t i = block * 64; i < last; ++i) {
      const T* row = rows + i * stride;
      const double inverse = inverse_length(row, dim);
      scale[i] = static_cast<T>(inverse);
      for (int64_t k = 0; k < dim; ++k) {
        unit[i * dim + k] = static_cast<T>(double(row[k]) * inverse);
      }
    }
  });
  side.rows = unit;
  side.stride = dim;
}

// Per feature an offset that all rows can lose without rounding: where every value lies within
// [c/2, 2c], value - c is exact (Sterbenz), and elsewhere the offset is 0 and the values spread at
// least as far as they are from the origin.
template <class T>
inline void exact_centre(const Prepared<T>& p, T* centre) {
  constexpr int64_t kChunk = 64;
  parallel_for(p.row_threads, (p.dim + kChunk - 1) / kChunk, [&](int64_t chunk) {
    const int64_t k0 = chunk * kChunk, width = p.dim - k0 < kChunk ? p.dim - k0 : kChunk;
    T low[kChunk], high[kChunk];
    for (int64_t k = 0; k < kChunk; ++k) low[k] = kInf<T>, high[k] = -kInf<T>;
    for (int s = 0; s < (p.self ? 1 : 2); ++s) {
      const Side<T>& side = s ? p.y_storage : p.x;
      for (int64_t i = 0; i < side.n; ++i) {
        const T* row = side.rows + i * side.stride + k0;
        for (int64_t k = 0; k < width; ++k) {
          low[k] = row[k] < low[k] ? row[k] : low[k];
          high[k] = row[k] > high[k] ? row[k] : high[k];
        }
      }
    }
    for (int64_t k = 0; k < width; ++k) {
      const T middle = low[k] / 2 + high[k] / 2;
      const T near = middle > 0 ? low[k] : -high[k], far = middle > 0 ? high[k] : -low[k];
      const T size = middle > 0 ? middle : -middle;
      const bool exact = near > 0 && near >= size / 2 && far <= 2 * size && far < kInf<T>;
      centre[k0 + k] = exact ? middle : T(0);
    }
  });
}

// A squared norm from which a row counts as not finite: distances of such rows overflow.
template <class T>
constexpr double kLargestNorm = double(std::numeric_limits<T>::max()) / 16;

// Whether some row is not finite.
template <class T>
inline bool not_finite(const Rows<T>& rows, int64_t dim) {
  constexpr int L = Simd<T>::kLanes;
  for (int64_t i = 0; i < rows.n; ++i) {
    const T* row = rows.data + i * rows.stride;
    typename Simd<T>::V zeros{};  // NaN as soon as a number is not finite
    int64_t k = 0;
    for (; k + L <= dim; k += L) zeros += load(row + k) - load(row + k);
    T zero = sum_lanes<T>(zeros);
    for (; k < dim; ++k) zero += row[k] - row[k];
    if (!(zero == 0)) return true;
  }
  return false;
}

// Whether some row is not finite, or rows that are not normalised have squares that overflow.
template <class T>
inline bool any_nonfinite(const Pairs<T>& pairs) {
  if (not_finite(pairs.x, pairs.dim)) return true;
  if (pairs.normalize || pairs.distance == Distance::cosine) return false;
  for (int64_t i = 0; i < pairs.x.n; ++i) {
    const T* row = pairs.x.data + i * pairs.x.stride;
    if (!(inner_product(row, row, pairs.dim) < kLargestNorm<T>)) return true;
  }
  return false;
}

// kLanes rows, kLanes features from k on: out[j * kWidth + r] = rows[r][k + j] - centre[k + j], and
// their squares into `partial`, lane by lane, feature after feature.
template <class T>
inline void pack_square(const T* const* rows, int64_t k, const T* centre, T* out,
                        typename Simd<T>::V& partial) {
  constexpr int L = Simd<T>::kLanes;
  typename Simd<T>::V v[L];
#pragma GCC unroll 16
  for (int r = 0; r < L; ++r) v[r] = load(rows[r] + k) - load(centre + k);
  transpose<T>(v);
#pragma GCC unroll 16
  for (int j = 0; j < L; ++j) {
    store(out + j * Tile<T>::kWidth, v[j]);
    partial += v[j] * v[j];
  }
}

// The same for what does not fill a square: `count` rows, `width` features.
template <class T>
inline void pack_rest(const T* const* rows, int count, int64_t k, int width, const T* centre,
                      T* out, typename Simd<T>::V& partial) {
  constexpr int L = Simd<T>::kLanes;
  T part[L];
  store(part, partial);
  for (int j = 0; j < width; ++j) {
    for (int r = 0; r < L; ++r) {
      const T v = r < count ? rows[r][k + j] - centre[k + j] : T(0);
      out[j * Tile<T>::kWidth + r] = v;
      part[r] += v * v;
    }
  }
  partial = load(part);
}

template <class T>
inline void pack_panel(const Prepared<T>& p, Side<T>& side, int64_t panel, const T* centre) {
  using P = Tile<T>;
  constexpr int W = P::kWidth, L = P::kLanes;
  constexpr int64_t kChunk = 64;  // squares summed in T before they are added in double
  T* out = side.packed.get() + panel * p.packed_dim * W;
  const int64_t first = panel * W, rows = side.n - first < W ? side.n - first : W;
  double norm[W] = {};
  for (int c = 0; c < P::kVectors; ++c) {
    const int64_t left = rows - c * L;
    const int count = left < 0 ? 0 : (left < L ? int(left) : L);
    const T* from[L];
    for (int r = 0; r < count; ++r) from[r] = side.row(first + c * L + r);
    for (int64_t k0 = 0; k0 < p.dim; k0 += kChunk) {
      const int64_t stop = k0 + kChunk < p.dim ? k0 + kChunk : p.dim;
      typename P::V partial{};
      for (int64_t k = k0; k < stop; k += L) {
        T* to = out + k * W + c * L;
        const int width = stop - k < L ? int(stop - k) : L;
        if (count == L && width == L) {
          pack_square(from, k, centre, to, partial);
        } else {
          pack_rest(from, count, k, width, centre, to, partial);
        }
      }
      for (int r = 0; r < L; ++r) norm[c * L + r] += partial[r];
    }
  }
  for (int64_t k = p.dim; k < p.packed_dim; ++k) {
    for (int r = 0; r < W; ++r) out[k * W + r] = 0;
  }
  T largest = 0;
  bool nonfinite = false;
  for (int64_t r = 0; r < W; ++r) {
    T n = r < rows ? static_cast<T>(norm[r]) : kInf<T>;
    if (r < rows) {
      nonfinite |= !(norm[r] < kLargestNorm<T>);
      if (p.distance == Distance::cosine) n = 1;
      largest = n > largest ? n : largest;
      if (p.dot()) n = 0;
    }
    side.norm[first + r] = n;
  }
  side.panel_norm[panel] = p.dot() ? -kInf<T> : largest;
  side.panel_size[panel] = largest;
  side.nonfinite[panel] = nonfinite;
}

template <class T>
inline void pack_side(Prepared<T>& p, Side<T>& side, const T* centre) {
  constexpr int W = Tile<T>::kWidth;
  side.panels = (side.n + W - 1) / W;
  side.packed.reset(side.panels * W * p.packed_dim);
  side.norm.reset(side.panels * W);
  side.panel_norm.reset(side.panels);
  side.panel_size.reset(side.panels);
  side.nonfinite.reset(side.panels);
  parallel_for(p.row_threads, side.panels, [&](int64_t i) { pack_panel(p, side, i, centre); });
  for (int64_t i = 0; i < side.panels; ++i) p.nonfinite |= side.nonfinite[i] != 0;
}

// Prepared::own; indices that are no rows of y leave nothing out.
template <class T>
inline void place_own(Prepared<T>& p, const int64_t* self_index) {
  const Side<T>& y = p.y_storage;
  const int64_t padded = (p.x.n + Tile<T>::kWidth - 1) / Tile<T>::kWidth * Tile<T>::kWidth;
  Buffer<int64_t> position(y.n);
  for (int64_t j = 0; j < y.n; ++j) position[y.order[j]] = j;
  p.own.reset(padded);
  p.own.fill(padded, -1);
  for (int64_t i = 0; i < p.x.n; ++i) {
    const int64_t row = self_index[p.x.order[i]];
    if (row >= 0 && row < y.n) p.own[i] = position[row];
  }
}

// Rows, labels and positives; panels too if asked for.
template <class T>
DMLAP_ONCE void prepare(Prepared<T>& p, const Pairs<T>& pairs, bool panels) {
  constexpr int W = Tile<T>::kWidth;
  p.self = pairs.self;
  p.distance = pairs.distance;
  p.dim = pairs.dim;
  p.packed_dim = (pairs.dim + Tile<T>::kRows - 1) / Tile<T>::kRows * Tile<T>::kRows;
  p.unit = pairs.normalize || pairs.distance == Distance::cosine;
  // Below this a second thread saves less than it costs, and on a busy machine, where it has to be
  // waited for, it costs many times more.
  constexpr double kWorthThreads = 1 << 21;
  const double work = double(pairs.x.n) * double(pairs.y.n) * double(pairs.dim);
  p.threads = work < kWorthThreads ? 1 : pairs.threads;
  p.row_threads = double(pairs.x.n + pairs.y.n) * double(pairs.dim) < (1 << 17) ? 1 : p.threads;
  for (int s = 0; s < (p.self ? 1 : 2); ++s) {
    Side<T>& side = s ? p.y_storage : p.x;
    const Rows<T>& rows = s ? pairs.y : pairs.x;
    side.rows = rows.data;
    side.stride = rows.stride;
    side.n = rows.n;
    const int64_t padded = (rows.n + W - 1) / W * W;
    side.order.reset(rows.n);
    side.rank.reset(padded);
    side.rank.fill(padded, INT32_MAX);
    if (rows.labels != nullptr) {
      sort_by_label(rows.labels, rows.n, side.order.get());
    } else {
      for (int64_t i = 0; i < rows.n; ++i) side.order[i] = i;
    }
    if (p.unit) normalize_rows(side, p.dim, p.row_threads);
    if (p.distance == Distance::cosine) {
      for (int64_t i = 0; i < side.n; ++i) p.any_short |= side.scale[i] >= T(1 / kNormalizeEps);
    }
  }
  if (!p.self && pairs.self_index != nullptr) place_own(p, pairs.self_index);
  // The address of an empty tensor may be null.
  if (pairs.x.labels != nullptr || pairs.y.labels != nullptr) {
    p.begin.reset(p.x.n);
    p.end.reset(p.x.n);
    p.ranks = rank_labels(pairs.x.labels, p.x.order.get(), p.x.n, pairs.y.labels, p.y().order.get(),
                          p.y().n, p.self, p.x.rank.get(),
                          p.self ? nullptr : p.y_storage.rank.get(), p.begin.get(), p.end.get());
  }
  if (!panels) return;
  Buffer<T> centre(p.packed_dim);
  centre.fill(p.packed_dim, T(0));
  if (p.distance != Distance::cosine && !p.dot()) exact_centre(p, centre.get());
  pack_side(p, p.x, centre.get());
  if (!p.self) pack_side(p, p.y_storage, centre.get());
}

// Turns the gradient at L2-normalised rows, in place, into the gradient at the raw rows.
template <class T>
DMLAP_ONCE void through_normalize(const Side<T>& side, int64_t dim, T* grad, int threads) {
  parallel_for(threads, (side.n + 63) / 64, [&](int64_t block) {
    const int64_t last = block * 64 + 64 < side.n ? block * 64 + 64 : side.n;
    for (int64_t i = block * 64; i < last; ++i) {
      const T* u = side.unit.get() + i * dim;
      T* g = grad + i * dim;
      double along = inner_product(u, g, dim);
      if (side.scale[i] >= T(1 / kNormalizeEps)) along = 0;  // the divisor is a constant there
      for (int64_t k = 0; k < dim; ++k) {
        g[k] = side.scale[i] * (g[k] - static_cast<T>(along) * u[k]);
      }
    }
  });
}

}  // namespace dmlap::cpu::DMLAP_ISA

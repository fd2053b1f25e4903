#include "kernels/spatial_attention/spatial_attention.h"

#include <math.h>

#include "cpu/amx_product.h"
#include "cpu/gemm_tile.h"

namespace simplear::SIMPLEAR_ISA {
namespace {

#if defined(__AMX_TILE__)
constexpr int64_t kBlockQueries = 4 * kTileRows;
#else
constexpr int64_t kBlockQueries = 4 * kMaxTileRows;
#endif

// Sizes of one image's problem and where its pieces lie. T is what is multiplied: float or bfloat16 bits.
template <class T>
struct Layout {
  static constexpr int64_t kPair = sizeof(T) == 2 ? 2 : 1;  // neighbours in k that lie side by side in a panel
  int64_t n, channels;
  int64_t n_k, channels_k;       // as lengths of a sum: even for bfloat16
  int64_t n_cols, channel_cols;  // as columns: whole panels

  Layout(int64_t n, int64_t channels)
      : n(n),
        channels(channels),
        n_k((n + kPair - 1) / kPair * kPair),
        channels_k((channels + kPair - 1) / kPair * kPair),
        n_cols(num_panels(n) * kPanelRows),
        channel_cols(num_panels(channels) * kPanelRows) {}

  // Elements: keys in panels of 64 positions, values in panels of 64 channels.
  int64_t key_panel() const { return channels_k * kPanelRows; }
  int64_t value_panel() const { return n_k * kPanelRows; }
  int64_t keys_size() const { return num_panels(n) * key_panel(); }
  int64_t values_size() const { return num_panels(channels) * value_panel(); }

  static size_t aligned(int64_t bytes) { return static_cast<size_t>((bytes + 63) / 64 * 64); }
  size_t shared_bytes() const { return aligned(keys_size() * sizeof(T)) + aligned(values_size() * sizeof(T)); }
  size_t scores_bytes() const { return aligned(kBlockQueries * n_cols * sizeof(float)); }
  size_t weights_bytes() const { return aligned(kBlockQueries * n_k * sizeof(RowType<T>)); }
  size_t query_bytes() const { return aligned(kBlockQueries * channels_k * sizeof(RowType<T>)); }
  size_t own_bytes() const { return scores_bytes() + weights_bytes() + query_bytes(); }
};

// Keys of 64 positions, k = channel.
template <class T>
void pack_keys(const Layout<T>& s, const T* qkv, int64_t panel, T* keys) {
  constexpr int64_t pair = Layout<T>::kPair;
  constexpr int64_t kAtOnce = 64;  // channels whose lines stay in the first-level cache meanwhile
  T* to = keys + panel * s.key_panel();
  for (int64_t first = 0; first < s.channels_k; first += kAtOnce) {
    const int64_t last = first + kAtOnce < s.channels_k ? first + kAtOnce : s.channels_k;
    for (int64_t j = 0; j < kPanelRows; ++j) {
      const int64_t position = panel * kPanelRows + j;
      const T* from = qkv + (position * 3 + 1) * s.channels;
      const int64_t whole = position >= s.n ? first : last < s.channels ? last : s.channels / pair * pair;
      int64_t c = first;
      for (; c < whole; c += pair) std::memcpy(to + c * kPanelRows + j * pair, from + c, pair * sizeof(T));
      for (; c < last; ++c)
        to[c / pair * kPanelRows * pair + j * pair + c % pair] = position < s.n && c < s.channels ? from[c] : T{};
    }
  }
}

// Values of up to `pair` neighbouring positions for all channels, k = position.
template <class T>
void pack_values(const Layout<T>& s, const T* qkv, int64_t step, T* values) {
  constexpr int64_t pair = Layout<T>::kPair;
  for (int64_t first = 0; first < s.channels; first += kPanelRows) {
    const int64_t count = s.channels - first < kPanelRows ? s.channels - first : kPanelRows;
    T* to = values + first / kPanelRows * s.value_panel() + step * kPanelRows * pair;
    for (int64_t e = 0; e < pair; ++e) {
      const int64_t position = step * pair + e;
      const T* from = qkv + (position * 3 + 2) * s.channels + first;
      int64_t j = 0;
      for (; j < count && position < s.n; ++j) to[j * pair + e] = from[j];
      for (; j < kPanelRows; ++j) to[j * pair + e] = T{};
    }
  }
}

// A vector of float32 numbers as factors of a product with panels of T: rounded to T, and kept as RowType says.
inline void store_factors(const float* from, float*, float* to) { store(to, load(from)); }
inline void store_factors(const float* from, uint16_t*, uint16_t* to) { store(to, load(from)); }
inline void store_factors(const float* from, uint16_t* rounded, float* to) {
  store(rounded, load(from));
  store(to, load(rounded));
}

// exp(scale * (s - max)) of one row, as factors of the second product; returns their sum.
template <class T>
float softmax_row(const Layout<T>& s, float* scores, float scale, RowType<T>* weights) {
  for (int64_t j = s.n; j < s.n_cols; ++j) scores[j] = -INFINITY;
  Vec top = load(scores);
  for (int64_t j = kLanes; j < s.n_cols; j += kLanes) top = max(top, load(scores + j));
  const float highest = reduce_max(top);
  Vec sum{};
  for (int64_t j = 0; j < s.n_cols; j += kLanes) {
    const Vec weight = exp((load(scores + j) - highest) * scale);
    sum += weight;
    store(scores + j, weight);
  }
  T rounded[kLanes];
  int64_t j = 0;
  for (; j + kLanes <= s.n_k; j += kLanes) store_factors(scores + j, rounded, weights + j);
  for (; j < s.n_k; ++j) {
    store_one(rounded, scores[j]);
    copy_row(rounded, 1, weights + j);
  }
  return reduce_add(sum);
}

// use(row, column, width, sums) for the products of `count` rows of k numbers with panels of so many elements each,
// whose first `columns` columns are wanted; the sums are those of `width` columns from `column` on.
template <class T, class Use>
inline void multiply(const RowType<T>* rows, int64_t k, int64_t count, const T* panels, int64_t panel_elements,
                     int64_t columns, const Use& use) {
#if defined(__AMX_TILE__)
  if constexpr (sizeof(T) == 2) {
    const Operand operand{reinterpret_cast<const char*>(rows), k * 2, k, 0};
    alignas(64) BlockSums sums;
    for (int64_t column = 0; column < columns; column += kPanelRows, panels += panel_elements) {
      amx_bf16(operand, 0, count, reinterpret_cast<const char*>(panels), 0, kPanelRows, sums);
      for (int64_t row = 0; row < count; ++row) use(row, column, int64_t{kPanelRows}, sums[row]);
    }
    return;
  }
#endif
  for_each_tile(count, 0, whole_vectors(columns), [&]<int MR, int NV>(int64_t row, int64_t column) {
    const RowType<T>* tile_rows[MR];
    for (int r = 0; r < MR; ++r) tile_rows[r] = rows + (row + r) * k;
    Tile<MR, NV> tile;
    tile.clear();
    tile.accumulate(tile_rows, panels + column / kPanelRows * panel_elements + column % kPanelRows * Layout<T>::kPair,
                    k);
    for (int r = 0; r < MR; ++r) {
      float sums[NV * kLanes];
      for (int v = 0; v < NV; ++v) store(sums + v * kLanes, tile.acc[r][v]);
      use(row + r, column, int64_t{NV * kLanes}, sums);
    }
  });
}

// Queries [first, first + count) of one image.
template <class T>
void attend_block(const SpatialAttentionParams& p, const Layout<T>& s, const T* qkv, const T* keys, const T* values,
                  int64_t image, int64_t first, int64_t count, char* own) {
  float* scores = reinterpret_cast<float*>(own);
  auto* weights = reinterpret_cast<RowType<T>*>(own + s.scores_bytes());
  auto* queries = reinterpret_cast<RowType<T>*>(own + s.scores_bytes() + s.weights_bytes());
  for (int64_t i = 0; i < count; ++i) {
    RowType<T>* query = queries + i * s.channels_k;
    copy_row(qkv + (first + i) * 3 * s.channels, s.channels, query);
    for (int64_t c = s.channels; c < s.channels_k; ++c) query[c] = {};
  }
  multiply(queries, s.channels_k, count, keys, s.key_panel(), s.n,
           [&](int64_t row, int64_t column, int64_t width, const float* products) {
             std::memcpy(scores + row * s.n_cols + column, products, width * sizeof(float));
           });
  float sums[kBlockQueries];
  for (int64_t i = 0; i < count; ++i) sums[i] = softmax_row(s, scores + i * s.n_cols, p.scale, weights + i * s.n_k);
  const T* residual = static_cast<const T*>(p.residual.data);
  T* y = static_cast<T*>(p.y.data);
  multiply(weights, s.n_k, count, values, s.value_panel(), s.channels,
           [&](int64_t row, int64_t channel, int64_t width, const float* products) {
             const int64_t offset = (image * s.n + first + row) * s.channels + channel;
             const int64_t end = width < s.channels - channel ? width : s.channels - channel;
             int64_t c = 0;
             for (; c + kLanes <= end; c += kLanes)
               store(y + offset + c, load(residual + offset + c) + load(products + c) / sums[row]);
             for (; c < end; ++c) store_one(y + offset + c, to_float(residual[offset + c]) + products[c] / sums[row]);
           });
}

template <class T>
void spatial_attention_as(const SpatialAttentionParams& p, ThreadPool& pool) {
  const Layout<T> s(int64_t{p.height} * p.width, p.channels);
  // One piece for all threads: packed keys and values, then each thread's own.
  char* shared = static_cast<char*>(pool.scratch(0, s.shared_bytes() + pool.size() * s.own_bytes()));
  T* keys = reinterpret_cast<T*>(shared);
  T* values = reinterpret_cast<T*>(shared + s.aligned(s.keys_size() * sizeof(T)));
  for (int64_t image = 0; image < p.batch; ++image) {
    const T* qkv = static_cast<const T*>(p.qkv.data) + image * s.n * 3 * s.channels;
    const int64_t key_panels = num_panels(s.n), value_steps = s.n_k / s.kPair;
    parallel_for(pool, key_panels, [&](int64_t begin, int64_t end, int) {
      for (int64_t panel = begin; panel < end; ++panel) pack_keys(s, qkv, panel, keys);
    });
    parallel_for(pool, value_steps, [&](int64_t begin, int64_t end, int) {
      for (int64_t step = begin; step < end; ++step) pack_values(s, qkv, step, values);
    });
    shared_for(pool, (s.n + kBlockQueries - 1) / kBlockQueries, 1, [&](int64_t begin, int64_t end, int thread) {
      char* own = shared + s.shared_bytes() + thread * s.own_bytes();
      for (int64_t block = begin; block < end; ++block) {
        const int64_t first = block * kBlockQueries, left = s.n - first;
        attend_block(p, s, qkv, keys, values, image, first, left < kBlockQueries ? left : kBlockQueries, own);
      }
    });
  }
}

void spatial_attention(const SpatialAttentionParams& p, ThreadPool& pool) {
  if (p.qkv.dtype == DType::kBFloat16) spatial_attention_as<uint16_t>(p, pool);
  else spatial_attention_as<float>(p, pool);
}

}  // namespace

SIMPLEAR_CPU_OP(spatial_attention, SpatialAttentionParams, kSpatialAttentionFields, spatial_attention);

}  // namespace simplear::SIMPLEAR_ISA

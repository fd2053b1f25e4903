#include "kernels/conv2d/conv2d.h"

#include "cpu/amx_conv.h"
#include "cpu/gemm_tile.h"

namespace simplear::SIMPLEAR_ISA {
namespace {

constexpr int kMaxTaps = 16;
#if defined(__AMX_TILE__)
template <class T>
constexpr int kTilePixels = sizeof(T) == 2 ? kTileRows : kMaxTileRows;
#else
template <class T>
constexpr int kTilePixels = kMaxTileRows;
#endif
constexpr int kBlockTiles = 16;  // tiles whose sums wait in scratch while a part of the weights is resident
constexpr int64_t kResidentBytes = 640 << 10;  // weights meant to stay in the second-level cache

inline int64_t even(int64_t n) { return (n + 1) / 2 * 2; }

// One corner's pixels, numbered b-major, row-major; finds where each tap of a pixel lies.
template <class T>
struct Pixels {
  const Conv2dParams& p;
  const T* x;
  const T* zeros;  // C zeros, what the border shows
  int64_t rows, columns, count;
  int corner_row, corner_column;

  Pixels(const Conv2dParams& params, const T* zeros, int corner)
      : p(params),
        x(static_cast<const T*>(params.x.data)),
        zeros(zeros),
        corner_row(corner / 2),
        corner_column(corner % 2) {
    const int step = p.corners == 4 ? 2 : 1;
    rows = p.out_height / step;
    columns = p.out_width / step;
    count = p.batch * rows * columns;
  }

  // Input rows of all taps of `pixel`.
  void taps(int64_t pixel, const T* (&out)[kMaxTaps]) const {
    const int64_t column = pixel % columns, row = pixel / columns % rows, image = pixel / columns / rows;
    const int64_t top = row * p.stride - (p.corners == 4 ? 1 - corner_row : p.pad);
    const int64_t left = column * p.stride - (p.corners == 4 ? 1 - corner_column : p.pad);
    int tap = 0;
    for (int64_t i = top; i < top + p.kernel; ++i)
      for (int64_t j = left; j < left + p.kernel; ++j) {
        const bool inside = i >= 0 && i < p.height && j >= 0 && j < p.width;
        out[tap++] = inside ? x + ((image * p.height + i) * p.width + j) * p.in_channels : zeros;
      }
  }

  // Offset of `pixel` in y and in the residual.
  int64_t output(int64_t pixel) const {
    if (p.corners == 1) return pixel * p.out_channels;
    const int64_t column = pixel % columns, row = pixel / columns;  // rows of all images, one below the other
    return ((2 * row + corner_row) * p.out_width + 2 * column + corner_column) * p.out_channels;
  }
};

// What one tap adds: `k` channels of MR pixels. An odd channel is paired with a zero, never with the neighbour's
// number. wide: for MR rows of even(k) numbers, where they are not multiplied as they are.
template <int MR, int NV, class T>
inline void accumulate_tap(Tile<MR, NV>& tile, const T* const (&pixels)[MR], const T* w, int64_t k, float* wide) {
  if constexpr (sizeof(T) == 4) {
    tile.accumulate(pixels, w, k);
  } else if constexpr (sizeof(RowType<T>) == 4) {
    const float* rows[MR];
    for (int r = 0; r < MR; ++r, wide += even(k)) {
      copy_row(pixels[r], k, wide);
      if (k % 2 == 1) wide[k] = 0;
      rows[r] = wide;
    }
    tile.accumulate(rows, w, even(k));
  } else {
    tile.accumulate(pixels, w, k / 2 * 2);
    if (k % 2 == 0) return;
    T last[MR][2];
    const T* last_rows[MR];
    for (int r = 0; r < MR; ++r) {
      last[r][0] = pixels[r][k - 1];
      last[r][1] = 0;
      last_rows[r] = last[r];
    }
    tile.accumulate(last_rows, w + (k - 1) * kPanelRows, 2);
  }
}

// Adds bias and residual to one vector of sums of a pixel, rounds, and writes the `count` channels that exist.
template <class Y>
inline void finish(const Conv2dParams& p, Vec sum, int64_t channel, int64_t count, int64_t offset) {
  Y* y = static_cast<Y*>(p.y.data) + offset + channel;
  const Y* residual = p.residual.data ? static_cast<const Y*>(p.residual.data) + offset + channel : nullptr;
  if (count >= kLanes) {
    sum += load(p.bias + channel);
    if (residual) sum += load(residual);
    store(y, sum);
    return;
  }
  for (int64_t j = 0; j < count; ++j) {
    float one = sum[j] + p.bias[channel + j];
    if (residual) one += to_float(residual[j]);
    store_one(y + j, one);
  }
}

// Taps [first_tap, end_tap) of MR pixels and NV vectors of channels. `sums` carries what earlier taps gave to what
// later ones add; wide: of accumulate_tap.
template <int MR, int NV, class T, class Y>
void run_tile(const Conv2dParams& p, const Pixels<T>& pixels, const T* weight, int64_t pixel, int64_t channel,
              int first_tap, int end_tap, float* sums, float* wide) {
  const int64_t channels = p.in_channels;
  const int64_t tap_size = (sizeof(T) == 2 ? even(channels) : channels) * kPanelRows;
  const int num_taps = p.kernel * p.kernel;
  constexpr int64_t kStep = sizeof(T) == 2 ? 2 : 1;  // elements of one channel in a step of k
  const T* from = weight + channel / kPanelRows * num_taps * tap_size + channel % kPanelRows * kStep;
  const T* tap_rows[MR][kMaxTaps];
  for (int r = 0; r < MR; ++r) pixels.taps(pixel + r, tap_rows[r]);
  Tile<MR, NV> tile;
  if (first_tap == 0) {
    tile.clear();
  } else {
#pragma GCC unroll 32
    for (int r = 0; r < MR; ++r)
#pragma GCC unroll 32
      for (int v = 0; v < NV; ++v) tile.acc[r][v] = load(sums + (r * NV + v) * kLanes);
  }
  for (int tap = first_tap; tap < end_tap; ++tap) {
    const T* rows[MR];
    for (int r = 0; r < MR; ++r) rows[r] = tap_rows[r][tap];
    accumulate_tap(tile, rows, from + tap * tap_size, channels, wide);
  }
  if (end_tap < num_taps) {
#pragma GCC unroll 32
    for (int r = 0; r < MR; ++r)
#pragma GCC unroll 32
      for (int v = 0; v < NV; ++v) store(sums + (r * NV + v) * kLanes, tile.acc[r][v]);
    return;
  }
  for (int r = 0; r < MR; ++r) {
    const int64_t offset = pixels.output(pixel + r);
    for (int v = 0; v < NV; ++v) {
      const int64_t first = channel + v * kLanes;
      finish<Y>(p, tile.acc[r][v], first, p.out_channels - first, offset);
    }
  }
}

#if defined(__AMX_TILE__)
// Up to 16 pixels and where their taps lie.
struct TileOfPixels {
  int64_t first;
  int count;
  const uint16_t* taps[kTileRows][kMaxTaps];

  TileOfPixels(const Pixels<uint16_t>& pixels, int64_t first, int count) : first(first), count(count) {
    for (int r = 0; r < count; ++r) pixels.taps(first + r, taps[r]);
  }

  // One tap as rows of even(channels) numbers. Pixels that do not lie at equal distances, and those with an odd
  // channel, are copied.
  TileOfRows rows(int tap, int64_t channels, uint16_t* copied) const {
    const int64_t row_bytes = count > 1 ? (taps[1][tap] - taps[0][tap]) * 2 : 64;
    bool is_regular = channels % 2 == 0;
    for (int r = 2; r < count; ++r) is_regular &= (taps[r][tap] - taps[r - 1][tap]) * 2 == row_bytes;
    if (is_regular) return {reinterpret_cast<const char*>(taps[0][tap]), row_bytes};
    const int64_t length = even(channels);
    for (int r = 0; r < count; ++r) {
      std::memcpy(copied + r * length, taps[r][tap], channels * 2);
      if (length > channels) copied[r * length + channels] = 0;
    }
    return {reinterpret_cast<const char*>(copied), length * 2};
  }
};

template <class Y>
void finish_pixels(const Conv2dParams& p, const Pixels<uint16_t>& pixels, const TileOfPixels& tile, int64_t channel,
                   const float* sums) {
  const int64_t channels = p.out_channels - channel < kPanelRows ? p.out_channels - channel : kPanelRows;
  for (int r = 0; r < tile.count; ++r, sums += kPanelRows) {
    const int64_t offset = pixels.output(tile.first + r);
    for (int64_t c = 0; c < channels; c += kLanes) finish<Y>(p, load(sums + c), channel + c, channels - c, offset);
  }
}

// run_block with AMX: tiles of 16 pixels by a panel of channels. sums: [pixels][64]; copied: kTileRows *
// even(channels) numbers.
template <class Y>
void run_amx_block(const Conv2dParams& p, const Pixels<uint16_t>& pixels, const uint16_t* weight, int64_t pixel,
                   int64_t end, int64_t channel, int first_tap, int end_tap, float* sums, uint16_t* copied) {
  const int64_t length = even(p.in_channels);
  const int num_taps = p.kernel * p.kernel, left = static_cast<int>(length % kTileDepth / 2);
  const char* panel = reinterpret_cast<const char*>(weight + channel / kPanelRows * num_taps * length * kPanelRows);
  const int64_t tap_bytes = length * kPanelRows * 2;
  for (; pixel < end; pixel += kTileRows, sums += kTileRows * kPanelRows) {
    const TileOfPixels tile(pixels, pixel, end - pixel < kTileRows ? static_cast<int>(end - pixel) : kTileRows);
    shape_tiles({tile.count, kTileDepth / 2, left});
    if (first_tap == 0) clear_sums();
    else load_sums(sums);
    for (int tap = first_tap; tap < end_tap; ++tap)
      add_products(tile.rows(tap, p.in_channels, copied), panel + tap * tap_bytes, length);
    store_sums(sums);
    if (end_tap == num_taps) finish_pixels<Y>(p, pixels, tile, channel, sums);
  }
}

template <class Y>
void convolve_lines_as(const Conv2dParams& p, ThreadPool& pool) {
  const int64_t panel_bytes = int64_t{p.kernel} * p.kernel * p.in_channels * kPanelRows * 2;
  convolve_lines(p, num_panels(p.out_channels) * panel_bytes, panel_bytes, pool,
                 [&](const float* sums, int64_t channel, int64_t offset) {
                   const int64_t left = p.out_channels - channel;
                   for (int64_t c = 0; c < 2 * kTileColumns && c < left; c += kLanes)
                     finish<Y>(p, load(sums + c), channel + c, left - c, offset);
                 });
}
#endif

// Pixels [pixel, end) and channels [channel, channel_end), one part of the taps after the other.
template <class T, class Y>
void run_block(const Conv2dParams& p, const Pixels<T>& pixels, const T* weight, int64_t pixel, int64_t end,
               int64_t channel, int64_t channel_end, int taps_at_once, float* sums, float* wide) {
  const int num_taps = p.kernel * p.kernel;
  for (int first = 0; first < num_taps; first += taps_at_once) {
    const int last = first + taps_at_once < num_taps ? first + taps_at_once : num_taps;
#if defined(__AMX_TILE__)
    if constexpr (sizeof(T) == 2) {
      run_amx_block<Y>(p, pixels, weight, pixel, end, channel, first, last, sums, reinterpret_cast<uint16_t*>(wide));
      continue;
    }
#endif
    for_each_tile(end - pixel, channel, channel_end, [&]<int MR, int NV>(int64_t row, int64_t column) {
      // Every tile finds its sums again: those of one group of channels lie before those of the next.
      float* tile_sums = sums + (column - channel) * (end - pixel) + row * NV * kLanes;
      run_tile<MR, NV, T, Y>(p, pixels, weight, pixel + row, column, first, last, tile_sums, wide);
    });
  }
}

template <class T, class Y>
void conv2d_as(const Conv2dParams& p, ThreadPool& pool) {
  const int64_t out_channels = whole_vectors(p.out_channels);
  const int64_t groups = (out_channels + kMaxTileColumns - 1) / kMaxTileColumns;
  const int num_taps = p.kernel * p.kernel;
  const int64_t channels = sizeof(T) == 2 ? even(p.in_channels) : p.in_channels;
  const int64_t corner_size = num_panels(p.out_channels) * num_taps * channels * kPanelRows;
  const int64_t fitting = kResidentBytes / (channels * kMaxTileColumns * static_cast<int64_t>(sizeof(T)));
  const int taps_at_once = fitting < 1 ? 1 : fitting < num_taps ? static_cast<int>(fitting) : num_taps;

  constexpr int kPixels = kTilePixels<T>;
  const int64_t tiles = (Pixels<T>(p, nullptr, 0).count + kPixels - 1) / kPixels;
  const size_t zeros_bytes = (channels * sizeof(T) + 63) / 64 * 64;
  const size_t sums_bytes = kBlockTiles * kPixels * kMaxTileColumns * sizeof(float);
  const int copied_rows = sizeof(RowType<T>) > sizeof(T) || kPixels > kMaxTileRows ? kPixels : 0;
  const size_t wide_bytes = copied_rows * channels * sizeof(RowType<T>);
  // Work is dealt out group-major, so that a thread keeps few panels and, with several groups, reads only its share.
  shared_for(pool, p.corners * groups * tiles, 1, [&](int64_t begin, int64_t end, int thread) {
    char* scratch = static_cast<char*>(pool.scratch(thread, zeros_bytes + sums_bytes + wide_bytes));
    std::memset(scratch, 0, zeros_bytes);
    float* sums = reinterpret_cast<float*>(scratch + zeros_bytes);
    float* wide = reinterpret_cast<float*>(scratch + zeros_bytes + sums_bytes);
    while (begin < end) {
      const int64_t group = begin / tiles, tile = begin % tiles;
      int64_t count = tiles - tile < end - begin ? tiles - tile : end - begin;
      if (count > kBlockTiles) count = kBlockTiles;
      const Pixels<T> pixels(p, reinterpret_cast<const T*>(scratch), static_cast<int>(group / groups));
      const T* weight = static_cast<const T*>(p.weight.data) + group / groups * corner_size;
      const int64_t first_pixel = tile * kPixels, last_pixel = first_pixel + count * kPixels;
      const int64_t channel = group % groups * kMaxTileColumns, channel_end = channel + kMaxTileColumns;
      run_block<T, Y>(p, pixels, weight, first_pixel, last_pixel < pixels.count ? last_pixel : pixels.count, channel,
                      channel_end < out_channels ? channel_end : out_channels, taps_at_once, sums, wide);
      begin += count;
    }
  });
}

void conv2d(const Conv2dParams& p, ThreadPool& pool) {
  const bool bf16_out = p.y.dtype == DType::kBFloat16;
#if defined(__AMX_TILE__)
  if (takes_lines(p)) return bf16_out ? convolve_lines_as<uint16_t>(p, pool) : convolve_lines_as<float>(p, pool);
#endif
  if (p.x.dtype == DType::kBFloat16)
    bf16_out ? conv2d_as<uint16_t, uint16_t>(p, pool) : conv2d_as<uint16_t, float>(p, pool);
  else bf16_out ? conv2d_as<float, uint16_t>(p, pool) : conv2d_as<float, float>(p, pool);
}

}  // namespace

SIMPLEAR_CPU_OP(conv2d, Conv2dParams, kConv2dFields, conv2d);

}  // namespace simplear::SIMPLEAR_ISA

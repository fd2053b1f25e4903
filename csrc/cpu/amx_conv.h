// Convolutions of bfloat16 with AMX, for stride 1, channels in multiples of 32 and pictures that are not tiny, of whose
// tiles too much would be border.
//
// The input is first brought into the order that tiles want. 32 channels of a pixel are a line, and the lines of
// neighbours follow each other, each image within a border of zeros:
//
//   lines[C / 32][B][rows][columns][32]        rows and columns with their borders
//
// Wherever a pixel is, each of its taps is now the same number of lines behind it. So any 32 neighbours are two tiles,
// also across the end of a row: what comes out for the border between is dropped. The registers sum up all of an
// output, 32 channels after the other and of each all taps, so that the lines of a few channels are read from the
// first-level cache by tap after tap. (Tap after tap on the input as it is takes up to 1.7 times as long: pixels
// at distances of a power of two fight for few sets of the cache, and tiles at the border have to be put together.)
#pragma once

#if defined(__AMX_TILE__)
#include "cpu/amx.h"
#include "cpu/simd.h"
#include "kernels/conv2d/conv2d.h"

namespace simplear::SIMPLEAR_ISA {

inline bool takes_lines(const Conv2dParams& p) {
  return p.x.dtype == DType::kBFloat16 && p.stride == 1 && p.in_channels % kTileDepth == 0 && p.width >= kTileRows;
}

struct Lines {
  static constexpr int64_t kBytes = 2 * kTileDepth;

  const Conv2dParams& p;
  int64_t border;                 // in front
  int64_t out_rows, out_columns;  // of a corner
  int64_t rows, columns;          // of an image, with borders
  int64_t chunk_bytes;
  char* data = nullptr;

  explicit Lines(const Conv2dParams& p) : p(p) {
    const int step = p.corners == 4 ? 2 : 1;
    border = p.corners == 4 ? 1 : p.pad;
    out_rows = p.out_height / step;
    out_columns = p.out_width / step;
    rows = out_rows + p.kernel - 1 + step - 1;
    columns = out_columns + p.kernel - 1 + step - 1;
    chunk_bytes = p.batch * rows * columns * kBytes;
  }

  // The last tile reads a little further than there are lines.
  size_t bytes() const {
    return p.in_channels / kTileDepth * chunk_bytes + (2 * kTileRows + (p.kernel + 1) * (columns + 1)) * kBytes;
  }

  // Brings rows [begin, end) of all images, one below the other, into order.
  void fill(int64_t begin, int64_t end) const {
    const uint16_t* x = static_cast<const uint16_t*>(p.x.data);
    const int64_t kept = p.width < columns - border ? p.width : columns - border, behind = columns - border - kept;
    for (int64_t n = begin; n < end; ++n) {
      const int64_t row = n % rows - border;
      const char* from =
          reinterpret_cast<const char*>(x + (n / rows * p.height + row) * p.width * int64_t{p.in_channels});
      char* to = data + n * columns * kBytes;
      for (int chunk = 0; chunk < p.in_channels / kTileDepth; ++chunk, to += chunk_bytes, from += kBytes) {
        if (row < 0 || row >= p.height) {
          std::memset(to, 0, columns * kBytes);
          continue;
        }
        std::memset(to, 0, border * kBytes);
        for (int64_t i = 0; i < kept; ++i)
          std::memcpy(to + (border + i) * kBytes, from + i * p.in_channels * int64_t{2}, kBytes);
        std::memset(to + (border + kept) * kBytes, 0, behind * kBytes);
      }
    }
  }

  // The first tap of a pixel of a corner's output; pixels are counted along the lines.
  const char* at(int corner, int64_t image, int64_t pixel) const {
    return data + ((image * rows + corner / 2) * columns + corner % 2 + pixel) * kBytes;
  }

  // Offset of a pixel of a corner's output in y.
  int64_t output(int corner, int64_t image, int64_t row, int64_t column) const {
    const int step = p.corners == 4 ? 2 : 1;
    const int64_t y_row = (image * out_rows + row) * step + corner / 2, y_column = column * step + corner % 2;
    return (y_row * p.out_width + y_column) * p.out_channels;
  }
};

// 32 pixels by 32 channels: sums of rows 16 to 31 lie behind those of 0 to 15. weights: of the first tap.
inline void convolve_tiles(const Lines& lines, const char* first, const char* weights, float (*sums)[kPanelRows]) {
  const int64_t chunks = lines.p.in_channels / kTileDepth;
  const int64_t tap_bytes = chunks * kTileDepth * kPanelLine / 2, row_bytes = lines.columns * Lines::kBytes;
  reads_memory(first);
  clear_sums();
  for (int64_t chunk = 0; chunk < chunks; ++chunk) {
    const char *w = weights + chunk * (kTileDepth / 2 * kPanelLine), *next_chunk = w + kTileDepth / 2 * kPanelLine;
    const char* row = first + chunk * lines.chunk_bytes;
    for (int u = 0; u < lines.p.kernel; ++u, row += row_bytes) {
      const char* x = row;
      for (int v = 0; v < lines.p.kernel; ++v, x += Lines::kBytes, w += tap_bytes) {
        const bool is_last = u == lines.p.kernel - 1 && v == lines.p.kernel - 1;
        const char* next = is_last ? next_chunk : w + tap_bytes;
        multiply_lines(x, w, next);
      }
    }
  }
  store_sums(&sums[0][0], &sums[kTileRows][0]);
}

// finish(sums, channel, offset of the pixel in y) for each pixel and 32 channels, which need not all exist.
template <class Finish>
inline void convolve_lines(const Conv2dParams& p, int64_t corner_bytes, int64_t panel_bytes, ThreadPool& pool,
                           const Finish& finish) {
  constexpr int64_t kPixels = 2 * kTileRows, kChannels = 2 * kTileColumns;
  constexpr int64_t kResidentBytes = 640 << 10;  // weights meant to stay in the second-level cache
  Lines lines(p);
  lines.data = static_cast<char*>(pool.scratch(0, lines.bytes()));
  // Copying does the work of some two simple elements.
  parallel_for(pool, p.batch * lines.rows, grain_of(2 * lines.columns * p.in_channels),
               [&](int64_t begin, int64_t end, int) { lines.fill(begin, end); });

  const int64_t end_pixel = (lines.out_rows - 1) * lines.columns + lines.out_columns;
  const int64_t blocks = (end_pixel + kPixels - 1) / kPixels;
  const int64_t fitting = kResidentBytes / panel_bytes;
  int64_t group = (fitting < 1 ? 1 : fitting) * kPanelRows;
  const auto num_items = [&] { return p.corners * ((p.out_channels + group - 1) / group) * p.batch * blocks; };
  // A small picture has few blocks, and threads want several items each.
  while (group > kChannels && num_items() < 4 * pool.size())
    group = (group / 2 + kChannels - 1) / kChannels * kChannels;
  const int64_t groups = (p.out_channels + group - 1) / group;
  // Groups of channels change last, so that a thread keeps the weights of one.
  shared_for(pool, num_items(), 1, [&](int64_t begin, int64_t end, int) {
    alignas(64) float sums[kPixels][kPanelRows];
    shape_tiles({kTileRows, kTileDepth / 2, 0});
    for (int64_t item = begin; item < end; ++item) {
      const int64_t pixel = item % blocks * kPixels, image = item / blocks % p.batch;
      const int64_t first_channel = item / blocks / p.batch % groups * group;
      const int corner = static_cast<int>(item / blocks / p.batch / groups);
      const char* weights = static_cast<const char*>(p.weight.data) + corner * corner_bytes;
      for (int64_t channel = first_channel; channel < first_channel + group && channel < p.out_channels;
           channel += kChannels) {
        convolve_tiles(lines, lines.at(corner, image, pixel),
                       weights + channel / kPanelRows * panel_bytes + channel % kPanelRows * 4, sums);
        int64_t row = pixel / lines.columns, column = pixel % lines.columns;
        for (int r = 0; r < kPixels; ++r) {
          if (row < lines.out_rows && column < lines.out_columns)
            finish(sums[r], channel, lines.output(corner, image, row, column));
          if (++column == lines.columns) column = 0, ++row;
        }
      }
    }
  });
}

}  // namespace simplear::SIMPLEAR_ISA

#endif

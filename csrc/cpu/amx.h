// The tile registers of AMX, Intel's unit for products of small matrices: eight registers of 16 lines of 64 bytes.
//
//   c[m][n] += sum_k a[m][k] * b[k][n]        m, n < 16; k < 32 in bfloat16, k < 64 in bytes
//
// A line of b holds, for 16 columns, two (bfloat16) or four (bytes) neighbours in k: the order of panels.h, so weights
// are packed as for everybody else. A product takes nearly as long for one row as for sixteen.
// Intel 64 and IA-32 Architectures Software Developer's Manual, volume 2, TDPBF16PS and TDPBSUD.
#pragma once

#include <immintrin.h>

#include <cstdint>

#include "cpu/panels.h"

namespace simplear::SIMPLEAR_ISA {

constexpr int kTileRows = 16;     // of a register
constexpr int kTileColumns = 16;  // of sums
constexpr int kTileDepth = 32;    // k of a product in bfloat16
constexpr int kTilesOfPanel = kPanelRows / kTileColumns;
constexpr int64_t kPanelLine = kPanelRows * 4;  // bytes of a panel from one line of b to the next

// What the registers hold: 0 to 3 sums, 4 and 5 rows, 6 and 7 weights. `left`: if not 0, the lines that 7 takes of
// weights at the end of k, and 5 of rows. (A register that is loaded anew is another one inside, so that a second name
// for the same use gains nothing.)
struct TileShape {
  int rows;   // at once
  int lines;  // of weights at once: k / 2 or k / 4
  int left;

  uint32_t key() const { return static_cast<uint32_t>(rows << 16 | lines << 8 | left); }
};

// What this thread's registers are shaped as; 0: nothing.
inline thread_local uint32_t tiles_shaped_as = 0;

// GCC 12 does not know of the instructions below that they read memory.
inline void reads_memory(const void* from) { asm volatile("" ::"r"(from) : "memory"); }

inline void shape_tiles(const TileShape& shape) {
  if (tiles_shaped_as == shape.key()) return;
  struct {
    uint8_t palette = 1, start_row = 0, reserved[14] = {};
    uint16_t line_bytes[16] = {};
    uint8_t lines[16] = {};
  } config;
  const auto set = [&](int tile, int lines, int line_bytes) {
    config.lines[tile] = static_cast<uint8_t>(lines);
    config.line_bytes[tile] = static_cast<uint16_t>(line_bytes);
  };
  const int second = shape.left > 0 ? shape.left : shape.lines;
  for (int tile = 0; tile < kTilesOfPanel; ++tile) set(tile, shape.rows, kTileColumns * 4);
  set(4, shape.rows, shape.lines * 4);
  set(5, shape.rows, second * 4);
  set(6, shape.lines, kTileColumns * 4);
  set(7, second, kTileColumns * 4);
  reads_memory(&config);
  _tile_loadconfig(&config);
  tiles_shaped_as = shape.key();
}

// Gives the registers back: a thread that keeps them in use is slower to switch, and other libraries of the process
// shape them for themselves.
inline void release_tiles() {
  if (tiles_shaped_as == 0) return;
  _tile_release();
  tiles_shaped_as = 0;
}

inline void clear_sums() {
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
}

// Sums of all columns of a panel; kPanelRows numbers from one row to the next.
inline void load_sums(const void* sums) {
  const char* from = static_cast<const char*>(sums);
  reads_memory(from);
  _tile_loadd(0, from, kPanelLine);
  _tile_loadd(1, from + 64, kPanelLine);
  _tile_loadd(2, from + 128, kPanelLine);
  _tile_loadd(3, from + 192, kPanelLine);
}
inline void store_sums(void* sums, int64_t row_bytes = kPanelLine) {
  char* to = static_cast<char*>(sums);
  _tile_stored(0, to, row_bytes);
  _tile_stored(1, to + 64, row_bytes);
  _tile_stored(2, to + 128, row_bytes);
  _tile_stored(3, to + 192, row_bytes);
}

// Sums of two tiles of rows and 32 columns.
inline void load_sums(const float* a, const float* b) {
  reads_memory(a);
  _tile_loadd(0, a, kPanelLine);
  _tile_loadd(1, a + kTileColumns, kPanelLine);
  _tile_loadd(2, b, kPanelLine);
  _tile_loadd(3, b + kTileColumns, kPanelLine);
}
inline void store_sums(float* a, float* b) {
  _tile_stored(0, a, kPanelLine);
  _tile_stored(1, a + kTileColumns, kPanelLine);
  _tile_stored(2, b, kPanelLine);
  _tile_stored(3, b + kTileColumns, kPanelLine);
}

// Rows of bfloat16, as many as the registers are shaped for.
struct TileOfRows {
  const char* data;
  int64_t row_bytes;
};

// Asks for `count` lines of weights from here on, one from each line of a panel.
template <int count>
inline void ask_for(const char* weights) {
#pragma GCC unroll 16
  for (int i = 0; i < count; ++i) asm volatile("prefetcht0 %0" ::"m"(weights[i * kPanelLine]));
}

// Asks for `count` lines of weights a little further on. Loads of tiles jump from line to line, in a way that hardware
// does not foresee; the more so when another thread shares the core.
template <int count, int64_t stride = 64>
inline void ask_ahead(const char* weights) {
  constexpr int64_t kDistance = 8 * 1024;
#pragma GCC unroll 16
  for (int i = 0; i < count; ++i) asm volatile("prefetcht0 %0" ::"m"(weights[kDistance + i * stride]));
}

// Adds the products of k numbers of the rows with a panel's lines from `panel` on to the sums of all its columns.
// Where k % 32 is not 0, shape.left is half of it, rounded up.
inline void add_products(const TileOfRows& rows, const char* panel, int64_t k) {
  const char *x = rows.data, *w = panel;
  reads_memory(x);
  int64_t i = 0;
  for (; i + kTileDepth <= k; i += kTileDepth, x += 2 * kTileDepth, w += kTileDepth / 2 * kPanelLine) {
    _tile_loadd(4, x, rows.row_bytes);
    _tile_loadd(6, w, kPanelLine);
    _tile_dpbf16ps(0, 4, 6);
    ask_ahead<16>(w);
    _tile_loadd(6, w + 64, kPanelLine);
    _tile_dpbf16ps(1, 4, 6);
    ask_ahead<16>(w + 1024);
    _tile_loadd(6, w + 128, kPanelLine);
    _tile_dpbf16ps(2, 4, 6);
    ask_ahead<16>(w + 2048);
    _tile_loadd(6, w + 192, kPanelLine);
    _tile_dpbf16ps(3, 4, 6);
    ask_ahead<16>(w + 3072);
  }
  if (i >= k) return;
  _tile_loadd(5, x, rows.row_bytes);
  _tile_loadd(7, w, kPanelLine);
  _tile_dpbf16ps(0, 5, 7);
  _tile_loadd(7, w + 64, kPanelLine);
  _tile_dpbf16ps(1, 5, 7);
  _tile_loadd(7, w + 128, kPanelLine);
  _tile_dpbf16ps(2, 5, 7);
  _tile_loadd(7, w + 192, kPanelLine);
  _tile_dpbf16ps(3, 5, 7);
}

// The same for two tiles of rows and the 32 columns from `panel` on: what is loaded is used twice. Sums of the first
// rows are in 0 and 1. k is a multiple of 32.
inline void add_products(const TileOfRows& a, const TileOfRows& b, const char* panel, int64_t k) {
  const char *xa = a.data, *xb = b.data, *w = panel;
  reads_memory(xa);
  for (int64_t i = 0; i < k; i += kTileDepth, xa += 2 * kTileDepth, xb += 2 * kTileDepth) {
    _tile_loadd(6, w, kPanelLine);
    _tile_loadd(4, xa, a.row_bytes);
    _tile_dpbf16ps(0, 4, 6);
    ask_ahead<8, kPanelLine>(w);
    _tile_loadd(7, w + 64, kPanelLine);
    _tile_dpbf16ps(1, 4, 7);
    ask_ahead<8, kPanelLine>(w + 8 * kPanelLine);
    _tile_loadd(5, xb, b.row_bytes);
    _tile_dpbf16ps(2, 5, 6);
    ask_ahead<8, kPanelLine>(w + 64);
    _tile_dpbf16ps(3, 5, 7);
    ask_ahead<8, kPanelLine>(w + 8 * kPanelLine + 64);
    w += kTileDepth / 2 * kPanelLine;
  }
}

// The same for two tiles of lines that follow each other and 32 k. next: weights to ask for meanwhile.
inline void multiply_lines(const char* x, const char* w, const char* next) {
  _tile_loadd(6, w, kPanelLine);
  _tile_loadd(4, x, kTileDepth * 2);
  _tile_dpbf16ps(0, 4, 6);
  ask_for<8>(next);
  _tile_loadd(7, w + 64, kPanelLine);
  _tile_dpbf16ps(1, 4, 7);
  ask_for<8>(next + 8 * kPanelLine);
  _tile_loadd(5, x + kTileRows * kTileDepth * 2, kTileDepth * 2);
  _tile_dpbf16ps(2, 5, 6);
  ask_for<8>(next + 64);
  _tile_dpbf16ps(3, 5, 7);
  ask_for<8>(next + 8 * kPanelLine + 64);
}

// Integer products of 32 signed bytes of the rows with a group of a panel's unsigned ones. meanwhile(part), for parts 0
// to 3, is work of the vector units that does not depend on them: a core looks ahead too little to find it by itself.
template <class Meanwhile>
inline void multiply_group(const TileOfRows& rows, const uint8_t* weights, int32_t* dots, const Meanwhile& meanwhile) {
  char* to = reinterpret_cast<char*>(dots);
  reads_memory(rows.data);
  _tile_loadd(4, rows.data, rows.row_bytes);
  _tile_zero(0);
  _tile_loadd(6, weights, kPanelLine);
  _tile_dpbsud(0, 4, 6);
  _tile_zero(1);
  _tile_loadd(6, weights + 64, kPanelLine);
  _tile_dpbsud(1, 4, 6);
  meanwhile(0);
  _tile_stored(0, to, kPanelLine);
  _tile_zero(2);
  _tile_loadd(6, weights + 128, kPanelLine);
  _tile_dpbsud(2, 4, 6);
  meanwhile(1);
  _tile_stored(1, to + 64, kPanelLine);
  _tile_zero(3);
  _tile_loadd(6, weights + 192, kPanelLine);
  _tile_dpbsud(3, 4, 6);
  meanwhile(2);
  _tile_stored(2, to + 128, kPanelLine);
  meanwhile(3);
  _tile_stored(3, to + 192, kPanelLine);
}

}  // namespace simplear::SIMPLEAR_ISA

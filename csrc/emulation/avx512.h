// AVX-512 for a processor without it, so that kernels written for it are tested everywhere. For tests only.
//
// Included before everything else in files that are compiled for an AVX-512 instruction set (CMake option
// SIMPLEAR_EMULATE_AVX512), AMX with it. The compiler splits vectors of 64 bytes into what it has; the few instructions
// that sources name are written out here, lane by lane as the processors' manuals define them. What is emulated is
// arithmetic, not speed, and not the compiler's own AVX-512 code.
#pragma once

#include <immintrin.h>

#include <cstdint>
#include <cstring>

#define __AVX512F__ 1
#define __AVX512BW__ 1
#define __AVX512VL__ 1
#define __AVX512DQ__ 1
#if defined(SIMPLEAR_EMULATE_VNNI)
#define __AVX512VNNI__ 1
#endif
#if defined(SIMPLEAR_EMULATE_BF16)
#define __AVX512BF16__ 1
#endif
#if defined(SIMPLEAR_EMULATE_AMX)
#define __AMX_TILE__ 1
#define __AMX_BF16__ 1
#define __AMX_INT8__ 1
#endif

namespace simplear_emulation {

typedef float F32 __attribute__((vector_size(64)));
typedef int32_t I32 __attribute__((vector_size(64)));
typedef uint32_t U32 __attribute__((vector_size(64)));
typedef int64_t I64 __attribute__((vector_size(64)));
typedef uint64_t U64 __attribute__((vector_size(64)));
typedef int16_t I16 __attribute__((vector_size(64)));

template <class To, class From>
inline To bits_of(From v) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  std::memcpy(&to, &v, sizeof(to));
  return to;
}

inline __m512 fmadd(__m512 a, __m512 b, __m512 c) {
  __m256 half_a[2], half_b[2], half_c[2];
  std::memcpy(half_a, &a, 64), std::memcpy(half_b, &b, 64), std::memcpy(half_c, &c, 64);
  for (int i = 0; i < 2; ++i) half_c[i] = _mm256_fmadd_ps(half_a[i], half_b[i], half_c[i]);
  std::memcpy(&c, half_c, 64);
  return c;
}

// Two products a lane, each of which is added and rounded by itself, the odd one first.
template <class Pairs>
inline __m512 dpbf16(__m512 sum, Pairs a, Pairs b) {
  const U32 x = bits_of<U32>(a), y = bits_of<U32>(b);
  sum = fmadd(bits_of<__m512>(x & 0xffff0000u), bits_of<__m512>(y & 0xffff0000u), sum);
  return fmadd(bits_of<__m512>(x << 16), bits_of<__m512>(y << 16), sum);
}

inline __m512i dpbusd(__m512i sum, __m512i w, __m512i x) {
  I32 total = bits_of<I32>(sum);
  for (int shift = 0; shift < 32; shift += 8)
    total += bits_of<I32>(bits_of<U32>(w) >> shift & 255u) * (bits_of<I32>(bits_of<U32>(x) << (24 - shift)) >> 24);
  return bits_of<__m512i>(total);
}

inline __m512i madd_epi16(__m512i a, __m512i b) {
  const I32 x = bits_of<I32>(a), y = bits_of<I32>(b);
  return bits_of<__m512i>((x << 16 >> 16) * (y << 16 >> 16) + (x >> 16) * (y >> 16));
}

inline __m512i maddubs_epi16(__m512i w, __m512i x) {
  __m256i half_w[2], half_x[2];
  std::memcpy(half_w, &w, 64), std::memcpy(half_x, &x, 64);
  for (int i = 0; i < 2; ++i) half_w[i] = _mm256_maddubs_epi16(half_w[i], half_x[i]);
  std::memcpy(&w, half_w, 64);
  return w;
}

inline __m512i cvtepi8_epi32(__m128i bytes) {
  int8_t from[16];
  std::memcpy(from, &bytes, 16);
  I32 to;
  for (int i = 0; i < 16; ++i) to[i] = from[i];
  return bits_of<__m512i>(to);
}
inline __m512 cvtepi32_ps(__m512i v) { return bits_of<__m512>(__builtin_convertvector(bits_of<I32>(v), F32)); }

inline __m512i maskz_permutexvar_epi16(uint32_t mask, __m512i index, __m512i v) {
  const I16 from = bits_of<I16>(v), at = bits_of<I16>(index);
  I16 to;
  for (int i = 0; i < 32; ++i) to[i] = mask >> i & 1 ? from[at[i] & 31] : 0;
  return bits_of<__m512i>(to);
}

inline __mmask16 movepi32_mask(__m512i v) {
  const I32 lanes = bits_of<I32>(v);
  __mmask16 mask = 0;
  for (int i = 0; i < 16; ++i) mask |= (lanes[i] < 0) << i;
  return mask;
}

inline __m512i mask_blend_epi32(__mmask16 mask, __m512i a, __m512i b) {
  I32 x = bits_of<I32>(a);
  const I32 y = bits_of<I32>(b);
  for (int i = 0; i < 16; ++i)
    if (mask >> i & 1) x[i] = y[i];
  return bits_of<__m512i>(x);
}

inline __m512i mul_epu32(__m512i a, __m512i b) {
  return bits_of<__m512i>((bits_of<U64>(a) & 0xffffffffu) * (bits_of<U64>(b) & 0xffffffffu));
}
inline __m512i srli_epi64(__m512i v, int bits) { return bits_of<__m512i>(bits_of<U64>(v) >> bits); }
inline __m512i set1_epi32(int x) { return bits_of<__m512i>(x - I32{}); }

inline __m256 half_of(__m512 v, int half) {
  __m256 halves[2];
  std::memcpy(halves, &v, 64);
  return halves[half];
}
inline __m512i with_upper_half(__m512i v, __m256i half) {
  std::memcpy(reinterpret_cast<char*>(&v) + 32, &half, 32);
  return v;
}
// Rounds to nearest even; numbers below the least normal one count as zero.
inline __m256i cvtneps_pbh(__m512 v) {
  const U32 bits = bits_of<U32>(v);
  uint16_t words[16];
  for (int i = 0; i < 16; ++i) {
    const uint32_t magnitude = bits[i] & 0x7fffffffu;
    const uint32_t rounded = (bits[i] + 0x7fff + (bits[i] >> 16 & 1)) >> 16;
    const uint32_t special = magnitude > 0x7f800000u ? bits[i] >> 16 | 0x40 : bits[i] >> 16 & 0x8000u;
    words[i] = static_cast<uint16_t>(magnitude > 0x7f800000u || magnitude < 0x00800000u ? special : rounded);
  }
  __m256i to;
  std::memcpy(&to, words, 32);
  return to;
}
inline __m512i widened(__m256i v) {
  __m512i wide{};
  std::memcpy(&wide, &v, 32);
  return wide;
}

// The tile registers of AMX. What the manual makes an error of (a register that has no shape, shapes that do not fit
// one another) ends the process here, too.
struct TileRegister {
  uint8_t lines[16][64];
};
struct TileState {
  struct {
    uint8_t palette, start_row, reserved[14];
    uint16_t line_bytes[16];
    uint8_t lines[16];
  } config;
  TileRegister tiles[8];
};
inline thread_local TileState tile_state{};

inline void must(bool holds) {
  if (!holds) __builtin_trap();
}
inline int tile_lines(int tile) {
  must(tile_state.config.palette == 1 && tile_state.config.lines[tile] > 0);
  return tile_state.config.lines[tile];
}
inline int tile_line_bytes(int tile) { return tile_state.config.line_bytes[tile]; }

inline void tile_loadconfig(const void* config) {
  std::memset(&tile_state, 0, sizeof(tile_state));
  std::memcpy(&tile_state.config, config, sizeof(tile_state.config));
  for (int tile = 0; tile < 8; ++tile)
    must(tile_state.config.lines[tile] <= 16 && tile_state.config.line_bytes[tile] <= 64);
}
inline void tile_release() { std::memset(&tile_state, 0, sizeof(tile_state)); }
inline void tile_zero(int tile) {
  tile_lines(tile);
  std::memset(&tile_state.tiles[tile], 0, sizeof(TileRegister));
}
inline void tile_loadd(int tile, const void* from, int64_t stride) {
  TileRegister loaded{};
  for (int line = 0; line < tile_lines(tile); ++line)
    std::memcpy(loaded.lines[line], static_cast<const char*>(from) + line * stride, tile_line_bytes(tile));
  tile_state.tiles[tile] = loaded;
}
inline void tile_stored(int tile, void* to, int64_t stride) {
  for (int line = 0; line < tile_lines(tile); ++line)
    std::memcpy(static_cast<char*>(to) + line * stride, tile_state.tiles[tile].lines[line], tile_line_bytes(tile));
}

// Numbers below the least normal one count as zero.
inline float flushed(float x) {
  const uint32_t bits = bits_of<uint32_t>(x);
  return bits & 0x7f800000u ? x : bits_of<float>(bits & 0x80000000u);
}
inline float bf16_at(const uint8_t* line, int i) {
  uint16_t half;
  std::memcpy(&half, line + 2 * i, 2);
  return flushed(bits_of<float>(static_cast<uint32_t>(half) << 16));
}

// body(row, column, sum) for each sum of a product c += a * b; `sum` is a Sum.
template <class Sum, class Body>
inline void for_each_sum(int c, int a, int b, const Body& body) {
  must(tile_lines(c) == tile_lines(a) && tile_line_bytes(a) == tile_lines(b) * 4);
  must(tile_line_bytes(c) == tile_line_bytes(b));
  for (int row = 0; row < tile_lines(c); ++row)
    for (int column = 0; column < tile_line_bytes(c) / 4; ++column) {
      uint8_t* at = tile_state.tiles[c].lines[row] + 4 * column;
      Sum sum;
      std::memcpy(&sum, at, 4);
      sum = body(tile_state.tiles[a].lines[row], column, sum);
      std::memcpy(at, &sum, 4);
    }
}

// Products of even and of odd k have a sum each, in which every addition shares a rounding with its product; both
// together are added to c.
inline void tile_dpbf16ps(int c, int a, int b) {
  for_each_sum<float>(c, a, b, [&](const uint8_t* row, int column, float sum) {
    float parity[2] = {};
    for (int line = 0; line < tile_lines(b); ++line)
      for (int odd = 0; odd < 2; ++odd)
        parity[odd] = flushed(__builtin_fmaf(bf16_at(row, 2 * line + odd),
                                             bf16_at(tile_state.tiles[b].lines[line], 2 * column + odd), parity[odd]));
    return flushed(flushed(sum) + flushed(parity[0] + parity[1]));
  });
}
inline void tile_dpbsud(int c, int a, int b) {
  for_each_sum<int32_t>(c, a, b, [&](const uint8_t* row, int column, int32_t sum) {
    for (int line = 0; line < tile_lines(b); ++line)
      for (int i = 0; i < 4; ++i)
        sum += static_cast<int8_t>(row[4 * line + i]) * tile_state.tiles[b].lines[line][4 * column + i];
    return sum;
  });
}

}  // namespace simplear_emulation

#undef _tile_loadconfig
#undef _tile_release
#undef _tile_zero
#undef _tile_loadd
#undef _tile_stored
#undef _tile_dpbf16ps
#undef _tile_dpbsud
#define _tile_loadconfig simplear_emulation::tile_loadconfig
#define _tile_release simplear_emulation::tile_release
#define _tile_zero simplear_emulation::tile_zero
#define _tile_loadd simplear_emulation::tile_loadd
#define _tile_stored simplear_emulation::tile_stored
#define _tile_dpbf16ps simplear_emulation::tile_dpbf16ps
#define _tile_dpbsud simplear_emulation::tile_dpbsud
#define _mm512_fmadd_ps simplear_emulation::fmadd
#define _mm512_dpbf16_ps simplear_emulation::dpbf16
#define _mm512_dpbusd_epi32 simplear_emulation::dpbusd
#define _mm512_madd_epi16 simplear_emulation::madd_epi16
#define _mm512_maddubs_epi16 simplear_emulation::maddubs_epi16
#define _mm512_cvtepi8_epi32 simplear_emulation::cvtepi8_epi32
#define _mm512_cvtepi32_ps simplear_emulation::cvtepi32_ps
#define _mm512_maskz_permutexvar_epi16 simplear_emulation::maskz_permutexvar_epi16
#define _mm512_movepi32_mask simplear_emulation::movepi32_mask
#define _mm512_mask_blend_epi32 simplear_emulation::mask_blend_epi32
#define _mm512_mul_epu32 simplear_emulation::mul_epu32
#define _mm512_srli_epi64 simplear_emulation::srli_epi64
#define _mm512_set1_epi32 simplear_emulation::set1_epi32
#define _mm512_castps512_ps256(v) simplear_emulation::half_of(v, 0)
#define _mm512_extractf32x8_ps(v, half) simplear_emulation::half_of(v, half)
#define _mm512_inserti64x4(v, half, place) simplear_emulation::with_upper_half(v, half)
#define _mm512_cvtneps_pbh simplear_emulation::cvtneps_pbh
#define _mm512_castsi256_si512 simplear_emulation::widened
#define _mm512_castsi512_ps(v) simplear_emulation::bits_of<__m512>(v)

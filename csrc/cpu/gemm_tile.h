// The register tile of every matrix product: MR rows of x times NV vectors of a panel's rows.
//
//   acc[r][v L + j] += sum_k x[r][k] * w[v L + j][k]          L lanes a vector
//
// Each output has one accumulator that walks k upwards, alone in its lane. So the order of additions depends on nothing
// but k: a row's result is the same bits for every row count, thread count and tile shape (contract C2).
// Panels as in panels.h. float32 weights take float32 rows. bfloat16 weights take bfloat16 rows, k in pairs; where no
// instruction multiplies such pairs, rows are widened to float32 before, once, and weights in the tile.
#pragma once

#include "cpu/panels.h"
#include "cpu/simd.h"

namespace simplear::SIMPLEAR_ISA {

#if defined(__AVX512F__)
constexpr int kMaxTileRows = 6, kMaxTileVecs = 4;  // 24 accumulators of 32 registers
constexpr int kRegisters = 32;
#elif defined(__AVX2__)
constexpr int kMaxTileRows = 5, kMaxTileVecs = 2;  // 10 of 16, weights need temporaries
constexpr int kRegisters = 16;
#else
constexpr int kMaxTileRows = 2, kMaxTileVecs = 4;  // 8 of 16
constexpr int kRegisters = 16;
#endif
constexpr int kMaxTileColumns = kMaxTileVecs * kLanes;
static_assert(kPanelRows % kMaxTileColumns == 0);

// What rows are made of that meet weights of type W.
template <class W>
struct RowTypeOf {
  using Type = float;
};
#if defined(__AVX512BF16__)
template <>
struct RowTypeOf<uint16_t> {
  using Type = uint16_t;
};
#endif
template <class W>
using RowType = typename RowTypeOf<W>::Type;

// `count` numbers of a row, as they meet weights of their own type.
inline void copy_row(const float* from, int64_t count, float* to) { std::memcpy(to, from, count * sizeof(float)); }
inline void copy_row(const uint16_t* from, int64_t count, uint16_t* to) { std::memcpy(to, from, count * sizeof(*to)); }
inline void copy_row(const uint16_t* from, int64_t count, float* to) {
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) store(to + i, load(from + i));
  for (; i < count; ++i) to[i] = bf16_to_float(from[i]);
}

// What a pass over a part of a panel asks for meanwhile: the next kLines lines at every step of k, which are 256 bytes
// of a panel whatever it holds, until it has asked for its share. They go to the second-level cache, because a core has
// few requests of the first level to spare.
template <int kLines>
struct Ahead {
  const char* line;
  int64_t num_steps;  // that ask

  inline void operator()(int64_t step) const {
    if (step >= num_steps) return;
#pragma GCC unroll 4
    for (int i = 0; i < kLines; ++i) ask_for(line + (step * kLines + i) * 64);
  }
  // The share of pass number `part` of kParts over some of the columns each: fewer lines at a step, so that memory is
  // asked at an even pace, or, of a single line, fewer steps.
  template <int kParts>
  inline auto of(int64_t part) const {
    constexpr int kPartLines = kLines < kParts ? 1 : kLines / kParts;
    const int64_t steps = num_steps * kLines / (kParts * kPartLines);
    return Ahead<kPartLines>{line + part * steps * kPartLines * 64, steps};
  }

 private:
  static inline void ask_for(const char* line) {
#if defined(__x86_64__)
    // The compiler gathers its own prefetches into bursts; volatile ones stay where they are.
    asm volatile("prefetcht2 %0" ::"m"(*line));
#else
    __builtin_prefetch(line, 0, 1);
#endif
  }
};
template <>
struct Ahead<0> {
  inline Ahead(const char* = nullptr, int64_t = 0) {}
  inline void operator()(int64_t) const {}
  template <int kParts>
  inline Ahead of(int64_t) const {
    return {};
  }
};
using NothingAhead = Ahead<0>;

#if defined(__AMX_TILE__)
constexpr int kBlockRows = 64;  // whose sums of a panel wait in the first-level cache
#else
constexpr int kBlockRows = 24;
#endif

// Columns past the end of the matrix are undefined.
using BlockSums = float[kBlockRows][kPanelRows];

// Keeps a loaded vector in its register: GCC would rather load it again for every row, and loads are what runs out.
template <class V>
inline void keep_in_register(V& v) {
#if defined(SIMPLEAR_EMULATE_AVX512) && defined(__AVX512F__)
  static_cast<void>(v);
#elif defined(__AVX512F__)
  asm volatile("" : "+v"(v));
#elif defined(__SSE2__)
  asm volatile("" : "+x"(v));
#endif
}

// sum + a * b, in one rounding. Of an intrinsic GCC 12 puts the result into whatever register suits it, and moves all
// sums of a tile about in each step of k.
inline Vec add_product(Vec sum, Vec a, Vec b) {
#if defined(__FMA__) && !defined(__AVX512F__)
  asm("vfmadd231ps %2, %1, %0" : "+x"(sum) : "x"(a), "x"(b));
  return sum;
#else
  return fma(a, b, sum);
#endif
}

template <int MR, int NV>
struct Tile {
  Vec acc[MR][NV];

  inline void clear() {
#pragma GCC unroll 32
    for (int r = 0; r < MR; ++r)
#pragma GCC unroll 32
      for (int v = 0; v < NV; ++v) acc[r][v] = Vec{};
  }

  // Sums of an earlier part of k, as store_sums() left them; row_stride: floats from one row to the next.
  inline void load_sums(const float* sums, int64_t row_stride) {
#pragma GCC unroll 32
    for (int r = 0; r < MR; ++r)
#pragma GCC unroll 32
      for (int v = 0; v < NV; ++v) acc[r][v] = load(sums + r * row_stride + v * kLanes);
  }
  inline void store_sums(float* sums, int64_t row_stride) const {
#pragma GCC unroll 32
    for (int r = 0; r < MR; ++r)
#pragma GCC unroll 32
      for (int v = 0; v < NV; ++v) store(sums + r * row_stride + v * kLanes, acc[r][v]);
  }

  // x[r]: row r, k elements; w: first of the tile's columns in the panel, at the k to begin with.
  template <class A = NothingAhead>
  inline void accumulate(const float* const (&x)[MR], const float* w, int64_t k, const A& ahead = {}) {
    Tile sums = *this;  // nobody has its address, so it can stay in registers
    for (int64_t i = 0; i < k; ++i, w += kPanelRows) {
      ahead(i);
      sums.multiply(x, i, [&](int v) { return load(w + v * kLanes); });
    }
    *this = sums;
  }

  // As above for bfloat16; k is even.
  template <class A = NothingAhead>
  inline void accumulate(const RowType<uint16_t>* const (&x)[MR], const uint16_t* w, int64_t k, const A& ahead = {}) {
    Tile sums = *this;
    for (int64_t i = 0; i < k; i += 2, w += 2 * kPanelRows) {
      ahead(i / 2);
      const auto pairs = [&](int v) { return load_as<VecU>(w + v * kLanes * 2); };
#if defined(__AVX512BF16__)
      sums.multiply_pairs(x, i, pairs);
#else
      sums.multiply(x, i, [&](int v) { return reinterpret_cast<Vec>(pairs(v) << 16); });
      sums.multiply(x, i + 1, [&](int v) { return reinterpret_cast<Vec>(pairs(v) & 0xffff0000u); });
#endif
    }
    *this = sums;
  }

 private:
  // Whether a step of k keeps its numbers of x in registers, and not its weights, because those would not fit.
  static constexpr bool kKeepsRows = MR * NV + NV + 1 > kRegisters;

  // One step of k: number i of every row times the weights of every vector. It has to be a part of its loop, or sums
  // go through memory.
  template <class Weights>
  inline __attribute__((always_inline)) void multiply(const float* const (&x)[MR], int64_t i,
                                                      const Weights& weights_of) {
    if constexpr (kKeepsRows) {
      Vec rows[MR];
#pragma GCC unroll 32
      for (int r = 0; r < MR; ++r) keep_in_register(rows[r] = splat(x[r][i]));
#pragma GCC unroll 32
      for (int v = 0; v < NV; ++v) {
        const Vec weights = weights_of(v);
#pragma GCC unroll 32
        for (int r = 0; r < MR; ++r) acc[r][v] = add_product(acc[r][v], rows[r], weights);
      }
    } else {
      Vec weights[NV];
#pragma GCC unroll 32
      for (int v = 0; v < NV; ++v) keep_in_register(weights[v] = weights_of(v));
#pragma GCC unroll 32
      for (int r = 0; r < MR; ++r) {
        Vec xr;
        keep_in_register(xr = splat(x[r][i]));
#pragma GCC unroll 32
        for (int v = 0; v < NV; ++v) acc[r][v] = add_product(acc[r][v], xr, weights[v]);
      }
    }
  }

#if defined(__AVX512BF16__)
  // Two steps of k.
  template <class Pairs>
  inline __attribute__((always_inline)) void multiply_pairs(const uint16_t* const (&x)[MR], int64_t i,
                                                            const Pairs& pairs_of) {
    VecU pairs[NV];
#pragma GCC unroll 32
    for (int v = 0; v < NV; ++v) keep_in_register(pairs[v] = pairs_of(v));
#pragma GCC unroll 32
    for (int r = 0; r < MR; ++r) {
      const VecU xr = splat_at(x[r] + i);
#pragma GCC unroll 32
      for (int v = 0; v < NV; ++v)
        acc[r][v] = _mm512_dpbf16_ps(acc[r][v], reinterpret_cast<__m512bh>(xr), reinterpret_cast<__m512bh>(pairs[v]));
    }
  }
#endif
};

inline int64_t whole_vectors(int64_t columns) { return (columns + kLanes - 1) / kLanes * kLanes; }

// Calls body.template operator()<MR, NV>(row, column) for tiles that cover rows x columns [column, end), rows innermost
// so that a tile's weights stay in cache while all rows pass. `column` is a multiple of kMaxTileColumns, `end` of
// kLanes.
template <int MR, int NV, class Body>
inline void for_each_tile_rows(int64_t row, int64_t rows, int64_t column, const Body& body) {
  for (; row + MR <= rows; row += MR) body.template operator()<MR, NV>(row, column);
  if constexpr (MR > 1) for_each_tile_rows<(MR > 4 ? 4 : MR / 2), NV>(row, rows, column, body);
}
template <int NV = kMaxTileVecs, class Body>
inline void for_each_tile(int64_t rows, int64_t column, int64_t end, const Body& body) {
  for (; column + NV * kLanes <= end; column += NV * kLanes)
    for_each_tile_rows<kMaxTileRows, NV>(0, rows, column, body);
  if constexpr (NV > 1) for_each_tile<NV / 2>(rows, column, end, body);
}

}  // namespace simplear::SIMPLEAR_ISA

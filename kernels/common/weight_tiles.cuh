// Weights as the GPU kernels read them: tiles of 8 rows by 64 bytes, each 512 bytes in one piece, row after row.
//
//   packed[row / 8][k / B][row % 8][k % B]     B = 64 float8, 32 bfloat16 or 16 float32 numbers; zeros behind the
//   matrix
//
// A warp reads a tile with one 16-byte load a thread, in the very order in which mma.m16n8k16 wants it: lane 4 g + t
// holds 16 bytes of row g, which are numbers 8 t .. 8 t + 7 of 32. Which k a tensor core calls its first does not
// matter as long as both operands agree, so no shuffle and no trip through ldmatrix is needed. Two matrices of the same
// shape can be packed by turns, 8 rows of each.
//
// float8_e4m3: the row's scale, float32 [rows up to a whole tile], follows behind all tiles. Of a tile's 64 columns,
// lane 4 g + t holds 8 t .. 8 t + 7 and then 32 + 8 t .. 32 + 8 t + 7, each four of them in the order 0, 2, 1, 3: two
// masks make a pair of bfloat16 numbers of bytes 0 and 2, or 1 and 3 (widen_float8 in csrc/cuda/ptx.h).
#pragma once

#include "kernels/common/number.cuh"

namespace simplear::SIMPLEAR_GPU {

constexpr int kTileRows = 8, kTileBytes = 512;

template <class W>
constexpr int kTileColumns = kTileBytes / kTileRows / static_cast<int>(sizeof(W));

__host__ __device__ constexpr int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

// What activations are rounded to for weights of a type.
template <class W>
struct ActivationFor {
  using Type = W;
};
template <>
struct ActivationFor<Float8> {
  using Type = uint16_t;
};
template <class W>
using Activation = typename ActivationFor<W>::Type;

// A packed matrix.
template <class W>
struct WeightTiles {
  const char* tiles;
  int num_row_tiles, num_k_tiles;

  __device__ WeightTiles(const AnyPtr& packed, int64_t num_row_tiles, int64_t k)
      : tiles(static_cast<const char*>(packed.data)),
        num_row_tiles(static_cast<int>(num_row_tiles)),
        num_k_tiles(static_cast<int>(divide_up(k, kTileColumns<W>))) {}

  // Of an output behind the last row: that of the last.
  __device__ float scale(int row) const {
    if constexpr (sizeof(W) > 1) return 1.0f;
    const float* scales = reinterpret_cast<const float*>(tiles + int64_t{num_row_tiles} * num_k_tiles * kTileBytes);
    return scales[min(row, num_row_tiles * kTileRows - 1)];
  }
};

}  // namespace simplear::SIMPLEAR_GPU

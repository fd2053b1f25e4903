// Weights as the GPU kernels read them: tiles of 8 rows by 64 bytes, each 512 bytes in one piece, row after row.
//
//   packed[row / 8][k / B][row % 8][k % B]     B = 32 bfloat16 or 16 float32 numbers; zeros where the matrix has ended
//
// A warp reads a tile with one 16-byte load a thread, in the very order in which mma.m16n8k16 wants it: lane 4 g + t
// holds numbers 8 t .. 8 t + 7 of row g. Which k a tensor core calls its first does not matter as long as both operands
// agree, so no shuffle and no trip through ldmatrix is needed. Two matrices of the same shape can be packed by turns, 8
// rows of each.
#pragma once

#include "kernels/common/number.cuh"

namespace simplear::SIMPLEAR_GPU {

constexpr int kTileRows = 8, kTileBytes = 512;

template <class W>
constexpr int kTileColumns = kTileBytes / kTileRows / static_cast<int>(sizeof(W));

__host__ __device__ constexpr int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

}  // namespace simplear::SIMPLEAR_GPU

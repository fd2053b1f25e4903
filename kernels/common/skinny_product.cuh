// Products of a few rows with a large weight matrix, bound by reading the weights once.
//
// A block of 8 warps computes all of K for a run of weight tiles. Warp s sums the s-th of 8 parts of K on tensor cores,
// and the 8 sums of an output are added in order: (((s0 + s1) + s2) + ...). Parts depend on K alone, and neither the
// number of rows nor that of blocks changes what is added when, so a row's result has the same bits alone and in a
// crowd (contract C2).
//
// Weights travel through a ring of shared memory that belongs to one thread alone: it copies 16 bytes of each tile of
// its warp, waits for its own copies, and reads them back, so the main loop has no barrier. The first kStages tiles of
// every warp are on their way before the block waits for the previous kernel.
#pragma once

#include "cuda/ptx.h"
#include "kernels/common/warp.cuh"
#include "kernels/common/weight_tiles.cuh"

namespace simplear::SIMPLEAR_GPU {

constexpr int kSlices = 8;  // parts of K, one for each warp
constexpr int kProductThreads = 32 * kSlices;

// Where rows of activations lie in shared memory: [rows][stride], zeros from K to the end of the last tile. Reading 16
// bytes a thread, 8 threads at a time, meets every bank once because a row is an odd multiple of 64 bytes.
template <class W>
__host__ __device__ constexpr int64_t activation_stride(int64_t k) {
  constexpr int64_t kSize = sizeof(Activation<W>);
  const int64_t bytes = divide_up(k, kTileColumns<W>) * kTileColumns<W> * kSize;
  return (bytes % 128 == 0 ? bytes + 64 : bytes) / kSize;
}

// The numbers of a 16-byte piece of a tile as B operands of multiply_add_bf16.
__device__ inline void widen(const uint4& w, uint32_t (&pairs)[4]) {
  pairs[0] = w.x;
  pairs[1] = w.y;
  pairs[2] = w.z;
  pairs[3] = w.w;
}
__device__ inline void widen(const uint4& w, uint32_t (&pairs)[8]) {
  widen_float8(w.x, pairs[0], pairs[1]);
  widen_float8(w.y, pairs[2], pairs[3]);
  widen_float8(w.z, pairs[4], pairs[5]);
  widen_float8(w.w, pairs[6], pairs[7]);
}

// Sums of one warp for 8 kGroups rows and 8 kColTiles outputs on tensor cores; kGroups is 1 or even.
template <class W, int kGroups, int kColTiles>
class Accumulator {
 public:
  __device__ void clear() {
#pragma unroll
    for (int m = 0; m < kMmaRows; ++m)
#pragma unroll
      for (int c = 0; c < kColTiles; ++c)
#pragma unroll
        for (int i = 0; i < 4; ++i) sums_[m][c][i] = 0.0f;
  }

  // The columns of x, at `x`, that the next tiles are multiplied with.
  __device__ void load(const uint16_t* x, int64_t stride) {
    const int g = threadIdx.x % 32 / 4, t = threadIdx.x % 4;
#pragma unroll
    for (int m = 0; m < kMmaRows; ++m)
#pragma unroll
      for (int part = 0; part < kParts; ++part) {
        const uint16_t* at = x + (16 * m + g) * stride + 32 * part + 8 * t;
        low_[m][part] = *reinterpret_cast<const uint4*>(at);
        high_[m][part] = kGroups > 1 ? *reinterpret_cast<const uint4*>(at + 8 * stride) : make_uint4(0, 0, 0, 0);
      }
  }

  __device__ void add(int column, const uint4& w) {
    uint32_t pairs[4 * kParts];
    widen(w, pairs);
#pragma unroll
    for (int m = 0; m < kMmaRows; ++m)
#pragma unroll
      for (int part = 0; part < kParts; ++part) {
        const uint4 &low = low_[m][part], &high = high_[m][part];
        const uint32_t* b = pairs + 4 * part;
        multiply_add_bf16(sums_[m][column], low.x, high.x, low.y, high.y, b[0], b[1]);
        multiply_add_bf16(sums_[m][column], low.z, high.z, low.w, high.w, b[2], b[3]);
      }
  }

  // to: [8 kGroups][8 kColTiles]
  __device__ void store(float* to) {
    const int g = threadIdx.x % 32 / 4, t = threadIdx.x % 4;
#pragma unroll
    for (int m = 0; m < kMmaRows; ++m)
#pragma unroll
      for (int c = 0; c < kColTiles; ++c) {
        float* at = to + (16 * m + g) * (8 * kColTiles) + 8 * c + 2 * t;
        *reinterpret_cast<float2*>(at) = make_float2(sums_[m][c][0], sums_[m][c][1]);
        if (kGroups > 1)
          *reinterpret_cast<float2*>(at + 8 * (8 * kColTiles)) = make_float2(sums_[m][c][2], sums_[m][c][3]);
      }
  }

 private:
  static constexpr int kMmaRows = (kGroups + 1) / 2;   // of 16
  static constexpr int kParts = kTileColumns<W> / 32;  // of a tile's columns
  float sums_[kMmaRows][kColTiles][4];
  uint4 low_[kMmaRows][kParts], high_[kMmaRows][kParts];  // rows g and g + 8 of each 16
};

// float32 weights, for comparisons rather than for speed: ordinary multiply-adds, 8 rows at a time.
template <int kColTiles>
class Accumulator<float, 1, kColTiles> {
 public:
  __device__ void clear() {
#pragma unroll
    for (int c = 0; c < kColTiles; ++c)
#pragma unroll
      for (int n = 0; n < 8; ++n) sums_[c][n] = 0.0f;
  }

  __device__ void load(const float* x, int64_t stride) {
    const int t = threadIdx.x % 4;
#pragma unroll
    for (int n = 0; n < 8; ++n) x_[n] = *reinterpret_cast<const float4*>(x + n * stride + 4 * t);
  }

  __device__ void add(int column, const uint4& w) {
    const float w0 = __uint_as_float(w.x), w1 = __uint_as_float(w.y);
    const float w2 = __uint_as_float(w.z), w3 = __uint_as_float(w.w);
#pragma unroll
    for (int n = 0; n < 8; ++n) {
      float sum = fmaf(x_[n].x, w0, sums_[column][n]);
      sum = fmaf(x_[n].y, w1, sum);
      sum = fmaf(x_[n].z, w2, sum);
      sums_[column][n] = fmaf(x_[n].w, w3, sum);
    }
  }

  __device__ void store(float* to) {
    const int g = threadIdx.x % 32 / 4, t = threadIdx.x % 4;
#pragma unroll
    for (int c = 0; c < kColTiles; ++c)
#pragma unroll
      for (int n = 0; n < 8; ++n) {
        float sum = sums_[c][n];
        sum += __shfl_xor_sync(0xffffffffu, sum, 1);
        sum += __shfl_xor_sync(0xffffffffu, sum, 2);
        if (t == n % 4) to[n * (8 * kColTiles) + 8 * c + g] = sum;
      }
  }

 private:
  float sums_[kColTiles][8];
  float4 x_[8];
};

// The weights of a block: groups of kColTiles tiles of rows, from first_group on. Tiles behind the last are read as the
// last once more, and nobody looks at what comes of it.
struct GroupRun {
  int first_group, num_groups;
};

template <class W, int kGroups, int kColTiles, int kStages>
class SkinnyProduct {
 public:
  static constexpr int kRows = 8 * kGroups, kOutputs = 8 * kColTiles;
  static constexpr int64_t kRingBytes = int64_t{kProductThreads} * kStages * 16;
  // Two by turns: while the sums of one group are used, the next is computed.
  static constexpr int64_t kSumBytes = 2 * int64_t{kSlices} * kRows * kOutputs * 4;

  __host__ __device__ static constexpr int64_t activation_bytes(int64_t k) {
    return kRows * activation_stride<W>(k) * static_cast<int64_t>(sizeof(Activation<W>));
  }
  __host__ __device__ static constexpr int64_t shared_bytes(int64_t k) {
    return kRingBytes + kSumBytes + activation_bytes(k);
  }

  __device__ SkinnyProduct(const WeightTiles<W>& weights, const GroupRun& run, char* shared)
      : weights_(weights),
        run_(run),
        ring_(reinterpret_cast<uint4*>(shared) + threadIdx.x),
        sums_(reinterpret_cast<float*>(shared + kRingBytes)),
        activations_(reinterpret_cast<Activation<W>*>(shared + kRingBytes + kSumBytes)) {
    const int slice = threadIdx.x / 32;
    first_k_ = weights.num_k_tiles * slice / kSlices;
    num_k_ = weights.num_k_tiles * (slice + 1) / kSlices - first_k_;
    next_ = Position{0, 0, 0};
#pragma unroll
    for (int stage = 0; stage < kStages - 1; ++stage) fetch(stage);
  }

  // [kRows][activation_stride]: whoever fills it calls __syncthreads() before compute().
  __device__ Activation<W>* activations() const { return activations_; }

  // Sums of the next group. After it, sum(row, output) may be called until the next but one.
  __device__ void compute(int64_t k) {
    const int64_t stride = activation_stride<W>(k);
    Accumulator<W, kGroups, kColTiles> accumulator;
    accumulator.clear();
    for (int i = 0; i < num_k_; ++i) {
      accumulator.load(activations_ + (first_k_ + i) * kTileColumns<W>, stride);
#pragma unroll
      for (int column = 0; column < kColTiles; ++column) {
        wait_for_async_copies<kStages - 2>();
        accumulator.add(column, ring_[stage_ * kProductThreads]);
        // Into the stage that the last but one tile was read from; this one's may still be on its way to a register.
        fetch(stage_ == 0 ? kStages - 1 : stage_ - 1);
        stage_ = stage_ + 1 == kStages ? 0 : stage_ + 1;
      }
    }
    turn_ = 1 - turn_;
    ++group_;
    accumulator.store(sums_ + (turn_ * kSlices + threadIdx.x / 32) * (kRows * kOutputs));
    __syncthreads();
  }

  __device__ float sum(int row, int output) const {
    const float* at = sums_ + turn_ * (kSlices * kRows * kOutputs) + row * kOutputs + output;
    float sum = at[0];
#pragma unroll
    for (int slice = 1; slice < kSlices; ++slice) sum += at[slice * (kRows * kOutputs)];
    return sizeof(W) > 1 ? sum : sum * weights_.scale((run_.first_group + group_) * kOutputs + output);
  }

 private:
  struct Position {
    int group, k, column;
  };

  // Sends for the next tile of this warp; past the last there is nothing to send for, but the count goes on.
  __device__ void fetch(int stage) {
    if (next_.group < run_.num_groups && num_k_ > 0) {
      const int wanted = (run_.first_group + next_.group) * kColTiles + next_.column;
      const int64_t row_tile = min(wanted, weights_.num_row_tiles - 1);
      copy_async_16(
          ring_ + stage * kProductThreads,
          weights_.tiles + (row_tile * weights_.num_k_tiles + first_k_ + next_.k) * kTileBytes + threadIdx.x % 32 * 16);
      if (++next_.column == kColTiles) {
        next_.column = 0;
        if (++next_.k == num_k_) {
          next_.k = 0;
          ++next_.group;
        }
      }
    }
    commit_async_copies();
  }

  const WeightTiles<W> weights_;
  const GroupRun run_;
  uint4* const ring_;
  float* const sums_;
  Activation<W>* const activations_;
  int first_k_, num_k_, stage_ = 0, turn_ = 0, group_ = -1;
  Position next_;
};

}  // namespace simplear::SIMPLEAR_GPU

// Instructions that CUDA C++ has no word for, each as a small function with the same meaning on the host.
#pragma once

#include "cuda/launch.h"

namespace simplear::SIMPLEAR_GPU {

// Programmatic dependent launch, see csrc/cuda/launch.h. The compiler moves no memory access over either.
// From here on the next kernel may begin where there is room.
__device__ inline void allow_next_kernel() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}
// Returns when the previous kernel has ended and its writes are visible.
__device__ inline void wait_for_previous_kernel() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#elif !defined(__CUDACC__)
  note_wait_for_previous_kernel();
#endif
}

// The dynamic shared memory of the block, 128-byte aligned.
__device__ inline char* dynamic_shared() {
#if defined(__CUDACC__)
  extern __shared__ __align__(128) char memory[];
  return memory;
#else
  return shared_memory_of_block();
#endif
}

// 16 bytes from global to shared memory behind the thread's back; both 16-byte aligned. Copies since the last commit
// form a group; wait_for_copies<n> returns when all groups but the n latest have arrived, for the thread that made
// them.
__device__ inline void copy_async_16(void* to, const void* from) {
#if defined(__CUDACC__)
  const uint32_t address = static_cast<uint32_t>(__cvta_generic_to_shared(to));
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(address), "l"(from) : "memory");
#else
  copy_async(to, from, 16);
#endif
}
__device__ inline void commit_async_copies() {
#if defined(__CUDACC__)
  asm volatile("cp.async.commit_group;" ::: "memory");
#else
  commit_copies();
#endif
}
template <int kGroupsLeft>
__device__ inline void wait_for_async_copies() {
#if defined(__CUDACC__)
  asm volatile("cp.async.wait_group %0;" ::"n"(kGroupsLeft) : "memory");
#else
  wait_for_copies(kGroupsLeft);
#endif
}

// c += a b on tensor cores: a [16, 16] and b [16, 8] in bfloat16, c [16, 8] in float32, spread over a warp as the PTX
// manual says under mma.m16n8k16. With g = lane / 4 and t = lane % 4, a thread holds
//   a: rows g and g + 8 of columns 2 t, 2 t + 1, then the same rows of columns 2 t + 8, 2 t + 9
//   b: column g of rows 2 t, 2 t + 1, then of rows 2 t + 8, 2 t + 9
//   c: row g of columns 2 t, 2 t + 1, then row g + 8 of the same.
// The host adds products in order of k and rounds each time; what a tensor core does in between is its own affair, but
// the same for every row.
struct MmaOperands {
  float c[4];
  uint32_t a[4], b[2];
};

#if !defined(__CUDACC__)
inline void multiply_in_warp(const char (*in)[kExchangeBytes], char (*out)[kExchangeBytes], const void*) {
  float a[16][16], b[16][8], c[16][8];
  const auto half = [](uint32_t pair, int i) { return __uint_as_float(i == 0 ? pair << 16 : pair & 0xffff0000u); };
  for (int lane = 0; lane < kWarpSize; ++lane) {
    MmaOperands own;
    std::memcpy(&own, in[lane], sizeof(own));
    const int g = lane / 4, t = lane % 4;
    for (int i = 0; i < 2; ++i) {
      a[g][2 * t + i] = half(own.a[0], i);
      a[g + 8][2 * t + i] = half(own.a[1], i);
      a[g][2 * t + 8 + i] = half(own.a[2], i);
      a[g + 8][2 * t + 8 + i] = half(own.a[3], i);
      b[2 * t + i][g] = half(own.b[0], i);
      b[2 * t + 8 + i][g] = half(own.b[1], i);
      c[g][2 * t + i] = own.c[i];
      c[g + 8][2 * t + i] = own.c[2 + i];
    }
  }
  for (int k = 0; k < 16; ++k)
    for (int m = 0; m < 16; ++m)
      for (int n = 0; n < 8; ++n) c[m][n] += a[m][k] * b[k][n];
  for (int lane = 0; lane < kWarpSize; ++lane) {
    const int g = lane / 4, t = lane % 4;
    const float own[4] = {c[g][2 * t], c[g][2 * t + 1], c[g + 8][2 * t], c[g + 8][2 * t + 1]};
    std::memcpy(out[lane], own, sizeof(own));
  }
}
#endif

__device__ inline void multiply_add_bf16(float (&c)[4], uint32_t a0, uint32_t a1, uint32_t a2, uint32_t a3, uint32_t b0,
                                         uint32_t b1) {
#if defined(__CUDACC__)
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
#else
  const MmaOperands own{{c[0], c[1], c[2], c[3]}, {a0, a1, a2, a3}, {b0, b1}};
  meet_in_warp(&own, sizeof(own), c, sizeof(c), &multiply_in_warp, nullptr, Place::current());
#endif
}

// Four float8_e4m3 numbers as bfloat16, exactly: bytes 0 and 2 of the word become the low and the high half of `even`,
// bytes 1 and 3 those of `odd`. The bits of a float8 are those of a bfloat16 whose exponent is 120 too small; numbers
// only, a NaN is read as 480.
__device__ inline uint32_t times_2_to_120(uint32_t pair) {
#if defined(__CUDACC__)
  uint32_t product;
  asm("fma.rn.bf16x2 %0, %1, %2, %3;" : "=r"(product) : "r"(pair), "r"(0x7b807b80u), "r"(0x80008000u));
  return product;
#else
  const float low = __uint_as_float(pair << 16) * 0x1p120f, high = __uint_as_float(pair & 0xffff0000u) * 0x1p120f;
  return __float_as_uint(low) >> 16 | (__float_as_uint(high) & 0xffff0000u);
#endif
}
__device__ inline void widen_float8(uint32_t word, uint32_t& even, uint32_t& odd) {
  even = times_2_to_120((word & 0x00800080u) << 8 | (word & 0x007f007fu) << 4);
  odd = times_2_to_120((word & 0x80008000u) | (word & 0x7f007f00u) >> 4);
}

// The same of four int8 numbers. Put behind the bits of 128, the lower seven of a byte say 128 + those; the sign's bit
// there makes 128 into 256, which is what is to be taken off.
__device__ inline uint32_t difference_of_bfloat16(uint32_t a, uint32_t b) {
#if defined(__CUDACC__)
  uint32_t difference;
  asm("fma.rn.bf16x2 %0, %1, %2, %3;" : "=r"(difference) : "r"(a), "r"(0x3f803f80u), "r"(b ^ 0x80008000u));
  return difference;
#else
  const float low = __uint_as_float(a << 16) - __uint_as_float(b << 16);
  const float high = __uint_as_float(a & 0xffff0000u) - __uint_as_float(b & 0xffff0000u);
  return __float_as_uint(low) >> 16 | (__float_as_uint(high) & 0xffff0000u);
#endif
}
__device__ inline void widen_int8(uint32_t word, uint32_t& even, uint32_t& odd) {
  const auto widen = [](uint32_t bytes) {
    return difference_of_bfloat16((bytes & 0x007f007fu) | 0x43004300u, (bytes & 0x00800080u) | 0x43004300u);
  };
  even = widen(word);
  odd = widen(word >> 8);
}

// Four matrices of 8 x 8 numbers of 16 bits out of shared memory, each transposed: row i % 8 of matrix i / 8 is the 16
// bytes that lane i points to, and of matrix m lane 4 g + t gets column g of rows 2 t and 2 t + 1.
__device__ inline void load_transposed(uint32_t (&to)[4], const void* row) {
#if defined(__CUDACC__)
  const uint32_t address = static_cast<uint32_t>(__cvta_generic_to_shared(row));
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
               : "r"(address)
               : "memory");
#else
  meet_in_warp(
      &row, sizeof(row), to, sizeof(to),
      [](const char (*in)[kExchangeBytes], char (*out)[kExchangeBytes], const void*) {
        uint16_t matrices[32][8];
        for (int lane = 0; lane < kWarpSize; ++lane) {
          const void* from;
          std::memcpy(&from, in[lane], sizeof(from));
          std::memcpy(matrices[lane], from, 16);
        }
        for (int lane = 0; lane < kWarpSize; ++lane) {
          const int g = lane / 4, t = lane % 4;
          uint32_t own[4];
          for (int m = 0; m < 4; ++m)
            own[m] = matrices[8 * m + 2 * t][g] | uint32_t{matrices[8 * m + 2 * t + 1][g]} << 16;
          std::memcpy(out[lane], own, sizeof(own));
        }
      },
      nullptr, Place::current());
#endif
}

}  // namespace simplear::SIMPLEAR_GPU

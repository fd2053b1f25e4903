// The part of CUDA C++ that the kernels use, for an ordinary C++ compiler.
//
// What threads do together (barriers, shuffles, votes) is the scheduler's business (grid.cc); the rest are plain
// functions. Everything lives in simplear::simt, where the kernels are when they are compiled for the host.
#pragma once

#include <math.h>

#include <algorithm>
#include <bit>
#include <cstdint>
#include <cstring>
#include <source_location>
#include <type_traits>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)

namespace simplear::simt {

using std::max;
using std::min;

struct uint3 {
  uint32_t x, y, z;
};
struct dim3 {
  uint32_t x = 1, y = 1, z = 1;
  constexpr dim3(uint32_t x = 1, uint32_t y = 1, uint32_t z = 1) : x(x), y(y), z(z) {}
};
struct alignas(8) uint2 {
  uint32_t x, y;
};
struct alignas(16) uint4 {
  uint32_t x, y, z, w;
};
struct alignas(8) float2 {
  float x, y;
};
struct alignas(16) float4 {
  float x, y, z, w;
};
inline uint2 make_uint2(uint32_t x, uint32_t y) { return {x, y}; }
inline uint4 make_uint4(uint32_t x, uint32_t y, uint32_t z, uint32_t w) { return {x, y, z, w}; }
inline float2 make_float2(float x, float y) { return {x, y}; }
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }

// Those of the thread that runs now.
extern uint3 threadIdx, blockIdx;
extern dim3 blockDim, gridDim;

using Place = std::source_location;

// All 32 threads of a warp hand in `in_bytes` each; when the last has come, `together` computes what each gets back.
// in and out: one row of kExchangeBytes for each thread.
constexpr int kWarpSize = 32, kExchangeBytes = 64;
using Together = void (*)(const char (*in)[kExchangeBytes], char (*out)[kExchangeBytes], const void* context);
void meet_in_warp(const void* in, size_t in_bytes, void* out, size_t out_bytes, Together together, const void* context,
                  const Place& place);
void meet_in_block(const Place& place);
[[noreturn]] void fail_in_kernel(const char* what, const Place& place);
// The dynamic shared memory of the block.
char* shared_memory_of_block();
// griddepcontrol.wait: every thread has to come by, or the kernel after the next one could overtake this one's
// predecessor.
void note_wait_for_previous_kernel();

// cp.async: a copy happens when somebody waits for it and not before, so that a wait that is missing shows.
void copy_async(void* to, const void* from, size_t bytes);
void commit_copies();
void wait_for_copies(int num_groups_left);

inline void __syncthreads(const Place& place = Place::current()) { meet_in_block(place); }
inline void __threadfence() {}
inline void __syncwarp(unsigned mask = 0xffffffffu, const Place& place = Place::current()) {
  if (mask != 0xffffffffu) fail_in_kernel("a warp operation of some threads only", place);
  meet_in_warp(nullptr, 0, nullptr, 0, [](auto, auto, const void*) {}, nullptr, place);
}

// from(lane): whose value a lane gets.
template <class T, class From>
T shuffle(unsigned mask, T value, const From& from, const Place& place) {
  static_assert(sizeof(T) <= kExchangeBytes);
  if (mask != 0xffffffffu) fail_in_kernel("a warp operation of some threads only", place);
  T got;
  meet_in_warp(
      &value, sizeof(T), &got, sizeof(T),
      [](const char (*in)[kExchangeBytes], char (*out)[kExchangeBytes], const void* context) {
        for (int lane = 0; lane < kWarpSize; ++lane)
          std::memcpy(out[lane], in[(*static_cast<const From*>(context))(lane)], sizeof(T));
      },
      &from, place);
  return got;
}
template <class T>
T __shfl_xor_sync(unsigned mask, T value, int bits, const Place& place = Place::current()) {
  return shuffle(mask, value, [bits](int lane) { return lane ^ bits; }, place);
}
inline unsigned __ballot_sync(unsigned mask, bool is_set, const Place& place = Place::current()) {
  if (mask != 0xffffffffu) fail_in_kernel("a warp operation of some threads only", place);
  unsigned votes;
  meet_in_warp(
      &is_set, sizeof(bool), &votes, sizeof(unsigned),
      [](const char (*in)[kExchangeBytes], char (*out)[kExchangeBytes], const void*) {
        unsigned all = 0;
        for (int lane = 0; lane < kWarpSize; ++lane) all |= static_cast<unsigned>(in[lane][0] != 0) << lane;
        for (int lane = 0; lane < kWarpSize; ++lane) std::memcpy(out[lane], &all, sizeof(all));
      },
      nullptr, place);
  return votes;
}
inline bool __any_sync(unsigned mask, bool is_set, const Place& place = Place::current()) {
  return __ballot_sync(mask, is_set, place) != 0;
}

// One thread runs at a time.
template <class T>
T atomicAdd(T* at, std::type_identity_t<T> value) {
  const T before = *at;
  *at = before + value;
  return before;
}
template <class T>
T atomicMax(T* at, std::type_identity_t<T> value) {
  const T before = *at;
  *at = std::max(before, value);
  return before;
}
template <class T>
T atomicOr(T* at, std::type_identity_t<T> value) {
  const T before = *at;
  *at = before | value;
  return before;
}

inline uint32_t __float_as_uint(float x) { return std::bit_cast<uint32_t>(x); }
inline float __uint_as_float(uint32_t x) { return std::bit_cast<float>(x); }
inline int32_t __float_as_int(float x) { return std::bit_cast<int32_t>(x); }
inline float __int_as_float(int32_t x) { return std::bit_cast<float>(x); }
inline int __ffs(int x) { return __builtin_ffs(x); }
inline uint32_t __umulhi(uint32_t a, uint32_t b) { return static_cast<uint32_t>((uint64_t{a} * b) >> 32); }

}  // namespace simplear::simt

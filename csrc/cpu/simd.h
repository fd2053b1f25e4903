// One vector type a translation unit: as wide as the instruction set that the file is being compiled for.
//
// Every file of csrc/cpu/ops is compiled once per instruction set, with SIMPLEAR_ISA naming it. Everything here lives
// in a namespace of that name, so that the linker can never hand AVX-512 code to an older processor. Standard-library
// templates are avoided in those files for the same reason.
//
// Contraction (a * b + c into one rounding) is off for the whole project; fma() below is the only fused operation, so
// that the order and the number of roundings of every reduction stand in the source.
#pragma once

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include <cstdint>
#include <cstring>

#include "core/dtype.h"
#include "core/op.h"
#include "core/thread_pool.h"

#if defined(__AMX_TILE__)
#include "cpu/amx.h"
#endif

#ifndef SIMPLEAR_ISA
#error "csrc/cpu files are compiled once per instruction set, by CMakeLists.txt"
#endif

#define SIMPLEAR_STRINGIZE_(x) #x
#define SIMPLEAR_STRINGIZE(x) SIMPLEAR_STRINGIZE_(x)
#define SIMPLEAR_CPU_OP(op, Params, fields, function) \
  SIMPLEAR_REGISTER_OP(op, SIMPLEAR_STRINGIZE(SIMPLEAR_ISA), Params, fields, function)

namespace simplear::SIMPLEAR_ISA {

#if defined(__AVX512F__)
constexpr int kLanes = 16;
#elif defined(__AVX2__)
constexpr int kLanes = 8;
#else
constexpr int kLanes = 4;
#endif

// GCC/Clang vector types: + - * / < and ?: work lane by lane.
typedef float Vec __attribute__((vector_size(kLanes * 4)));
typedef int32_t VecI __attribute__((vector_size(kLanes * 4)));
typedef uint32_t VecU __attribute__((vector_size(kLanes * 4)));
typedef uint16_t VecH __attribute__((vector_size(kLanes * 2)));
typedef int8_t VecB __attribute__((vector_size(kLanes)));

inline Vec splat(float x) { return x - Vec{}; }
inline VecI splat(int32_t x) { return x - VecI{}; }
inline VecU splat(uint32_t x) { return x - VecU{}; }

template <class V>
inline V load_as(const void* p) {
  V v;
  std::memcpy(&v, p, sizeof(V));
  return v;
}
// The four bytes at p in every lane, straight from memory where that is one instruction.
inline VecU splat_at(const void* p) {
#if defined(__AVX2__) && !defined(__AVX512F__)
  return reinterpret_cast<VecU>(_mm256_broadcast_ss(static_cast<const float*>(p)));
#else
  return splat(load_as<uint32_t>(p));
#endif
}
inline Vec load(const float* p) { return load_as<Vec>(p); }
inline void store(float* p, Vec v) { std::memcpy(p, &v, sizeof(v)); }
inline void store(uint32_t* p, VecU v) { std::memcpy(p, &v, sizeof(v)); }

inline Vec fma(Vec a, Vec b, Vec c) {
#if defined(__AVX512F__)
  return _mm512_fmadd_ps(a, b, c);
#elif defined(__FMA__)
  return _mm256_fmadd_ps(a, b, c);
#else
  return a * b + c;
#endif
}

inline Vec max(Vec a, Vec b) { return a > b ? a : b; }
inline Vec min(Vec a, Vec b) { return a < b ? a : b; }

// bfloat16 is the upper half of a float32.
inline float bf16_to_float(uint16_t x) {
  const uint32_t bits = static_cast<uint32_t>(x) << 16;
  float f;
  std::memcpy(&f, &bits, 4);
  return f;
}
// Round to nearest even; NaN stays NaN.
inline uint16_t float_to_bf16(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, 4);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return static_cast<uint16_t>(bits >> 16 | 0x40);
  return static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}
inline Vec load(const uint16_t* bf16) {
#if defined(__AVX512BW__)
  // One permutation in place of a widening, which GCC 12 does in halves, and a shift.
  alignas(64) static constexpr uint16_t kFrom[32] = {0, 0, 0, 1, 0, 2,  0, 3,  0, 4,  0, 5,  0, 6,  0, 7,
                                                     0, 8, 0, 9, 0, 10, 0, 11, 0, 12, 0, 13, 0, 14, 0, 15};
  const __m512i halves = _mm512_castsi256_si512(load_as<__m256i>(bf16));
  return _mm512_castsi512_ps(_mm512_maskz_permutexvar_epi16(0xaaaaaaaa, load_as<__m512i>(kFrom), halves));
#elif defined(__AVX2__)
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(load_as<__m128i>(bf16)), 16));
#else
  return reinterpret_cast<Vec>(__builtin_convertvector(load_as<VecH>(bf16), VecU) << 16);
#endif
}
inline Vec load(const int8_t* p) {
#if defined(__AVX512F__)
  return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(load_as<__m128i>(p)));
#elif defined(__AVX2__)
  return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_cvtsi64_si128(load_as<int64_t>(p))));
#else
  return __builtin_convertvector(load_as<VecB>(p), Vec);
#endif
}
inline void store(uint16_t* bf16, Vec v) {
  const VecU bits = reinterpret_cast<VecU>(v);
  const VecU rounded = (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
  const VecU quiet = bits >> 16 | 0x40;
  const VecU is_nan = reinterpret_cast<VecU>((bits & 0x7fffffffu) > splat(0x7f800000u));
  const VecH half = __builtin_convertvector(is_nan != 0 ? quiet : rounded, VecH);
  std::memcpy(bf16, &half, sizeof(half));
}
inline float to_float(float x) { return x; }
inline float to_float(uint16_t bf16) { return bf16_to_float(bf16); }
inline void store_one(float* p, float x) { *p = x; }
inline void store_one(uint16_t* p, float x) { *p = float_to_bf16(x); }

// A balanced tree over the lanes: first each of the lower half with its partner in the upper half, and so on. In
// registers, because a detour through memory takes longer than the tree itself.
template <class Combine>
inline float reduce(Vec v, const Combine& combine) {
#if defined(__x86_64__)
#if defined(__AVX512F__)
  const __m256 eight = combine(_mm512_castps512_ps256(v), _mm512_extractf32x8_ps(v, 1));
#elif defined(__AVX2__)
  const __m256 eight = v;
#endif
#if defined(__AVX2__)
  const __m128 four = combine(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
#else
  const __m128 four = v;
#endif
  const __m128 two = combine(four, _mm_movehl_ps(four, four));
  return combine(two, _mm_shuffle_ps(two, two, 1))[0];
#else
  float lanes[kLanes];
  store(lanes, v);
  for (int width = kLanes / 2; width > 0; width /= 2)
    for (int i = 0; i < width; ++i) lanes[i] = combine(lanes[i], lanes[i + width]);
  return lanes[0];
#endif
}
inline float reduce_add(Vec v) {
  return reduce(v, [](auto a, auto b) { return a + b; });
}
inline float reduce_max(Vec v) {
  return reduce(v, [](auto a, auto b) { return a > b ? a : b; });
}

// Whether any lane of a comparison holds.
inline bool any(VecI mask) {
#if defined(__AVX512F__)
  return _mm512_movepi32_mask(reinterpret_cast<__m512i>(mask)) != 0;
#elif defined(__AVX2__)
  return _mm256_movemask_ps(reinterpret_cast<__m256>(mask)) != 0;
#else
  int32_t all = 0;
  for (int lane = 0; lane < kLanes; ++lane) all |= mask[lane];
  return all != 0;
#endif
}

// exp(x), relative error below 2e-7 on [-87, 88]; 0 below -87.3, saturates above 88. NaN stays NaN.
// Range reduction by ln 2 in two parts (Cody & Waite), degree-6 minimax polynomial (coefficients as in Cephes expf).
inline Vec exp(Vec x) {
  const Vec clamped = max(min(x, splat(88.0f)), splat(-88.0f));
  const Vec shifted = clamped * 1.44269504f + 12582912.0f;  // the low mantissa bits now hold round(x / ln 2)
  const VecI n = reinterpret_cast<VecI>(shifted) - 0x4b400000;
  const Vec nf = shifted - 12582912.0f;
  Vec r = fma(nf, splat(-0.693359375f), clamped);
  r = fma(nf, splat(2.12194440e-4f), r);
  Vec p = splat(1.9875691500e-4f);
  p = fma(p, r, splat(1.3981999507e-3f));
  p = fma(p, r, splat(8.3334519073e-3f));
  p = fma(p, r, splat(4.1665795894e-2f));
  p = fma(p, r, splat(1.6666665459e-1f));
  p = fma(p, r, splat(5.0000001201e-1f));
  p = fma(p, r * r, r) + 1.0f;
  const Vec scale = reinterpret_cast<Vec>((n + 127) << 23);
  const Vec y = x < -87.3f ? splat(0.0f) : p * scale;
  return x == x ? y : x;
}

// [begin, end) of `thread` when `items` are dealt out in contiguous, near-equal parts.
struct Range {
  int64_t begin, end;
};
inline Range part_of(int64_t items, int thread, int num_threads) {
  return {items * thread / num_threads, items * (thread + 1) / num_threads};
}

// How many items of `elements` each are worth handing to another thread: some 0.7 us of simple arithmetic. A thread
// that waits for work answers within 0.1 us; on busy cores every barrier may cost a time slice, but a step has many
// anyway.
inline int64_t grain_of(int64_t elements) {
  constexpr int64_t kGrainElements = 4096;
  return elements < 1 ? kGrainElements : elements < kGrainElements ? kGrainElements / elements : 1;
}

// body(begin, end, thread) on every thread of the pool, or in the caller alone where there is less than a grain of
// items for each of two threads.
template <class Body>
inline void parallel_for(ThreadPool& pool, int64_t items, int64_t grain, const Body& body) {
  struct Context {
    const Body* body;
    int64_t items;
  } context{&body, items};
  if (items < 2 * grain) {
    if (items > 0) body(int64_t{0}, items, 0);
    return;
  }
  pool.run(
      [](void* opaque, int thread, int num_threads) {
        const Context& c = *static_cast<const Context*>(opaque);
        const Range range = part_of(c.items, thread, num_threads);
        if (range.begin < range.end) (*c.body)(range.begin, range.end, thread);
      },
      &context);
}

template <class Body>
inline void parallel_for(ThreadPool& pool, int64_t items, const Body& body) {
  parallel_for(pool, items, 1, body);
}

// What each thread does when it is through with an op.
#if defined(__AMX_TILE__)
constexpr ThreadPool::LeaveFunction kLeaveOp = release_tiles;
#else
constexpr ThreadPool::LeaveFunction kLeaveOp = nullptr;
#endif

// As parallel_for, for items that take long: threads share them, so `body` may be called several times in a thread.
template <class Body>
inline void shared_for(ThreadPool& pool, int64_t items, int64_t grain, const Body& body) {
  pool.share(
      items, grain,
      [](void* opaque, int64_t begin, int64_t end, int thread) {
        (*static_cast<const Body*>(opaque))(begin, end, thread);
      },
      const_cast<Body*>(&body), kLeaveOp);
}

}  // namespace simplear::SIMPLEAR_ISA

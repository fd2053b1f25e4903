// The bare cost of streaming the weights of a decode step, with the arithmetic that two sequences need and nothing else.
//
// A step multiplies every matrix with two activation rows, y[r][n] = sum_k w[n][k] * x[r][k], reading each weight once:
//   bf16   vdpbf16ps; with AVX2 vfmadd on widened numbers
//   int8   vpdpbusd on activations quantised to unsigned bytes, one float scale an output; with AVX2 vpmaddwd
//   int4   vpdpbusd on unpacked nibbles of groups of 32 with a float16 scale each, zero point 8; with AVX2 vpmaddubsw
// Weights lie packed in tiles of 16 outputs on 2 MiB pages, threads split the tiles of a matrix, and all of them meet
// after each matrix, as the next one would need its result. No attention, norms, quantising of activations or sampling.
// Needs AVX-512 with BF16 and VNNI, or AVX2. Built and driven by floor.py:
//   cc -O3 -march=native -fopenmp -shared -fPIC floor.c -o libfloor.so

#include <immintrin.h>
#include <omp.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>

enum { kBf16, kInt8, kInt4 };
enum { kTile = 16, kGroup = 32, kMaxColumns = 8192, kMaxRows = 1 << 18, kHugePage = 2 << 20 };
#if defined(__AMX_TILE__)
enum { kPrefetchBytes = 8192 };  // the fastest of 2, 4 and 8 KB on a Xeon that has AMX (which the floor does not use)
#else
enum { kPrefetchBytes = 2048 };
#endif

struct Matrix {
  int32_t rows;     // a multiple of 16
  int32_t columns;  // a multiple of 64, at most kMaxColumns
};

static struct {
  int format, num_matrices, num_threads;
  const struct Matrix* matrices;
  char* weights;
  size_t bytes;
} model;

static float y[2][kMaxRows];
static uint16_t x_bf16[2][kMaxColumns];
static uint8_t x_u8[2][kMaxColumns];                 // for int8
static int8_t x_s8[2][kMaxColumns];                  // for int4
static int32_t minus_zero[2][kMaxColumns / kGroup];  // -8 * the sum of x_s8 over each group

static size_t tile_bytes(int format, int columns) {
  if (format == kBf16) return (size_t)kTile * 2 * columns;
  if (format == kInt8) return (size_t)kTile * columns + kTile * sizeof(float);
  return (size_t)kTile * columns / 2 + (size_t)columns / kGroup * kTile * 2;
}

static inline int32_t four_bytes(const void* x) {
  int32_t value;
  memcpy(&value, x, 4);
  return value;
}

static inline void prefetch(const char* w) { _mm_prefetch(w + kPrefetchBytes, _MM_HINT_T0); }

// Tiles, multiplied below for either instruction set:
//   bf16   [columns / 2][16 outputs][2 columns]
//   int8   16 float scales, then [columns / 4][16 outputs][4 columns] signed bytes
//   int4   for each two groups, 2 x 256 bytes of nibbles and then 2 x 16 float16 scales. Byte [j][output][i] of a group
//          has column 8 j + i in its low half and column 8 j + 4 + i in its high half
#if defined(__AVX512BF16__) && defined(__AVX512VNNI__)
static void prepare(void) {}

static inline __m512i spread(const void* x) { return _mm512_set1_epi32(four_bytes(x)); }

static void multiply_bf16(const char* w, int columns, int tile) {
  __m512 sum[2][2] = {{_mm512_setzero_ps(), _mm512_setzero_ps()}, {_mm512_setzero_ps(), _mm512_setzero_ps()}};
  for (int k = 0; k < columns; k += 4, w += 128) {
    for (int half = 0; half < 2; half++) {
      prefetch(w + 64 * half);
      const __m512bh weights = (__m512bh)_mm512_load_si512(w + 64 * half);
      for (int row = 0; row < 2; row++)
        sum[row][half] =
            _mm512_dpbf16_ps(sum[row][half], weights, (__m512bh)spread(&x_bf16[row][k + 2 * half]));
    }
  }
  for (int row = 0; row < 2; row++) _mm512_storeu_ps(&y[row][kTile * tile], _mm512_add_ps(sum[row][0], sum[row][1]));
}

static void multiply_int8(const char* w, int columns, int tile) {
  const __m512 scale = _mm512_load_ps(w);
  __m512i sum[2][2] = {{_mm512_setzero_si512(), _mm512_setzero_si512()},
                       {_mm512_setzero_si512(), _mm512_setzero_si512()}};
  w += kTile * sizeof(float);
  for (int k = 0; k < columns; k += 8, w += 128) {
    for (int half = 0; half < 2; half++) {
      prefetch(w + 64 * half);
      const __m512i weights = _mm512_load_si512(w + 64 * half);
      for (int row = 0; row < 2; row++)
        sum[row][half] = _mm512_dpbusd_epi32(sum[row][half], spread(&x_u8[row][k + 4 * half]), weights);
    }
  }
  for (int row = 0; row < 2; row++) {
    const __m512i total = _mm512_add_epi32(sum[row][0], sum[row][1]);
    _mm512_storeu_ps(&y[row][kTile * tile], _mm512_mul_ps(scale, _mm512_cvtepi32_ps(total)));
  }
}

static void multiply_int4(const char* w, int columns, int tile) {
  const __m512i low = _mm512_set1_epi8(15);
  __m512 result[2] = {_mm512_setzero_ps(), _mm512_setzero_ps()};
  for (int k = 0; k < columns; k += 2 * kGroup, w += 576) {
    prefetch(w + 512);
    for (int group = 0; group < 2; group++) {
      const int first = k + kGroup * group;
      __m512i sum[2];
      for (int row = 0; row < 2; row++) sum[row] = _mm512_set1_epi32(minus_zero[row][first / kGroup]);
      for (int j = 0; j < 4; j++) {
        const char* p = w + 256 * group + 64 * j;
        prefetch(p);
        const __m512i packed = _mm512_load_si512(p);
        const __m512i even = _mm512_and_si512(packed, low);
        const __m512i odd = _mm512_and_si512(_mm512_srli_epi16(packed, 4), low);
        for (int row = 0; row < 2; row++) {
          sum[row] = _mm512_dpbusd_epi32(sum[row], even, spread(&x_s8[row][first + 8 * j]));
          sum[row] = _mm512_dpbusd_epi32(sum[row], odd, spread(&x_s8[row][first + 8 * j + 4]));
        }
      }
      const __m512 scale = _mm512_cvtph_ps(_mm256_load_si256((const __m256i*)(w + 512 + 32 * group)));
      for (int row = 0; row < 2; row++)
        result[row] = _mm512_fmadd_ps(scale, _mm512_cvtepi32_ps(sum[row]), result[row]);
    }
  }
  for (int row = 0; row < 2; row++) _mm512_storeu_ps(&y[row][kTile * tile], result[row]);
}

#elif defined(__AVX2__) && defined(__FMA__) && defined(__F16C__)
static float x_f32[2][kMaxColumns];     // x_bf16
static int16_t x_wide[2][kMaxColumns];  // x_u8, each four in the order 0, 2, 1, 3

// The other forms of x.
static void prepare(void) {
  for (int row = 0; row < 2; row++) {
    for (int k = 0; k < kMaxColumns; k++) {
      const uint32_t bits = (uint32_t)x_bf16[row][k] << 16;
      memcpy(&x_f32[row][k], &bits, 4);
      x_wide[row][k] = x_u8[row][k / 4 * 4 + (k % 4 == 1 ? 2 : k % 4 == 2 ? 1 : k % 4)];
    }
  }
}

static inline __m256i spread(const void* x) { return _mm256_set1_epi32(four_bytes(x)); }

static void multiply_bf16(const char* w, int columns, int tile) {
  const __m256i high = _mm256_set1_epi32((int)0xffff0000u);
  __m256 sum[2][2][2];  // of columns that are even or odd
  memset(sum, 0, sizeof(sum));
  for (int k = 0; k < columns; k += 2, w += 64) {
    prefetch(w);
    for (int half = 0; half < 2; half++) {
      const __m256i weights = _mm256_load_si256((const __m256i*)(w + 32 * half));
      const __m256 even = _mm256_castsi256_ps(_mm256_slli_epi32(weights, 16));
      const __m256 odd = _mm256_castsi256_ps(_mm256_and_si256(weights, high));
      for (int row = 0; row < 2; row++) {
        sum[row][half][0] = _mm256_fmadd_ps(even, _mm256_set1_ps(x_f32[row][k]), sum[row][half][0]);
        sum[row][half][1] = _mm256_fmadd_ps(odd, _mm256_set1_ps(x_f32[row][k + 1]), sum[row][half][1]);
      }
    }
  }
  for (int row = 0; row < 2; row++)
    for (int half = 0; half < 2; half++)
      _mm256_storeu_ps(&y[row][kTile * tile + 8 * half], _mm256_add_ps(sum[row][half][0], sum[row][half][1]));
}

static void multiply_int8(const char* w, int columns, int tile) {
  const float* scales = (const float*)w;
  __m256i sum[2][2][2];
  memset(sum, 0, sizeof(sum));
  w += kTile * sizeof(float);
  for (int k = 0; k < columns; k += 4, w += 64) {
    prefetch(w);
    for (int half = 0; half < 2; half++) {
      const __m256i weights = _mm256_load_si256((const __m256i*)(w + 32 * half));
      const __m256i even = _mm256_srai_epi16(_mm256_slli_epi16(weights, 8), 8), odd = _mm256_srai_epi16(weights, 8);
      for (int row = 0; row < 2; row++) {
        sum[row][half][0] = _mm256_add_epi32(sum[row][half][0], _mm256_madd_epi16(even, spread(&x_wide[row][k])));
        sum[row][half][1] = _mm256_add_epi32(sum[row][half][1], _mm256_madd_epi16(odd, spread(&x_wide[row][k + 2])));
      }
    }
  }
  for (int row = 0; row < 2; row++) {
    for (int half = 0; half < 2; half++) {
      const __m256 total = _mm256_cvtepi32_ps(_mm256_add_epi32(sum[row][half][0], sum[row][half][1]));
      _mm256_storeu_ps(&y[row][kTile * tile + 8 * half], _mm256_mul_ps(_mm256_loadu_ps(scales + 8 * half), total));
    }
  }
}

static void multiply_int4(const char* w, int columns, int tile) {
  const __m256i low = _mm256_set1_epi8(15), ones = _mm256_set1_epi16(1);
  __m256 result[2][2];
  memset(result, 0, sizeof(result));
  for (int k = 0; k < columns; k += 2 * kGroup, w += 576) {
    prefetch(w + 512);
    for (int group = 0; group < 2; group++) {
      const int first = k + kGroup * group;
      __m256i sum[2][2];  // in 16 bits: at most 16 products of 15 x 127
      memset(sum, 0, sizeof(sum));
      for (int j = 0; j < 4; j++) {
        const char* p = w + 256 * group + 64 * j;
        prefetch(p);
        for (int half = 0; half < 2; half++) {
          const __m256i packed = _mm256_load_si256((const __m256i*)(p + 32 * half));
          const __m256i even = _mm256_and_si256(packed, low);
          const __m256i odd = _mm256_and_si256(_mm256_srli_epi16(packed, 4), low);
          for (int row = 0; row < 2; row++) {
            const __m256i a = _mm256_maddubs_epi16(even, spread(&x_s8[row][first + 8 * j]));
            const __m256i b = _mm256_maddubs_epi16(odd, spread(&x_s8[row][first + 8 * j + 4]));
            sum[row][half] = _mm256_add_epi16(_mm256_add_epi16(sum[row][half], a), b);
          }
        }
      }
      for (int half = 0; half < 2; half++) {
        const __m256 scale = _mm256_cvtph_ps(_mm_load_si128((const __m128i*)(w + 512 + 32 * group + 16 * half)));
        for (int row = 0; row < 2; row++) {
          const __m256i zero = _mm256_set1_epi32(minus_zero[row][first / kGroup]);
          const __m256i total = _mm256_add_epi32(_mm256_madd_epi16(sum[row][half], ones), zero);
          result[row][half] = _mm256_fmadd_ps(scale, _mm256_cvtepi32_ps(total), result[row][half]);
        }
      }
    }
  }
  for (int row = 0; row < 2; row++)
    for (int half = 0; half < 2; half++) _mm256_storeu_ps(&y[row][kTile * tile + 8 * half], result[row][half]);
}
#else
#error "neither AVX-512 with BF16 and VNNI nor AVX2"
#endif

static void multiply(const char* w, const struct Matrix* matrix, int first_tile, int end_tile) {
  const size_t bytes = tile_bytes(model.format, matrix->columns);
  for (int tile = first_tile; tile < end_tile; tile++) {
    if (model.format == kBf16) multiply_bf16(w + bytes * tile, matrix->columns, tile);
    if (model.format == kInt8) multiply_int8(w + bytes * tile, matrix->columns, tile);
    if (model.format == kInt4) multiply_int4(w + bytes * tile, matrix->columns, tile);
  }
}

static float from_bf16(uint16_t bits) {
  const uint32_t wide = (uint32_t)bits << 16;
  float value;
  memcpy(&value, &wide, 4);
  return value;
}

// y[row][output] of a matrix, the slow way.
static double reference(const char* w, int columns, int output, int row) {
  const int tile = output / kTile, lane = output % kTile;
  w += tile_bytes(model.format, columns) * tile;
  double sum = 0;
  for (int k = 0; k < columns; k++) {
    if (model.format == kBf16) {
      sum += (double)from_bf16(((const uint16_t*)w)[k / 2 * 32 + 2 * lane + k % 2]) * from_bf16(x_bf16[row][k]);
    } else if (model.format == kInt8) {
      sum += ((const float*)w)[lane] * ((const int8_t*)w)[64 + k / 4 * 64 + 4 * lane + k % 4] * x_u8[row][k];
    } else {
      const char* pair = w + (size_t)k / 64 * 576;
      const int group = k % 64 / 32, i = k % 32;
      const uint8_t byte = pair[256 * group + i / 8 * 64 + 4 * lane + i % 4];
      const int weight = (i % 8 < 4 ? byte & 15 : byte >> 4) - 8;
      sum += (double)_cvtsh_ss(((const uint16_t*)(pair + 512))[kTile * group + lane]) * weight * x_s8[row][k];
    }
  }
  return sum;
}

// Bytes that are finite small numbers in each format.
static void fill(char* w, const struct Matrix* matrix, uint32_t* state) {
  const size_t bytes = tile_bytes(model.format, matrix->columns);
  for (int tile = 0; tile < matrix->rows / kTile; tile++, w += bytes) {
    for (size_t i = 0; i < bytes; i += 4) {
      uint32_t bits = *state = *state * 1664525u + 1013904223u;
      bits ^= bits >> 15;
      const int is_scale = model.format == kInt4 && i % 576 >= 512;
      // bf16: two numbers of magnitude 2^-8 to 2^-5; float16 scales: about 2^-7.
      if (model.format == kBf16) bits = (bits & 0x81ff81ffu) | 0x3b803b80u;
      if (is_scale) bits = (bits & 0x00ff00ffu) | 0x20002000u;
      memcpy(w + i, &bits, 4);
    }
    if (model.format == kInt8)
      for (int lane = 0; lane < kTile; lane++) ((float*)w)[lane] = (float)(1 + lane) / 4096;
  }
}

// Makes the weights of a format and checks some outputs of every matrix. Returns the bytes of all weights, 0 where a
// product is wrong, -1 where there is no memory. `matrices` stays the caller's and has to live on.
int64_t floor_open(int format, const struct Matrix* matrices, int num_matrices, int num_threads) {
  model.format = format, model.matrices = matrices, model.num_matrices = num_matrices;
  model.num_threads = num_threads, model.bytes = 0;
  for (int i = 0; i < num_matrices; i++)
    model.bytes += tile_bytes(format, matrices[i].columns) * (matrices[i].rows / kTile);
  char* memory = mmap(0, model.bytes + 2 * kHugePage, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (memory == MAP_FAILED) return -1;
  model.weights = (char*)(((uintptr_t)memory + kHugePage - 1) & ~(uintptr_t)(kHugePage - 1));
  madvise(model.weights, model.bytes + kHugePage, MADV_HUGEPAGE);

  for (int row = 0; row < 2; row++) {
    for (int k = 0; k < kMaxColumns; k++) {
      x_bf16[row][k] = 0x3f00 + (37 * k + 11 * row) % 128;
      x_u8[row][k] = (29 * k + 101 * row) % 256;
      x_s8[row][k] = (29 * k + 101 * row) % 255 - 127;
      if (k % kGroup == 0) minus_zero[row][k / kGroup] = 0;
      minus_zero[row][k / kGroup] -= 8 * x_s8[row][k];
    }
  }
  prepare();
  uint32_t state = 1;
  char* w = model.weights;
  for (int i = 0; i < num_matrices; i++) {
    const struct Matrix* matrix = &matrices[i];
    const int tiles = matrix->rows / kTile;
    fill(w, matrix, &state);
    multiply(w, matrix, 0, tiles);
    for (int output = 0; output < matrix->rows; output += matrix->rows / 7) {
      for (int row = 0; row < 2; row++) {
        const double expected = reference(w, matrix->columns, output, row);
        const double scale = 1e-3 * (1 + (expected < 0 ? -expected : expected));
        if (!(y[row][output] - expected < scale && expected - y[row][output] < scale)) return 0;
      }
    }
    w += tile_bytes(format, matrix->columns) * tiles;
  }
  return (int64_t)model.bytes;
}

static double now_ms(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return 1e3 * t.tv_sec + 1e-6 * t.tv_nsec;
}

// Takes `num_steps` steps; ms[i] is what the i-th took.
void floor_run(int num_steps, double* ms) {
#pragma omp parallel num_threads(model.num_threads)
  {
    const int thread = omp_get_thread_num();
    for (int step = 0; step < num_steps; step++) {
      const double start = now_ms();
      const char* w = model.weights;
      for (int i = 0; i < model.num_matrices; i++) {
        const int tiles = model.matrices[i].rows / kTile;
        multiply(w, &model.matrices[i], tiles * thread / model.num_threads, tiles * (thread + 1) / model.num_threads);
        w += tile_bytes(model.format, model.matrices[i].columns) * tiles;
#pragma omp barrier
      }
      if (thread == 0) ms[step] = now_ms() - start;
    }
  }
}

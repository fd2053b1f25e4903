// A chunk of attention with AMX, for a cache of bfloat16 or int8 and all heads of an item at once.
//
// Queries and weights are float32, which tiles do not multiply: each is split into a bfloat16 and what that leaves,
// rounded to one, too (2^-17 of it are lost). Both are lines of the same tile, so eight heads fill it. Keys and values
// pass through the vector unit once, which puts neighbours in k side by side, for all rows of a draft window.
#pragma once

#if defined(__AMX_TILE__)
#include "cpu/amx.h"
#include "cpu/attention_chunk.h"

namespace simplear::SIMPLEAR_ISA {

constexpr int64_t kHeadsOfTile = kTileRows / 2;                         // each with both of its parts
constexpr int kPairBlocks = 2, kPairKeys = kPairBlocks * kKvBlockSize;  // that a product of weights and values sums
constexpr int64_t kColumnsAtOnce = 4 * kTileColumns;                    // of sums of values
constexpr int64_t kTileLine = 64;                                       // bytes
constexpr int64_t kTileBytes = kTileRows * kTileLine;
static_assert(kKvBlockSize == kTileColumns && kPairKeys == kTileDepth && kChunkBlocks % kPairBlocks == 0);

// As store() of bfloat16 rounds, in one instruction; numbers below the least normal one become zero.
inline __m256i to_words(Vec x) { return reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(x)); }

// 16 lanes of the lower half beside 16 of the upper one.
inline __m512i interleave(__m512i halves) {
  alignas(64) static constexpr uint16_t kFrom[32] = {0, 16, 1, 17, 2,  18, 3,  19, 4,  20, 5,  21, 6,  22, 7,  23,
                                                     8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31};
  return _mm512_maskz_permutexvar_epi16(0xffffffff, load_as<__m512i>(kFrom), halves);
}

// Sixteen numbers at a beside sixteen at b, as bfloat16: a0 b0 a1 b1 ... Those of keys follow one another in memory.
inline __m512i side_by_side(const uint16_t* a, const uint16_t* b) {
  if (a + kKvBlockSize == b) return interleave(load_as<__m512i>(a));
  return interleave(_mm512_inserti64x4(_mm512_castsi256_si512(load_as<__m256i>(a)), load_as<__m256i>(b), 1));
}
// Numbers of 8 bits fit into the upper halves of floats.
inline __m512i side_by_side(const int8_t* a, const int8_t* b) {
  return reinterpret_cast<__m512i>(reinterpret_cast<VecU>(load(a)) >> 16 | reinterpret_cast<VecU>(load(b)));
}

inline void split(Vec x, uint16_t* high, uint16_t* low) {
  const __m256i rounded = to_words(x);
  std::memcpy(high, &rounded, sizeof(rounded));
  const __m256i rest = to_words(x - load(high));
  std::memcpy(low, &rest, sizeof(rest));
}

template <class T>
class TileAttention {
 public:
  static constexpr int64_t kRowsAtOnce = 16;

  // Where the result is kept in float32, vectors compute in it.
  static bool takes(const PagedAttentionParams& p) {
    return p.head_dim % kColumnsAtOnce == 0 && p.out.dtype == DType::kBFloat16;
  }

  static int64_t scratch_bytes(const PagedAttentionParams& p) {
    const int64_t tiles = (kRowsAtOnce * (p.num_heads / p.num_kv_heads) + kHeadsOfTile - 1) / kHeadsOfTile;
    return (3 * kChunkKeys + tiles * kTileRows) * p.head_dim * 2 + kTileRows * p.head_dim * 4 +
           2 * kTileRows * kChunkKeys * (4 + 2);
  }

  TileAttention(const PagedAttentionParams& params, char* scratch)
      : p(params), heads(p.num_heads / p.num_kv_heads), dim(p.head_dim) {
    keys = scratch;
    values = keys + kChunkKeys * dim * 2;
    sums = reinterpret_cast<float*>(values + 2 * kChunkKeys * dim * 2);
    scores = sums + kTileRows * dim;
    weights = reinterpret_cast<uint16_t*>(scores + 2 * kTileRows * kChunkKeys);
    queries = weights + 2 * kTileRows * kChunkKeys;
  }

  // Splits an item's queries, scaled.
  void start(const Item& next) {
    item = next;
    units = item.num_rows * heads;
    tiles = (units + kHeadsOfTile - 1) / kHeadsOfTile, most = (units + tiles - 1) / tiles;
    is_streamed = tiles == 1 && dim == kColumnsAtOnce;
    for (int64_t tile = 0; tile < tiles; ++tile)
      for (int64_t i = 0; i < most; ++i) {
        const int64_t unit = first_unit(tile) + i, row = item.row + unit / heads;
        const float* q = p.q + (row * p.num_heads + item.group * heads + unit % heads) * dim;
        uint16_t* high = queries + (2 * most * tile + i) * dim;
        for (int64_t d = 0; d < dim; d += kLanes)
          split(load(q + d) * (p.scale * kLog2E), high + d, high + most * dim + d);
      }
  }

  // What a chunk comes to for every head of every row that has keys in it. done(chunk), when it is there: some time
  // later, in the order in which chunks were given, and by the end of finish().
  template <class Done>
  void attend(int64_t chunk, const Chunk<T>& c, const Partial& out, const Done& done) {
    if (later_values_are_finite(chunk, c)) return give(chunk, c, out, done);
    // A value that is no number is not kept out of the rows before it by a weight of zero: row by row.
    finish(done);
    const Item all = item;
    const auto nothing = [](int64_t) {};
    for (int64_t r = 0; r < all.num_rows; ++r) {
      if (all.num_keys_of_row(r) <= chunk * kChunkKeys) continue;
      start(all.single(r));
      give(chunk, c, {out.rows + r * heads * out.stride(), out.padded}, nothing);
      finish(nothing);
    }
    start(all);
    done(chunk);
  }

  template <class Done>
  void finish(const Done& done) {
    for (int stage = 1; stage < kStages; ++stage) advance({}, done);
  }

  void leave() { release_tiles(); }

 private:
  // A tile's part of a chunk. Its stages are scores, weights, sums, and their way out.
  static constexpr int kStages = 4;
  struct Job {
    int64_t chunk = 0, tile = 0, first_unit = 0;
    int num_keys = 0;                        // of its last unit; 0: nothing to do
    bool is_first = false, is_last = false;  // of the chunk's
    Chunk<T> c{};
    Partial out{};
    int num_blocks() const { return num_blocks_of(num_keys); }
    int num_pairs() const { return (num_blocks() + kPairBlocks - 1) / kPairBlocks; }
  };

  const PagedAttentionParams& p;
  const int64_t heads, dim;
  Item item;
  int64_t units, tiles, most;  // heads of all rows; tiles of equally many, of which the last may begin a little earlier
  bool is_streamed;            // what is packed is used once, so that two pieces of it suffice and stay close
  char* keys;                  // [block, dim / 2] lines of 16 keys
  char* values;                // [chunk % 2, pair of blocks, dim / 16, 16] lines of 16 numbers of two values
  float* sums;                 // [tile row, dim]
  float* scores;               // [job % 2, tile row, kChunkKeys]
  uint16_t* weights;           // [job % 2, tile row, kChunkKeys]
  uint16_t* queries;           // [tile, tile row, dim]
  Job jobs[kStages];           // at their number % kStages
  int64_t num_jobs = 0;

  float* scores_of(int64_t job) const { return scores + job % 2 * kTileRows * kChunkKeys; }
  uint16_t* weights_of(int64_t job) const { return weights + job % 2 * kTileRows * kChunkKeys; }
  int64_t pair_bytes() const { return dim / kTileColumns * kTileBytes; }
  char* keys_of(int64_t b) const { return keys + (is_streamed ? b % 2 : b) * (dim / 2) * kTileLine; }
  char* values_of(int64_t chunk, int64_t pair) const {
    const int64_t place = is_streamed ? pair % 2 : chunk % 2 * (kChunkBlocks / kPairBlocks) + pair;
    return values + place * pair_bytes();
  }
  int64_t first_unit(int64_t tile) const { return tile * most < units - most ? tile * most : units - most; }
  int keys_of_unit(int64_t chunk, int64_t unit) const {
    return keys_in_chunk(item.num_keys_of_row(unit / heads), chunk);
  }

  // Whether the values are finite that some rows see and others do not. Codes always are.
  bool later_values_are_finite(int64_t chunk, const Chunk<T>& c) const {
    if (sizeof(T) == 1) return true;
    const int all_see = keys_of_unit(chunk, 0);
    for (int key = all_see > 0 ? all_see : 0; key < c.num_keys; ++key) {
      const T* value = c.values[key / kKvBlockSize] + key % kKvBlockSize * dim;
      for (int64_t d = 0; d < dim; ++d)
        if ((value[d] & 0x7f80) == 0x7f80) return false;
    }
    return true;
  }

  template <class Done>
  void give(int64_t chunk, Chunk<T> c, const Partial& out, const Done& done) {
    c.num_keys = keys_of_unit(chunk, units - 1);
    c.num_blocks = num_blocks_of(c.num_keys);
    bool is_first = true;
    for (int64_t tile = 0; tile < tiles; ++tile) {
      const int64_t first = first_unit(tile);
      const int num_keys = keys_of_unit(chunk, first + most - 1);
      if (num_keys <= 0) continue;
      advance({chunk, tile, first, num_keys, is_first, tile + 1 == tiles, c, out}, done);
      is_first = false;
    }
  }

  // A job enters the pipeline and those before it move on. Products are made in pieces between the work of the vector
  // units: a core looks ahead too little to find by itself that both can go on at once.
  template <class Done>
  void advance(const Job& entering, const Done& done) {
    constexpr int kPieces = kChunkBlocks;
    shape_tiles({static_cast<int>(2 * most), kTileDepth / 2, 0});
    const int64_t number = num_jobs++ + kStages;
    const Job& leaving = jobs[(number - 3) % kStages];
    if (leaving.num_keys > 0) write_sums(leaving);
    if (leaving.is_last) done(leaving.chunk);
    jobs[number % kStages] = entering;
    const Job &scored = jobs[number % kStages], &weighed = jobs[(number - 1) % kStages];
    const Job& added = jobs[(number - 2) % kStages];
    const int64_t num_sums = dim / kColumnsAtOnce * added.num_pairs();
    if (scored.is_first) pack_keys(scored.c, 0);
    for (int piece = 0; piece < kPieces; ++piece) {
      if (piece < scored.num_blocks()) score(scored, number, piece);
      const Range sums_now = part_of(num_sums, piece, kPieces);
      for (int64_t i = sums_now.begin; i < sums_now.end; ++i) {
        if (is_streamed) pack_values(added, kPairBlocks * i), pack_values(added, kPairBlocks * i + 1);
        add_values(added, number - 2, i);
      }
      if (scored.is_first && piece + 1 < scored.c.num_blocks) pack_keys(scored.c, piece + 1);
      if (weighed.is_first && !is_streamed && piece < (weighed.c.num_blocks + 1) / kPairBlocks * kPairBlocks)
        pack_values(weighed, piece);
      if (weighed.num_keys == 0) continue;
      const Range units_now = part_of(most, piece, kPieces);
      for (int64_t i = units_now.begin; i < units_now.end; ++i) {
        const int num_keys = keys_of_unit(weighed.chunk, weighed.first_unit + i);
        if (num_keys == kChunkKeys) weigh<true>(weighed, number - 1, i, num_keys);
        else if (num_keys > 0) weigh<false>(weighed, number - 1, i, num_keys);
      }
    }
  }

  static void store_line(char* to, __m512i line) { std::memcpy(to, &line, sizeof(line)); }

  void pack_keys(const Chunk<T>& c, int b) {
    char* to = keys_of(b);
    const T *from = c.keys[b], *next = c.next_keys[b];
    for (int64_t d = 0; d < dim; d += 2, from += 2 * kKvBlockSize, next += 2 * kKvBlockSize, to += kTileLine) {
      __builtin_prefetch(next, 0, 2);
      store_line(to, side_by_side(from, from + kKvBlockSize));
    }
  }

  // Zeros where there is none any more.
  void pack_values(const Job& job, int b) {
    static constexpr T kZeros[kTileColumns] = {};
    char* lines = values_of(job.chunk, b / kPairBlocks) + b % kPairBlocks * (kTileBytes / kPairBlocks);
    for (int j = 0; j < kKvBlockSize; j += 2, lines += kTileLine) {
      const int left = job.c.num_keys - b * kKvBlockSize - j;
      const T *from = job.c.values[b] + j * dim, *next = job.c.next_values[b] + j * dim;
      for (int64_t column = 0; column < dim / kTileColumns; ++column) {
        const int64_t d = column * kTileColumns;
        if (left >= 2) __builtin_prefetch(next + 2 * d, 0, 2);
        store_line(lines + column * kTileBytes,
                   side_by_side(left > 0 ? from + d : kZeros, left > 1 ? from + dim + d : kZeros));
      }
    }
  }

  // A block's scores, in tile 5, which has the shape of sums.
  void score(const Job& job, int64_t number, int b) {
    const uint16_t* q = queries + 2 * most * job.tile * dim;
    const char* block = keys_of(b);
    reads_memory(block);
    _tile_zero(5);
    for (int64_t d = 0; d < dim; d += kTileDepth, block += kTileBytes) {
      _tile_loadd(4, q + d, dim * 2);
      _tile_loadd(6, block, kTileLine);
      _tile_dpbf16ps(5, 4, 6);
    }
    _tile_stored(5, scores_of(number) + b * kKvBlockSize, kChunkKeys * 4);
  }

  // Scores of one head to weights relative to the highest; zero behind num_keys. kFull: there is no behind.
  template <bool kFull>
  void weigh(const Job& job, int64_t number, int64_t i, int num_keys) {
    const int num_blocks = kFull ? kChunkBlocks : job.num_blocks();
    const float *score = scores_of(number) + i * kChunkKeys, *rest = score + most * kChunkKeys;
    Vec sum_of_parts[kChunkBlocks];
    Vec top = splat(-INFINITY);
#pragma GCC unroll 8
    for (int b = 0; b < kChunkBlocks; ++b) {
      if (b >= num_blocks) break;
      const int j = b * kKvBlockSize;
      Vec s = load(score + j) + load(rest + j);
      if (Chunk<T>::kHasScales) s = s * load(job.c.key_scales[b]);
      if (!kFull) s = load_as<VecI>(kIota) < num_keys - j ? s : splat(-INFINITY);
      sum_of_parts[b] = s;
      top = max(top, s);
    }
    const float highest = reduce_max(top);
    uint16_t *high = weights_of(number) + i * kChunkKeys, *low = high + most * kChunkKeys;
    Vec total{};
#pragma GCC unroll 8
    for (int b = 0; b < kChunkBlocks; ++b) {
      if (b >= num_blocks) break;
      const int j = b * kKvBlockSize;
      Vec weight = exp2_of_negative(sum_of_parts[b] - highest);
      total += weight;
      if (Chunk<T>::kHasScales) weight = weight * load(job.c.value_scales[b]);
      if (Chunk<T>::kHasScales && !kFull) weight = load_as<VecI>(kIota) < num_keys - j ? weight : Vec{};
      split(weight, high + j, low + j);
    }
    if (num_blocks % kPairBlocks != 0) split(Vec{}, high + num_blocks * kKvBlockSize, low + num_blocks * kKvBlockSize);
    job.out.highest(job.first_unit + i) = highest;
    job.out.sum(job.first_unit + i) = reduce_add(total);
  }

  // Adds pair i % num_pairs of blocks to 64 columns of the sums.
  void add_values(const Job& job, int64_t number, int64_t i) {
    const int64_t num_pairs = job.num_pairs(), pair = i % num_pairs, column = i / num_pairs * kColumnsAtOnce;
    const char* from = values_of(job.chunk, pair) + column / kTileColumns * kTileBytes;
    if (pair == 0) clear_sums();
    reads_memory(from);
    _tile_loadd(4, weights_of(number) + pair * kPairKeys, kChunkKeys * 2);
    _tile_loadd(6, from, kTileLine);
    _tile_dpbf16ps(0, 4, 6);
    _tile_loadd(7, from + kTileBytes, kTileLine);
    _tile_dpbf16ps(1, 4, 7);
    _tile_loadd(6, from + 2 * kTileBytes, kTileLine);
    _tile_dpbf16ps(2, 4, 6);
    _tile_loadd(7, from + 3 * kTileBytes, kTileLine);
    _tile_dpbf16ps(3, 4, 7);
    if (pair + 1 == num_pairs) store_sums(sums + column, dim * 4);
  }

  void write_sums(const Job& job) {
    for (int64_t i = 0; i < most; ++i) {
      if (keys_of_unit(job.chunk, job.first_unit + i) <= 0) continue;
      float* to = job.out.rows + (job.first_unit + i) * job.out.stride();
      for (int64_t d = 0; d < dim; d += kLanes)
        store(to + d, load(sums + i * dim + d) + load(sums + (most + i) * dim + d));
    }
  }
};

}  // namespace simplear::SIMPLEAR_ISA

#endif

#include "kernels/head_sample/head_sample.h"

#include "cpu/product.h"
#include "cpu/sampling.h"

namespace simplear::SIMPLEAR_ISA {
namespace {

constexpr int64_t kChunkPanels = kChunk / kPanelRows;
static_assert(kChunk % kPanelRows == 0);

inline bool is_filtered(const HeadSampleParams& p, int64_t draw) {
  return p.top_k[draw] < p.num_codes || p.top_p[draw] < 1.0f;
}

inline bool any_filtered(const HeadSampleParams& p) {
  bool any = false;
  for (int64_t draw = 0; draw < p.num_draws; ++draw) any |= is_filtered(p, draw);
  return any;
}

// What all threads share for one call, in the scratch of thread 0.
struct Shared {
  ChunkResult* chunks;  // [P, chunks]
  float* thresholds;    // [P]
  uint8_t* is_drawn;    // [R] whether a draw refers to the row

  static size_t bytes(const HeadSampleParams& p, int64_t num_chunks) {
    const size_t used = p.num_draws * (num_chunks * sizeof(ChunkResult) + sizeof(float)) + p.num_rows;
    return (used + 63) / 64 * 64;
  }

  Shared(const HeadSampleParams& p, int64_t num_chunks, void* memory)
      : chunks(static_cast<ChunkResult*>(memory)),
        thresholds(reinterpret_cast<float*>(chunks + p.num_draws * num_chunks)),
        is_drawn(reinterpret_cast<uint8_t*>(thresholds + p.num_draws)) {
    std::memset(is_drawn, 0, p.num_rows);
    for (int64_t draw = 0; draw < p.num_draws; ++draw) {
      is_drawn[p.cond_row[draw]] = 1;
      if (p.uncond_row[draw] >= 0) is_drawn[p.uncond_row[draw]] = 1;
    }
  }
};

inline ChunkResult sample(const HeadSampleParams& p, int64_t draw, const float* z, int64_t first, int64_t count,
                          float threshold) {
  return sample_chunk(z, first, count, threshold, p.temperature[draw] == 0.0f, p.seed[draw], p.position[draw]);
}

// Draws of one chunk from its logits [R, kChunk]; filtered ones only leave their z behind.
void use_chunk(const HeadSampleParams& p, const Shared& shared, int64_t chunk, int64_t num_chunks,
               const float* logits) {
  const int64_t first = chunk * kChunk, left = p.num_codes - first, count = left < kChunk ? left : kChunk;
  alignas(64) float z[kChunk];
  for (int64_t draw = 0; draw < p.num_draws; ++draw) {
    const float* cond = logits + p.cond_row[draw] * kChunk;
    const float* uncond = p.uncond_row[draw] >= 0 ? logits + p.uncond_row[draw] * kChunk : nullptr;
    guide_chunk(cond, uncond, p.guidance_scale[draw], p.temperature[draw], count, z);
    if (is_filtered(p, draw)) std::memcpy(p.guided + draw * p.num_codes + first, z, count * sizeof(float));
    else shared.chunks[draw * num_chunks + chunk] = sample(p, draw, z, first, count, -INFINITY);
  }
  for (int64_t row = 0; row < p.num_rows; ++row)
    if (!shared.is_drawn[row])
      std::memcpy(p.logits + row * p.num_codes + first, logits + row * kChunk, count * sizeof(float));
}

// The filtered draws, now that all of their z is there. own(thread): its memory for numbers of each code.
template <class Own>
void sample_filtered(const HeadSampleParams& p, const Shared& shared, int64_t num_chunks, const Own& own,
                     ThreadPool& pool) {
  parallel_for(pool, p.num_draws, [&](int64_t begin, int64_t end, int thread) {
    for (int64_t draw = begin; draw < end; ++draw)
      if (is_filtered(p, draw))
        shared.thresholds[draw] =
            allowed_threshold(p.guided + draw * p.num_codes, p.num_codes, p.top_k[draw], p.top_p[draw], own(thread));
  });
  parallel_for(pool, p.num_draws * num_chunks, grain_of(kChunk * 8), [&](int64_t begin, int64_t end, int) {
    alignas(64) float z[kChunk];
    for (int64_t i = begin; i < end; ++i) {
      const int64_t draw = i / num_chunks, first = i % num_chunks * kChunk, left = p.num_codes - first;
      if (!is_filtered(p, draw)) continue;
      const int64_t count = left < kChunk ? left : kChunk;
      std::memcpy(z, p.guided + draw * p.num_codes + first, count * sizeof(float));
      for (int64_t j = count; j < kChunk; ++j) z[j] = -INFINITY;
      shared.chunks[i] = sample(p, draw, z, first, count, shared.thresholds[draw]);
    }
  });
}

void head_sample(const HeadSampleParams& p, ThreadPool& pool) {
  if (p.num_rows == 0) return;
  const int64_t num_chunks = (p.num_codes + kChunk - 1) / kChunk, panels = num_panels(p.num_codes);
  const RowSource source{
      {const_cast<float*>(p.hidden), DType::kFloat32}, p.rows, p.norm_weight, p.eps, p.num_rows, p.hidden_size};
  const size_t shared_bytes = Shared::bytes(p, num_chunks), rows_bytes = operand_bytes(source, p.weight.dtype);
  // A thread's own memory holds logits of a chunk, later a filtered draw's weights of the codes.
  const bool has_filtered = any_filtered(p);
  const size_t logits_bytes = p.num_rows * kChunk * sizeof(float);
  const size_t weights_bytes = has_filtered ? (p.num_codes + kLanes) * sizeof(float) : 0;
  const size_t own_bytes = logits_bytes > weights_bytes ? logits_bytes : weights_bytes;
  char* memory = static_cast<char*>(pool.scratch(0, shared_bytes + rows_bytes + own_bytes));
  const auto own = [&](int thread) {
    return reinterpret_cast<float*>(thread == 0 ? memory + shared_bytes + rows_bytes
                                                : static_cast<char*>(pool.scratch(thread, own_bytes)));
  };
  const Shared shared(p, num_chunks, memory);
  const Operand x = prepare(source, p.weight.dtype, memory + shared_bytes, pool);

  const int64_t grain = (panel_grain(p.num_rows, p.hidden_size) + kChunkPanels - 1) / kChunkPanels;
  shared_for(pool, num_chunks, grain, [&](int64_t begin, int64_t end, int thread) {
    float* logits = own(thread);  // [R, kChunk]
    for (int64_t chunk = begin; chunk < end; ++chunk) {
      const int64_t first = chunk * kChunkPanels, last = first + kChunkPanels;
      product(x, p.num_rows, p.weight, p.num_codes, first, last < panels ? last : panels,
              [&](int64_t row, int64_t panel, const float* sums) {
                std::memcpy(logits + row * kChunk + (panel - first) * kPanelRows, sums, sizeof(float) * kPanelRows);
              });
      use_chunk(p, shared, chunk, num_chunks, logits);
    }
  });

  if (has_filtered) sample_filtered(p, shared, num_chunks, own, pool);
  for (int64_t draw = 0; draw < p.num_draws; ++draw) {
    const Sampled sampled = join_chunks(shared.chunks + draw * num_chunks, num_chunks, p.temperature[draw] == 0.0f);
    p.token[draw] = sampled.token;
    p.log_prob[draw] = sampled.log_prob;
    p.last_code[p.slot[draw]] = sampled.token < 0 ? 0 : sampled.token;
  }
}

}  // namespace

SIMPLEAR_CPU_OP(head_sample, HeadSampleParams, kHeadSampleFields, head_sample);

}  // namespace simplear::SIMPLEAR_ISA

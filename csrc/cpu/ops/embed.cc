#include "kernels/embed/embed.h"

#include "cpu/simd.h"

namespace simplear::SIMPLEAR_ISA {
namespace {

template <class T>
void copy_row(const T* from, float* to, int64_t n) {
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) store(to + i, load(from + i));
  for (; i < n; ++i) to[i] = to_float(from[i]);
}

void embed(const EmbedParams& p, ThreadPool& pool) {
  const int64_t width = p.hidden_size;
  parallel_for(pool, p.num_tokens, grain_of(width), [&](int64_t begin, int64_t end, int) {
    for (int64_t n = begin; n < end; ++n) {
      const int32_t token = p.token_ids[n];
      const int64_t id = token >= 0 ? token : p.last_code[p.slot[n]] + p.visual_offset;
      float* to = p.hidden + n * width;
      if (p.table.dtype == DType::kBFloat16)
        copy_row(static_cast<const uint16_t*>(p.table.data) + id * width, to, width);
      else copy_row(static_cast<const float*>(p.table.data) + id * width, to, width);
    }
  });
}

}  // namespace

SIMPLEAR_CPU_OP(embed, EmbedParams, kEmbedFields, embed);

}  // namespace simplear::SIMPLEAR_ISA

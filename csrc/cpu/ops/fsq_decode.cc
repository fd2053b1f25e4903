#include "kernels/fsq_decode/fsq_decode.h"

#include "cpu/simd.h"

namespace simplear::SIMPLEAR_ISA {
namespace {

void fsq_decode(const FsqDecodeParams& p, ThreadPool& pool) {
  parallel_for(pool, p.num_indices, grain_of(p.num_dims), [&](int64_t begin, int64_t end, int) {
    for (int64_t n = begin; n < end; ++n) {
      int32_t rest = p.indices[n];
      for (int32_t d = 0; d < p.num_dims; ++d) {
        const int32_t level = p.levels[d], half = level / 2;
        p.codes[n * p.num_dims + d] = static_cast<float>(rest % level - half) / static_cast<float>(half);
        rest /= level;
      }
    }
  });
}

}  // namespace

SIMPLEAR_CPU_OP(fsq_decode, FsqDecodeParams, kFsqDecodeFields, fsq_decode);

}  // namespace simplear::SIMPLEAR_ISA

#include "kernels/read_stream/read_stream.h"

#include "cpu/simd.h"

namespace simplear::SIMPLEAR_ISA {
namespace {

// Enough independent chains to keep the load ports busy.
constexpr int kChains = 8;

int32_t xor_of(const int32_t* x, int64_t n) {
  VecI sums[kChains] = {};
  int64_t i = 0;
  for (; i + kChains * kLanes <= n; i += kChains * kLanes)
#pragma GCC unroll 8
    for (int c = 0; c < kChains; ++c) sums[c] ^= load_as<VecI>(x + i + c * kLanes);
  int32_t total = 0;
  for (int c = 0; c < kChains; ++c)
    for (int lane = 0; lane < kLanes; ++lane) total ^= sums[c][lane];
  for (; i < n; ++i) total ^= x[i];
  return total;
}

void read_stream(const ReadStreamParams& p, ThreadPool& pool) {
  parallel_for(pool, p.num_parts, [&](int64_t begin, int64_t end, int) {
    for (int64_t part = begin; part < end; ++part) {
      const Range range = part_of(p.num_values, static_cast<int>(part), p.num_parts);
      p.xor_of[part] = xor_of(p.x + range.begin, range.end - range.begin);
    }
  });
}

}  // namespace

SIMPLEAR_CPU_OP(read_stream, ReadStreamParams, kReadStreamFields, read_stream);

}  // namespace simplear::SIMPLEAR_ISA

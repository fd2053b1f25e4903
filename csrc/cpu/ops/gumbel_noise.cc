#include "kernels/gumbel_noise/gumbel_noise.h"

#include "cpu/gumbel.h"
#include "cpu/simd.h"

namespace simplear::SIMPLEAR_ISA {
namespace {

void gumbel_noise_rows(const GumbelNoiseParams& p, ThreadPool& pool) {
  parallel_for(pool, p.num_rows, [&](int64_t begin, int64_t end, int) {
    uint32_t bits[kNoiseCodes];
    float noise[kNoiseCodes];
    for (int64_t row = begin; row < end; ++row)
      for (int64_t first = 0; first < p.num_codes; first += kNoiseCodes) {
        random_bits(p.seed[row], static_cast<uint32_t>(p.position[row]), static_cast<uint32_t>(first), bits);
        for (int i = 0; i < kNoiseCodes; i += kLanes) store(noise + i, gumbel(load_as<VecU>(bits + i)));
        for (int64_t i = 0; i < kNoiseCodes && first + i < p.num_codes; ++i)
          p.noise[row * p.num_codes + first + i] = noise[i];
      }
  });
}

}  // namespace

SIMPLEAR_CPU_OP(gumbel_noise, GumbelNoiseParams, kGumbelNoiseFields, gumbel_noise_rows);

}  // namespace simplear::SIMPLEAR_ISA

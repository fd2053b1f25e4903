// Packing of weights for the register tile, and the check that they are numbers at all.
#pragma once

#include <vector>

#include "core/tensor.h"
#include "core/thread_pool.h"

namespace simplear {

// Packs the rows of `parts` (each [N_i, K], float32, bfloat16 or float16), one after the other, into panels of
// `packed` (1-D, float32 or bfloat16, num_panels(sum N_i) * panel_size(K) elements). Called again after the parts
// changed, it refreshes `packed` in place.
void pack_panels(const std::vector<Tensor>& parts, const Tensor& packed, ThreadPool& pool);

// Elements of the packed form of [rows, k].
int64_t packed_size(int64_t rows, int64_t k, DType dtype);

// Converts `from` (float32, bfloat16, float16) to the dtype of `to` (float32, bfloat16), same number of elements.
void convert(const Tensor& from, const Tensor& to, ThreadPool& pool);

// Whether every element of a float tensor is finite.
bool all_finite(const Tensor& tensor, ThreadPool& pool);

}  // namespace simplear

// Packing of weights for the register tile, and the check that they are numbers at all.
#pragma once

#include <vector>

#include "core/tensor.h"
#include "core/thread_pool.h"

namespace simplear {

// Packs the rows of `parts` (each [N_i, K], float32, bfloat16 or float16) into the panels of `packed` (1-D, float32,
// bfloat16, int8 or int4; panels.h). One part after the other, or, when interleaved, parts of equal shape by turns: 32
// rows of each, a last incomplete 32 filled up with zeros. Called again after the parts changed, it refreshes `packed`
// in place. Non-finite weights must have been refused before.
void pack_panels(const std::vector<Tensor>& parts, const Tensor& packed, bool interleaved, ThreadPool& pool);

// Elements (bytes, when quantised) of the packed form of [rows, k].
int64_t packed_size(int64_t rows, int64_t k, DType dtype);

// Elements [begin, begin + count) of an array of any float type.
void load_floats(const void* data, DType dtype, int64_t begin, int64_t count, float* out);

// Converts `from` (float32, bfloat16, float16) to the dtype of `to` (float32, bfloat16), same number of elements.
void convert(const Tensor& from, const Tensor& to, ThreadPool& pool);

// Whether every element of a float tensor is finite.
bool all_finite(const Tensor& tensor, ThreadPool& pool);

}  // namespace simplear

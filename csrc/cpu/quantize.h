// Rounding of weights to int8 and int4, once, when they are packed. kernels/quantization.py is the same in NumPy.
#pragma once

#include <cstdint>

namespace simplear {

// Writes row `row` (0..63) of one panel (panels.h) from `k` weights; k is padded already.

// One scale for the row: the largest magnitude becomes 127.
void quantize_row_int8(const float* weights, int64_t k, int64_t row, uint8_t* panel);

// One scale for 32 weights: of five around the one that takes the largest magnitude to -8, that with the least squared
// error. The scale is rounded to bfloat16 first, so that its own rounding is part of the choice.
void quantize_row_int4(const float* weights, int64_t k, int64_t row, uint8_t* panel);

}  // namespace simplear

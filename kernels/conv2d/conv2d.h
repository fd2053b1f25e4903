// Convolution of channel-last images with weights that were packed at load, as an implicit matrix product:
//
//   y[b, i, j, m] = bias[m] + residual[b, i, j, m] + sum over taps (u, v) and channels c of
//                   weight[m, u, v, c] * x[b, i * stride + u - pad, j * stride + v - pad, c]
//
// where x outside its borders is 0. With corners = 4 the result has twice the height and width: each of the four
// positions of a 2x2 cell has weights of its own, and pad is 1 - (its row or column in the cell). Nearest-neighbour x2
// followed by a 3x3 convolution comes down to that with 2x2 kernels, at 4/9 of the products.
//
// Products and sums in float32, rounded once at the end; x and weight have the same type. Each output is summed by one
// accumulator, in an order that depends on the number of channels and taps alone, whatever its neighbours are (contract
// C2). The arithmetic is the floor: 2 * B * H_out * W_out * M * taps * C operations. A group of weight panels stays in
// the second-level cache while the pixels stream past it.
#pragma once

#include "core/op.h"

namespace simplear {

struct Conv2dParams {
  AnyPtr x;           // [B, H, W, C] float32 or bfloat16
  AnyPtr weight;      // dtype of x; for each corner [M, kernel * kernel * C'] in panels (csrc/cpu/panels.h), C' = C
                      // rounded up to even for bfloat16
  const float* bias;  // [M]
  AnyPtr residual;    // [B, H_out, W_out, M] or null, dtype of y
  AnyPtr y;           // [B, H_out, W_out, M] out, float32 or bfloat16
  int32_t batch, height, width, in_channels;
  int32_t out_height, out_width, out_channels;  // of y; twice a corner's own when corners = 4
  int32_t kernel, stride, pad;                  // the same for rows and columns; pad in front, zeros behind as needed
  int32_t corners;                              // 1 or 4 (with kernel 2, stride 1)
};

inline constexpr Field kConv2dFields[] = {
    SIMPLEAR_FIELD(Conv2dParams, x),           SIMPLEAR_FIELD(Conv2dParams, weight),
    SIMPLEAR_FIELD(Conv2dParams, bias),        SIMPLEAR_FIELD(Conv2dParams, residual),
    SIMPLEAR_FIELD(Conv2dParams, y),           SIMPLEAR_FIELD(Conv2dParams, batch),
    SIMPLEAR_FIELD(Conv2dParams, height),      SIMPLEAR_FIELD(Conv2dParams, width),
    SIMPLEAR_FIELD(Conv2dParams, in_channels), SIMPLEAR_FIELD(Conv2dParams, out_height),
    SIMPLEAR_FIELD(Conv2dParams, out_width),   SIMPLEAR_FIELD(Conv2dParams, out_channels),
    SIMPLEAR_FIELD(Conv2dParams, kernel),      SIMPLEAR_FIELD(Conv2dParams, stride),
    SIMPLEAR_FIELD(Conv2dParams, pad),         SIMPLEAR_FIELD(Conv2dParams, corners),
};

}  // namespace simplear

#include "cpu/pack.h"

#include <algorithm>
#include <atomic>
#include <cstring>

#include "core/check.h"
#include "cpu/panels.h"
#include "cpu/quantize.h"

namespace simplear {
namespace {

// As in simd.h, which only files compiled for one instruction set may include.
float bf16_to_float(uint16_t x) {
  const uint32_t bits = static_cast<uint32_t>(x) << 16;
  float f;
  std::memcpy(&f, &bits, 4);
  return f;
}

uint16_t float_to_bf16(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, 4);
  const uint32_t rounded = (bits + 0x7fff + (bits >> 16 & 1)) >> 16, quiet = bits >> 16 | 0x40;
  // A choice and not a branch, so that loops over it become vector code.
  return static_cast<uint16_t>((bits & 0x7fffffffu) > 0x7f800000u ? quiet : rounded);
}

float f16_to_float(uint16_t x) {
  const uint32_t sign = (x & 0x8000u) << 16, exponent = x >> 10 & 31, mantissa = x & 0x3ffu;
  uint32_t bits;
  if (exponent == 31) {
    bits = sign | 0x7f800000u | mantissa << 13;
  } else if (exponent != 0) {
    bits = sign | (exponent + 112) << 23 | mantissa << 13;
  } else {
    const float magnitude = static_cast<float>(mantissa) * 5.9604644775390625e-8f;  // 2^-24
    std::memcpy(&bits, &magnitude, 4);
    bits |= sign;
  }
  float f;
  std::memcpy(&f, &bits, 4);
  return f;
}

void store_floats(const float* from, int64_t count, DType dtype, void* data, int64_t begin) {
  if (dtype == DType::kFloat32) {
    std::memcpy(static_cast<float*>(data) + begin, from, count * sizeof(float));
    return;
  }
  for (int64_t i = 0; i < count; ++i) static_cast<uint16_t*>(data)[begin + i] = float_to_bf16(from[i]);
}

constexpr int64_t kSlice = 16;  // rows of a panel that are turned at once

// Four 32-bit values: a float32 each, or two neighbouring bfloat16 each. Every x86-64 and every ARMv8 has such
// registers.
typedef uint32_t Four __attribute__((vector_size(16)));

// panel[64 * i + j] = rows[j][i] for 16 rows and i < count, 32 bits at a time: how rows become a panel whenever nothing
// has to be converted. Squares of 4 x 4 stay in registers, so each line of the panel is written whole while it is in
// the first- level cache, and each line of a row is read once.
void turn(const char* const (&rows)[kSlice], int64_t count, char* panel) {
  const auto at = [](const char* p) {
    Four v;
    std::memcpy(&v, p, sizeof(v));
    return v;
  };
  int64_t i = 0;
  for (; i + 4 <= count; i += 4)
    for (int64_t j = 0; j < kSlice; j += 4) {
      const Four a = at(rows[j] + 4 * i), b = at(rows[j + 1] + 4 * i);
      const Four c = at(rows[j + 2] + 4 * i), d = at(rows[j + 3] + 4 * i);
      const Four ab0 = __builtin_shufflevector(a, b, 0, 4, 1, 5), ab1 = __builtin_shufflevector(a, b, 2, 6, 3, 7);
      const Four cd0 = __builtin_shufflevector(c, d, 0, 4, 1, 5), cd1 = __builtin_shufflevector(c, d, 2, 6, 3, 7);
      const Four turned[4] = {
          __builtin_shufflevector(ab0, cd0, 0, 1, 4, 5), __builtin_shufflevector(ab0, cd0, 2, 3, 6, 7),
          __builtin_shufflevector(ab1, cd1, 0, 1, 4, 5), __builtin_shufflevector(ab1, cd1, 2, 3, 6, 7)};
      for (int64_t k = 0; k < 4; ++k) std::memcpy(panel + 4 * ((i + k) * kPanelRows + j), &turned[k], sizeof(Four));
    }
  for (; i < count; ++i)
    for (int64_t j = 0; j < kSlice; ++j) std::memcpy(panel + 4 * (i * kPanelRows + j), rows[j] + 4 * i, 4);
}

constexpr int64_t kBlock = 256;  // values that are converted at once: 16 rows of them fit in the first-level cache

template <class Body>
void for_parts(ThreadPool& pool, int64_t items, const Body& body) {
  struct Context {
    const Body* body;
    int64_t items;
  } context{&body, items};
  std::lock_guard turn(pool.turns());
  pool.run(
      [](void* opaque, int thread, int num_threads) {
        const Context& c = *static_cast<const Context*>(opaque);
        (*c.body)(c.items* thread / num_threads, c.items * (thread + 1) / num_threads);
      },
      &context);
}

}  // namespace

namespace {

// Where a packed row comes from; no part: zeros.
struct SourceRow {
  const Tensor* part;
  int64_t row;
};

// Whole panels of rows.
std::vector<SourceRow> rows_of(const std::vector<Tensor>& parts, bool interleaved) {
  check(!parts.empty(), ErrorKind::kInternal, "pack_panels: no parts");
  std::vector<SourceRow> rows;
  for (const Tensor& part : parts) {
    check(part.shape.size() == 2 && part.shape[1] == parts[0].shape[1], ErrorKind::kInternal,
          "pack_panels: parts differ in columns");
    check(!interleaved || part.shape == parts[0].shape, ErrorKind::kInternal, "pack_panels: parts differ in rows");
    if (!interleaved)
      for (int64_t r = 0; r < part.shape[0]; ++r) rows.push_back({&part, r});
  }
  if (interleaved)
    for (int64_t first = 0; first < parts[0].shape[0]; first += kTurnRows)
      for (const Tensor& part : parts)
        for (int64_t r = first; r < first + kTurnRows; ++r) rows.push_back({r < part.shape[0] ? &part : nullptr, r});
  rows.resize(num_panels(static_cast<int64_t>(rows.size())) * kPanelRows, {nullptr, 0});
  return rows;
}

// 16 rows of one panel of float32 or bfloat16.
void pack_slice(const SourceRow* rows, int64_t k, DType dtype, char* to) {
  const int64_t width = static_cast<int64_t>(size_of(dtype));
  const char* turned[kSlice];
  if (k * width % 4 == 0 &&
      std::all_of(rows, rows + kSlice, [&](const SourceRow& r) { return r.part && r.part->dtype == dtype; })) {
    for (int64_t j = 0; j < kSlice; ++j) turned[j] = rows[j].part->as<char>() + rows[j].row * k * width;
    turn(turned, k * width / 4, to);
    return;
  }
  float values[kBlock];
  alignas(64) char block[kSlice][kBlock * sizeof(float)];
  for (int64_t column = 0; column < k; column += kBlock) {
    const int64_t count = std::min(kBlock, k - column);
    for (int64_t j = 0; j < kSlice; ++j) {
      turned[j] = block[j];
      // Zeros stand for rows past the last and for the second half of an odd column's pair.
      if (!rows[j].part || count * width % 4 != 0) std::memset(block[j], 0, sizeof(block[j]));
      if (!rows[j].part) continue;
      load_floats(rows[j].part->data, rows[j].part->dtype, rows[j].row * k + column, count, values);
      store_floats(values, count, dtype, block[j], 0);
    }
    turn(turned, (count * width + 3) / 4, to + column * kPanelRows * width);
  }
}

// One row of a quantised panel; `buffer` takes its k values and their padding.
void pack_quantized_row(const SourceRow& source, int64_t k, DType dtype, int64_t row, uint8_t* panel, float* buffer) {
  const int64_t padded = padded_k(k, dtype);
  std::fill(buffer, buffer + padded, 0.0f);
  if (source.part) load_floats(source.part->data, source.part->dtype, source.row * k, k, buffer);
  if (dtype == DType::kInt8) quantize_row_int8(buffer, padded, row, panel);
  else quantize_row_int4(buffer, padded, row, panel);
}

}  // namespace

void load_floats(const void* data, DType dtype, int64_t begin, int64_t count, float* out) {
  switch (dtype) {
    case DType::kFloat32: std::memcpy(out, static_cast<const float*>(data) + begin, count * sizeof(float)); return;
    case DType::kBFloat16:
      for (int64_t i = 0; i < count; ++i) out[i] = bf16_to_float(static_cast<const uint16_t*>(data)[begin + i]);
      return;
    case DType::kFloat16:
      for (int64_t i = 0; i < count; ++i) out[i] = f16_to_float(static_cast<const uint16_t*>(data)[begin + i]);
      return;
    default: fail(ErrorKind::kInternal, "weights: expected a float type, got ", name_of(dtype));
  }
}

int64_t packed_size(int64_t rows, int64_t k, DType dtype) { return num_panels(rows) * panel_size(k, dtype); }

void pack_panels(const std::vector<Tensor>& parts, const Tensor& packed, bool interleaved, ThreadPool& pool) {
  const std::vector<SourceRow> rows = rows_of(parts, interleaved);
  const int64_t k = parts[0].shape[1], num_rows = static_cast<int64_t>(rows.size());
  const DType dtype = packed.dtype;
  check(packed.size() == packed_size(num_rows, k, dtype), ErrorKind::kInternal, "pack_panels: packed has ",
        packed.size(), " elements, expected ", packed_size(num_rows, k, dtype));
  const int64_t width = static_cast<int64_t>(size_of(dtype)), stride = panel_size(k, dtype) * width;
  for_parts(pool, num_rows / kSlice, [&](int64_t begin, int64_t end) {
    std::vector<float> buffer(is_quantized(dtype) ? padded_k(k, dtype) : 0);
    for (int64_t first = begin * kSlice; first < end * kSlice; first += kSlice) {
      char* panel = packed.as<char>() + first / kPanelRows * stride;
      const int64_t row = first % kPanelRows;
      if (!is_quantized(dtype)) pack_slice(&rows[first], k, dtype, panel + row * 4);
      else
        for (int64_t j = 0; j < kSlice; ++j)
          pack_quantized_row(rows[first + j], k, dtype, row + j, reinterpret_cast<uint8_t*>(panel), buffer.data());
    }
  });
}

void convert(const Tensor& from, const Tensor& to, ThreadPool& pool) {
  check(from.size() == to.size(), ErrorKind::kInternal, "convert: ", from.size(), " elements into ", to.size());
  check(to.dtype == DType::kFloat32 || to.dtype == DType::kBFloat16, ErrorKind::kInternal,
        "convert: expected a float32 or bfloat16 target, got ", name_of(to.dtype));
  for_parts(pool, from.size(), [&](int64_t begin, int64_t end) {
    if (from.dtype == to.dtype) {
      const size_t width = size_of(from.dtype);
      std::memcpy(to.as<char>() + begin * width, from.as<char>() + begin * width, (end - begin) * width);
      return;
    }
    float block[kBlock];
    for (int64_t i = begin; i < end; i += kBlock) {
      const int64_t count = std::min(kBlock, end - i);
      load_floats(from.data, from.dtype, i, count, block);
      store_floats(block, count, to.dtype, to.data, i);
    }
  });
}

bool all_finite(const Tensor& tensor, ThreadPool& pool) {
  const bool half = tensor.dtype != DType::kFloat32;
  const uint32_t exponent = !half ? 0x7f800000u : tensor.dtype == DType::kBFloat16 ? 0x7f80u : 0x7c00u;
  std::atomic<bool> finite{true};
  for_parts(pool, tensor.size(), [&](int64_t begin, int64_t end) {
    uint32_t bad = 0;
    if (half)
      for (int64_t i = begin; i < end; ++i) bad |= (tensor.as<uint16_t>()[i] & exponent) == exponent;
    else
      for (int64_t i = begin; i < end; ++i) bad |= (tensor.as<uint32_t>()[i] & exponent) == exponent;
    if (bad) finite = false;
  });
  return finite;
}

}  // namespace simplear

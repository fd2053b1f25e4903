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
  if ((bits & 0x7fffffffu) > 0x7f800000u) return static_cast<uint16_t>(bits >> 16 | 0x40);
  return static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
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

constexpr int64_t kBlock = 256;  // columns that are turned at once: 16 rows of them fit in the first-level cache

// Columns [begin, begin + count) of 16 rows into their places in a panel; begin is even.
void store_columns(const float (&rows)[kPanelRows][kBlock], int64_t begin, int64_t count, float* panel) {
  for (int64_t i = 0; i < count; ++i)
    for (int64_t j = 0; j < kPanelRows; ++j) panel[(begin + i) * kPanelRows + j] = rows[j][i];
}
void store_columns(const float (&rows)[kPanelRows][kBlock], int64_t begin, int64_t count, uint16_t* panel) {
  for (int64_t i = 0; i < count; i += 2)
    for (int64_t j = 0; j < kPanelRows; ++j) {
      panel[(begin + i) * kPanelRows + 2 * j] = float_to_bf16(rows[j][i]);
      panel[(begin + i) * kPanelRows + 2 * j + 1] = i + 1 < count ? float_to_bf16(rows[j][i + 1]) : 0;
    }
}

template <class Body>
void for_parts(ThreadPool& pool, int64_t items, const Body& body) {
  struct Context {
    const Body* body;
    int64_t items;
  } context{&body, items};
  std::lock_guard lock(pool.op_mutex());
  pool.run(
      [](void* opaque, int thread, int num_threads) {
        const Context& c = *static_cast<const Context*>(opaque);
        (*c.body)(c.items* thread / num_threads, c.items * (thread + 1) / num_threads);
      },
      &context);
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

namespace {

// Where a packed row comes from; no part: zeros.
struct SourceRow {
  const Tensor* part;
  int64_t row;
};

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
    for (int64_t panel = 0; panel < num_panels(parts[0].shape[0]); ++panel)
      for (const Tensor& part : parts)
        for (int64_t r = panel * kPanelRows; r < (panel + 1) * kPanelRows; ++r)
          rows.push_back({r < part.shape[0] ? &part : nullptr, r});
  rows.resize(num_panels(static_cast<int64_t>(rows.size())) * kPanelRows, {nullptr, 0});
  return rows;
}

void load_columns(const SourceRow& source, int64_t k, int64_t begin, int64_t count, float* out) {
  if (source.part) load_floats(source.part->data, source.part->dtype, source.row * k + begin, count, out);
  else std::fill_n(out, count, 0.0f);
}

void pack_float_panel(const SourceRow* rows, int64_t k, const Tensor& packed, int64_t panel) {
  const int64_t stride = panel_size(k, packed.dtype);
  float block[kPanelRows][kBlock];
  for (int64_t column = 0; column < k; column += kBlock) {
    const int64_t count = std::min(kBlock, k - column);
    for (int64_t j = 0; j < kPanelRows; ++j) load_columns(rows[j], k, column, count, block[j]);
    if (packed.dtype == DType::kBFloat16) store_columns(block, column, count, packed.as<uint16_t>() + panel * stride);
    else store_columns(block, column, count, packed.as<float>() + panel * stride);
  }
}

void pack_quantized_panel(const SourceRow* rows, int64_t k, const Tensor& packed, int64_t panel, float* buffer) {
  uint8_t* to = packed.as<uint8_t>() + panel * panel_size(k, packed.dtype);
  const int64_t padded = padded_k(k, packed.dtype);
  for (int64_t j = 0; j < kPanelRows; ++j) {
    load_columns(rows[j], k, 0, k, buffer);
    std::fill(buffer + k, buffer + padded, 0.0f);
    if (packed.dtype == DType::kInt8) quantize_row_int8(buffer, padded, j, to);
    else quantize_row_int4(buffer, padded, j, to);
  }
}

}  // namespace

void pack_panels(const std::vector<Tensor>& parts, const Tensor& packed, bool interleaved, ThreadPool& pool) {
  const std::vector<SourceRow> rows = rows_of(parts, interleaved);
  const int64_t k = parts[0].shape[1];
  const int64_t panels = static_cast<int64_t>(rows.size()) / kPanelRows;
  check(packed.size() == panels * panel_size(k, packed.dtype), ErrorKind::kInternal, "pack_panels: packed has ",
        packed.size(), " elements, expected ", panels * panel_size(k, packed.dtype));
  for_parts(pool, panels, [&](int64_t begin, int64_t end) {
    std::vector<float> buffer(is_quantized(packed.dtype) ? padded_k(k, packed.dtype) : 0);
    for (int64_t panel = begin; panel < end; ++panel) {
      const SourceRow* panel_rows = rows.data() + panel * kPanelRows;
      if (is_quantized(packed.dtype)) pack_quantized_panel(panel_rows, k, packed, panel, buffer.data());
      else pack_float_panel(panel_rows, k, packed, panel);
    }
  });
}

void convert(const Tensor& from, const Tensor& to, ThreadPool& pool) {
  check(from.size() == to.size(), ErrorKind::kInternal, "convert: ", from.size(), " elements into ", to.size());
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

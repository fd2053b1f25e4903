#include "cpu/pack.h"

#include <atomic>
#include <cstring>

#include "core/check.h"
#include "cpu/panels.h"

namespace simplear {
namespace {

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

float element(const void* data, DType dtype, int64_t i) {
  switch (dtype) {
    case DType::kFloat32: return static_cast<const float*>(data)[i];
    case DType::kBFloat16: return bf16_to_float(static_cast<const uint16_t*>(data)[i]);
    case DType::kFloat16: return f16_to_float(static_cast<const uint16_t*>(data)[i]);
    default: fail(ErrorKind::kInternal, "weights: expected a float type, got ", name_of(dtype));
  }
}

void put(void* data, DType dtype, int64_t i, float x) {
  if (dtype == DType::kBFloat16) static_cast<uint16_t*>(data)[i] = float_to_bf16(x);
  else static_cast<float*>(data)[i] = x;
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
        (*c.body)(c.items * thread / num_threads, c.items * (thread + 1) / num_threads);
      },
      &context);
}

}  // namespace

int64_t packed_size(int64_t rows, int64_t k, DType dtype) { return num_panels(rows) * panel_size(k, dtype); }

void pack_panels(const std::vector<Tensor>& parts, const Tensor& packed, ThreadPool& pool) {
  check(!parts.empty(), ErrorKind::kInternal, "pack_panels: no parts");
  const int64_t k = parts[0].shape.at(1);
  struct Row {
    const Tensor* part;
    int64_t row;
  };
  std::vector<Row> rows;
  for (const Tensor& part : parts) {
    check(part.shape.size() == 2 && part.shape[1] == k, ErrorKind::kInternal, "pack_panels: parts differ in columns");
    for (int64_t r = 0; r < part.shape[0]; ++r) rows.push_back({&part, r});
  }
  const int64_t n = static_cast<int64_t>(rows.size());
  check(packed.size() == packed_size(n, k, packed.dtype), ErrorKind::kInternal, "pack_panels: packed has ",
        packed.size(), " elements, expected ", packed_size(n, k, packed.dtype));
  const int64_t stride = panel_size(k, packed.dtype);
  const int64_t group = packed.dtype == DType::kBFloat16 ? 2 : 1;  // neighbours in k that lie side by side
  for_parts(pool, num_panels(n), [&](int64_t begin, int64_t end) {
    for (int64_t panel = begin; panel < end; ++panel) {
      for (int64_t j = 0; j < kPanelRows; ++j) {
        const int64_t row = panel * kPanelRows + j;
        if (row >= n) {
          for (int64_t i = 0; i < padded_k(k, packed.dtype); ++i)
            put(packed.data, packed.dtype, panel * stride + i / group * kPanelRows * group + j * group + i % group, 0.0f);
          continue;
        }
        const Tensor& part = *rows[row].part;
        const auto* from = static_cast<const char*>(part.data) + rows[row].row * k * size_of(part.dtype);
        if (part.dtype == DType::kBFloat16 && packed.dtype == DType::kBFloat16 && k % 2 == 0) {
          auto* to = packed.as<uint32_t>() + panel * stride / 2 + j;
          for (int64_t i = 0; i < k / 2; ++i) std::memcpy(to + i * kPanelRows, from + i * 4, 4);
          continue;
        }
        for (int64_t i = 0; i < padded_k(k, packed.dtype); ++i)
          put(packed.data, packed.dtype, panel * stride + i / group * kPanelRows * group + j * group + i % group,
              i < k ? element(from, part.dtype, i) : 0.0f);
      }
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
    for (int64_t i = begin; i < end; ++i) put(to.data, to.dtype, i, element(from.data, from.dtype, i));
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

// Element types. Plain data, safe to include from code compiled for any instruction set.
//
// kInt8 and kInt4 are also what packed weights call themselves (csrc/cpu/panels.h); an element of kInt4 is one byte,
// with two numbers in it.
#pragma once

#include <cstddef>
#include <cstdint>

namespace simplear {

enum class DType : int32_t {
  kFloat32,
  kBFloat16,
  kFloat16,
  kInt32,
  kInt64,
  kUInt64,
  kUInt8,
  kInt8,
  kInt4,
  kFloat8E4M3
};

constexpr size_t size_of(DType dtype) {
  switch (dtype) {
    case DType::kFloat32: return 4;
    case DType::kBFloat16: return 2;
    case DType::kFloat16: return 2;
    case DType::kInt32: return 4;
    case DType::kInt64: return 8;
    case DType::kUInt64: return 8;
    case DType::kUInt8: return 1;
    case DType::kInt8: return 1;
    case DType::kInt4: return 1;
    case DType::kFloat8E4M3: return 1;
  }
  return 0;
}

constexpr const char* name_of(DType dtype) {
  switch (dtype) {
    case DType::kFloat32: return "float32";
    case DType::kBFloat16: return "bfloat16";
    case DType::kFloat16: return "float16";
    case DType::kInt32: return "int32";
    case DType::kInt64: return "int64";
    case DType::kUInt64: return "uint64";
    case DType::kUInt8: return "uint8";
    case DType::kInt8: return "int8";
    case DType::kInt4: return "int4";
    case DType::kFloat8E4M3: return "float8_e4m3";
  }
  return "?";
}

}  // namespace simplear

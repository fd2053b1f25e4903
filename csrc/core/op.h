// How an operation presents itself: a plain Params struct, a table of its fields, and one function per implementation.
//
// kernels/<op>/<op>.h declares the struct and the table; a source file registers an implementation with one macro.
// Entries are constant data in a linker section of their own: no list to keep, and no code of a file compiled for
// AVX-512 runs before somebody has asked what the processor can do.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string_view>
#include <type_traits>

#include "core/dtype.h"

namespace simplear {

class ThreadPool;

// A pointer whose element type is chosen at run time.
struct AnyPtr {
  void* data;
  DType dtype;
};

enum class FieldType : int32_t { kAnyPointer, kTypedPointer, kInt32, kInt64, kFloat };

struct Field {
  const char* name;
  size_t offset;
  FieldType type;
  DType dtype;  // of a typed pointer's elements
};

template <class T>
constexpr DType dtype_of() {
  using E = std::remove_cv_t<T>;
  if constexpr (std::is_same_v<E, float>) return DType::kFloat32;
  else if constexpr (std::is_same_v<E, int32_t>) return DType::kInt32;
  else if constexpr (std::is_same_v<E, int64_t>) return DType::kInt64;
  else if constexpr (std::is_same_v<E, uint64_t>) return DType::kUInt64;
  else return DType::kUInt8;
}

template <class T>
constexpr Field make_field(const char* name, size_t offset) {
  if constexpr (std::is_same_v<T, AnyPtr>) return {name, offset, FieldType::kAnyPointer, DType::kFloat32};
  else if constexpr (std::is_pointer_v<T>)
    return {name, offset, FieldType::kTypedPointer, dtype_of<std::remove_pointer_t<T>>()};
  else if constexpr (std::is_same_v<T, float>) return {name, offset, FieldType::kFloat, DType::kFloat32};
  else if constexpr (sizeof(T) == 8) return {name, offset, FieldType::kInt64, DType::kInt64};
  else return {name, offset, FieldType::kInt32, DType::kInt32};
}

#define SIMPLEAR_FIELD(Params, field) ::simplear::make_field<decltype(Params::field)>(#field, offsetof(Params, field))

struct OpImpl {
  const char* op;    // "linear"
  const char* impl;  // "baseline", "avx2", "avx512", ...
  const Field* fields;
  size_t num_fields;
  size_t params_size;
  void (*run)(const void* params, ThreadPool& pool);
};

// Every implementation that was linked in, in no particular order.
std::span<const OpImpl* const> all_ops();

// nullptr when absent.
const OpImpl* find_op(std::string_view op, std::string_view impl);

#define SIMPLEAR_REGISTER_OP(op_name, impl_name, Params, fields_table, function)                                 \
  static void run_erased_##op_name(const void* params, ::simplear::ThreadPool& pool) {                           \
    function(*static_cast<const Params*>(params), pool);                                                         \
  }                                                                                                              \
  static constinit const ::simplear::OpImpl impl_##op_name = {                                                   \
      #op_name, impl_name, fields_table, std::size(fields_table), sizeof(Params), &run_erased_##op_name};        \
  [[gnu::used, gnu::section("simplear_ops")]] static constinit const ::simplear::OpImpl* const entry_##op_name = \
      &impl_##op_name

}  // namespace simplear

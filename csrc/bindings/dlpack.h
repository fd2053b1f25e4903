// Tensors in from and out to anybody who speaks DLPack (NumPy, torch, JAX), without a copy.
//
// The structs are the version-0 ABI of the DLPack specification.
#pragma once

#include <pybind11/pybind11.h>

#include <optional>

#include "core/tensor.h"

namespace simplear {

// Borrows a tensor from an object with __dlpack__; keeps the object's memory alive. Of a device's tensor, `stream` is
// where it is going to be read (none: the caller orders that). Throws kInvalidRequest for a device or dtype that the
// engine does not know, or memory that is not contiguous.
Tensor tensor_from_dlpack(const pybind11::object& lender, std::optional<uint64_t> stream);

// A capsule named "dltensor".
pybind11::capsule tensor_to_dlpack(const Tensor& tensor);

}  // namespace simplear

// Tensors in from and out to anybody who speaks DLPack (NumPy, torch, JAX), without a copy.
//
// The structs are the version-0 ABI of the DLPack specification.
#pragma once

#include <pybind11/pybind11.h>

#include "core/tensor.h"

namespace simplear {

// Borrows a CPU tensor from an object with __dlpack__; keeps the object's memory alive. Throws kInvalidRequest for
// another device, a dtype that the engine does not know, or memory that is not contiguous.
Tensor tensor_from_dlpack(const pybind11::object& lender);

// A capsule named "dltensor".
pybind11::capsule tensor_to_dlpack(const Tensor& tensor);

}  // namespace simplear

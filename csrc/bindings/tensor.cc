// simplear_engine._C.Tensor: the engine's tensors as Python sees them.

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "bindings/bindings.h"
#include "bindings/dlpack.h"
#include "bindings/py_owner.h"
#include "core/check.h"

namespace py = pybind11;

namespace simplear {

DType dtype_from_name(const std::string& name) {
  for (DType dtype : {DType::kFloat32, DType::kBFloat16, DType::kFloat16, DType::kInt32, DType::kInt64, DType::kUInt64,
                      DType::kUInt8, DType::kInt8, DType::kInt4, DType::kFloat8E4M3})
    if (name == name_of(dtype)) return dtype;
  fail(ErrorKind::kInvalidRequest,
       "dtype: expected float32, bfloat16, float16, int32, int64, uint64, uint8, int8, int4 or float8_e4m3, got ",
       name);
}

namespace {

// NumPy has no bfloat16, no int4 and no float8; their bits travel as uint16 and uint8.
py::dtype numpy_dtype(DType dtype) {
  switch (dtype) {
    case DType::kBFloat16: return py::dtype("uint16");
    case DType::kInt4:
    case DType::kFloat8E4M3: return py::dtype("uint8");
    default: return py::dtype(name_of(dtype));
  }
}

Tensor from_numpy(const py::array& array, const std::optional<std::string>& dtype_name) {
  const auto invalid = ErrorKind::kInvalidRequest;
  Tensor tensor;
  const std::string found = py::str(array.dtype().attr("name"));
  tensor.dtype = dtype_from_name(dtype_name ? *dtype_name : found);
  check(array.dtype().is(numpy_dtype(tensor.dtype)) || array.dtype().equal(numpy_dtype(tensor.dtype)), invalid,
        "array for dtype ", name_of(tensor.dtype), ": expected NumPy ", std::string(py::str(numpy_dtype(tensor.dtype))),
        ", got ", found);
  check(array.flags() & py::array::c_style, invalid, "expected a C-contiguous array: use numpy.ascontiguousarray");
  tensor.data = const_cast<void*>(array.data());
  tensor.shape.assign(array.shape(), array.shape() + array.ndim());
  tensor.read_only = !array.writeable();
  tensor.owner = own(array);
  return tensor;
}

py::array to_numpy(const Tensor& tensor) {
  check(tensor.device.is_host(), ErrorKind::kInvalidRequest, "this tensor is on ", name_of(tensor.device),
        ": NumPy sees memory of the host only; download() it");
  // The array's base holds a copy of the Tensor, and so the memory.
  auto* holder = new Tensor(tensor);
  py::capsule base(holder, [](void* p) { delete static_cast<Tensor*>(p); });
  py::array array(numpy_dtype(tensor.dtype), tensor.shape, tensor.data, base);
  if (tensor.read_only) array.attr("flags").attr("writeable") = false;
  return array;
}

}  // namespace

void bind_tensor(py::module_& m) {
  py::class_<Tensor>(m, "Tensor", "A dense row-major tensor; owns its memory or borrows it.")
      .def_static(
          "zeros",
          [](std::vector<int64_t> shape, const std::string& dtype) {
            return Tensor::zeros(std::move(shape), dtype_from_name(dtype));
          },
          py::arg("shape"), py::arg("dtype"), "A new tensor of zeros.")
      .def_static("from_numpy", &from_numpy, py::arg("array"), py::arg("dtype") = py::none(),
                  "Borrows a C-contiguous array; dtype=\"bfloat16\" reads uint16 as bfloat16 bits.")
      .def_static("from_dlpack", &tensor_from_dlpack, py::arg("lender"), py::arg("stream") = py::none(),
                  "Borrows a tensor through DLPack; `stream`: where a device's tensor is going to be read.")
      .def("numpy", &to_numpy, "A view as a NumPy array; bfloat16 as uint16 bits.")
      .def(
          "rows",
          [](const Tensor& t, int64_t begin, int64_t end) {
            check(!t.shape.empty() && 0 <= begin && begin <= end && end <= t.shape[0], ErrorKind::kInvalidRequest,
                  "rows: expected 0 <= begin <= end <= ", t.shape.empty() ? 0 : t.shape[0], ", got ", begin, ", ", end);
            Tensor part = t;
            const size_t row_bytes = t.shape[0] ? t.bytes() / t.shape[0] : 0;
            part.data = static_cast<char*>(t.data) + begin * row_bytes;
            part.shape[0] = end - begin;
            return part;
          },
          py::arg("begin"), py::arg("end"), "A view of rows begin..end-1; keeps the memory alive.")
      .def("__dlpack__",
           [](const Tensor& t, const py::kwargs& how) {
             if (how.contains("copy") && !how["copy"].is_none() && how["copy"].cast<bool>())
               throw py::buffer_error("this tensor is lent and not copied: copy=True is not to be had");
             const py::object own = py::make_tuple(static_cast<int32_t>(t.device.kind), t.device.index);
             if (how.contains("dl_device") && !how["dl_device"].is_none() && !own.equal(how["dl_device"]))
               throw py::buffer_error("this tensor is on " + name_of(t.device) + ": download() it");
             return tensor_to_dlpack(t);
           })
      .def("__dlpack_device__",
           [](const Tensor& t) { return py::make_tuple(static_cast<int32_t>(t.device.kind), t.device.index); })
      .def_property_readonly("dtype", [](const Tensor& t) { return name_of(t.dtype); })
      .def_property_readonly("shape", [](const Tensor& t) { return py::tuple(py::cast(t.shape)); })
      .def_property_readonly("device", [](const Tensor& t) { return name_of(t.device); })
      .def_property_readonly("nbytes", &Tensor::bytes)
      .def_property_readonly("address", [](const Tensor& t) { return reinterpret_cast<uintptr_t>(t.data); })
      .def("__repr__", [](const Tensor& t) {
        return "Tensor(shape=" + std::string(py::str(py::tuple(py::cast(t.shape)))) + ", dtype=" + name_of(t.dtype) +
               ")";
      });
}

}  // namespace simplear

#include "bindings/dlpack.h"

#include "bindings/py_owner.h"
#include "core/check.h"

namespace py = pybind11;

namespace simplear {
namespace {

struct DLDevice {
  int32_t device_type;
  int32_t device_id;
};
struct DLDataType {
  uint8_t code;
  uint8_t bits;
  uint16_t lanes;
};
struct DLTensor {
  void* data;
  DLDevice device;
  int32_t ndim;
  DLDataType dtype;
  int64_t* shape;
  int64_t* strides;
  uint64_t byte_offset;
};
struct DLManagedTensor {
  DLTensor dl_tensor;
  void* manager_ctx;
  void (*deleter)(DLManagedTensor*);
};

constexpr int32_t kCpu = 1;
constexpr uint8_t kInt = 0, kUInt = 1, kFloat = 2, kBFloat = 4;

struct TypePair {
  DLDataType dl;
  DType dtype;
};
constexpr TypePair kTypes[] = {
    {{kFloat, 32, 1}, DType::kFloat32}, {{kBFloat, 16, 1}, DType::kBFloat16}, {{kFloat, 16, 1}, DType::kFloat16},
    {{kInt, 32, 1}, DType::kInt32},     {{kInt, 64, 1}, DType::kInt64},       {{kUInt, 64, 1}, DType::kUInt64},
    {{kUInt, 8, 1}, DType::kUInt8},     {{kInt, 8, 1}, DType::kInt8},
};

bool is_contiguous(const DLTensor& tensor) {
  if (tensor.strides == nullptr) return true;
  int64_t expected = 1;
  for (int32_t d = tensor.ndim; d-- > 0;) {
    if (tensor.shape[d] != 1 && tensor.strides[d] != expected) return false;
    expected *= tensor.shape[d];
  }
  return true;
}

}  // namespace

Tensor tensor_from_dlpack(const py::object& lender) {
  const auto invalid = ErrorKind::kInvalidRequest;
  check(py::hasattr(lender, "__dlpack__"), invalid, "expected an object with __dlpack__, got ",
        std::string(py::str(py::type::of(lender))));
  py::capsule capsule = lender.attr("__dlpack__")();
  auto* managed = capsule.get_pointer<DLManagedTensor>();
  const DLTensor& dl = managed->dl_tensor;
  check(dl.device.device_type == kCpu, invalid, "expected a tensor on the CPU, got DLPack device type ",
        dl.device.device_type);
  check(is_contiguous(dl), invalid, "expected a contiguous tensor: call .contiguous() on it first");
  Tensor tensor;
  bool known = false;
  for (const TypePair& type : kTypes) {
    if (type.dl.code != dl.dtype.code || type.dl.bits != dl.dtype.bits || dl.dtype.lanes != 1) continue;
    tensor.dtype = type.dtype;
    known = true;
  }
  check(known, invalid, "tensor dtype (DLPack code ", int{dl.dtype.code}, ", ", int{dl.dtype.bits},
        " bits) is not one of float32, bfloat16, float16, int32, int64, uint64, uint8");
  tensor.shape.assign(dl.shape, dl.shape + dl.ndim);
  tensor.data = static_cast<char*>(dl.data) + dl.byte_offset;
  PyCapsule_SetName(capsule.ptr(), "used_dltensor");
  tensor.owner = std::shared_ptr<void>(managed, [](void* p) {
    auto* m = static_cast<DLManagedTensor*>(p);
    // A lender's deleter may touch Python objects.
    if (m->deleter && Py_IsInitialized()) {
      py::gil_scoped_acquire gil;
      m->deleter(m);
    }
  });
  return tensor;
}

py::capsule tensor_to_dlpack(const Tensor& tensor) {
  struct Holder {
    DLManagedTensor managed;
    Tensor tensor;
  };
  auto* holder = new Holder{{}, tensor};
  DLTensor& dl = holder->managed.dl_tensor;
  dl.data = tensor.data;
  dl.device = {kCpu, 0};
  dl.ndim = static_cast<int32_t>(tensor.shape.size());
  for (const TypePair& type : kTypes)
    if (type.dtype == tensor.dtype) dl.dtype = type.dl;
  dl.shape = holder->tensor.shape.data();
  dl.strides = nullptr;
  dl.byte_offset = 0;
  holder->managed.manager_ctx = holder;
  holder->managed.deleter = [](DLManagedTensor* m) { delete static_cast<Holder*>(m->manager_ctx); };
  return py::capsule(&holder->managed, "dltensor", [](PyObject* object) {
    // A consumer renames the capsule and takes the tensor over.
    if (!PyCapsule_IsValid(object, "dltensor")) return;
    auto* m = static_cast<DLManagedTensor*>(PyCapsule_GetPointer(object, "dltensor"));
    m->deleter(m);
  });
}

}  // namespace simplear

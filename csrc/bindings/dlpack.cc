#include "bindings/dlpack.h"

#include <algorithm>

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

constexpr const char* kFreshName = "dltensor";

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

DLDevice device_of(const py::object& lender) {
  if (!py::hasattr(lender, "__dlpack_device__")) return {static_cast<int32_t>(DeviceKind::kCpu), 0};
  const auto device = lender.attr("__dlpack_device__")().cast<py::tuple>();
  // Some lenders answer with an enumeration.
  return {py::int_(device[0]).cast<int32_t>(), py::int_(device[1]).cast<int32_t>()};
}

}  // namespace

Tensor tensor_from_dlpack(const py::object& lender, std::optional<uint64_t> stream) {
  const auto invalid = ErrorKind::kInvalidRequest;
  check(py::hasattr(lender, "__dlpack__"), invalid, "expected an object with __dlpack__, got ",
        std::string(py::str(py::type::of(lender))));
  const DLDevice device = device_of(lender);
  const bool is_host = device.device_type == static_cast<int32_t>(DeviceKind::kCpu);
  check(is_host || device.device_type == static_cast<int32_t>(DeviceKind::kCuda) ||
            device.device_type == static_cast<int32_t>(DeviceKind::kSimulated),
        invalid, "expected a tensor on the CPU or a CUDA device, got DLPack device type ", device.device_type);
  // The lender sees to it that what it has enqueued comes before what is enqueued on `stream`; -1: it need not.
  py::dict how;
  if (!is_host) how["stream"] = stream ? py::object(py::int_(*stream)) : py::object(py::int_(-1));
  const py::object capsule = lender.attr("__dlpack__")(**how);
  check(PyCapsule_IsValid(capsule.ptr(), kFreshName), invalid,
        "expected __dlpack__ to give a capsule that nobody has taken over yet, got ", std::string(py::repr(capsule)));
  auto* managed = static_cast<DLManagedTensor*>(PyCapsule_GetPointer(capsule.ptr(), kFreshName));
  const DLTensor& dl = managed->dl_tensor;
  check(is_contiguous(dl), invalid, "expected a contiguous tensor: call .contiguous() on it first");
  Tensor tensor;
  tensor.device = {static_cast<DeviceKind>(dl.device.device_type), dl.device.device_id};
  bool known = false;
  for (const TypePair& type : kTypes) {
    if (type.dl.code != dl.dtype.code || type.dl.bits != dl.dtype.bits || dl.dtype.lanes != 1) continue;
    tensor.dtype = type.dtype;
    known = true;
  }
  check(known, invalid, "tensor dtype (DLPack code ", int{dl.dtype.code}, ", ", int{dl.dtype.bits},
        " bits) is not one of float32, bfloat16, float16, int32, int64, uint64, uint8, int8");
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
  if (tensor.read_only) throw py::buffer_error("this tensor is read-only, which DLPack cannot say: use numpy()");
  const auto* type = std::find_if(std::begin(kTypes), std::end(kTypes),
                                  [&](const TypePair& known) { return known.dtype == tensor.dtype; });
  if (type == std::end(kTypes)) throw py::buffer_error(std::string("DLPack has no dtype ") + name_of(tensor.dtype));
  struct Holder {
    DLManagedTensor managed;
    Tensor tensor;
  };
  auto* holder = new Holder{{}, tensor};
  DLTensor& dl = holder->managed.dl_tensor;
  dl.data = tensor.data;
  dl.device = {static_cast<int32_t>(tensor.device.kind), tensor.device.index};
  dl.ndim = static_cast<int32_t>(tensor.shape.size());
  dl.dtype = type->dl;
  dl.shape = holder->tensor.shape.data();
  dl.strides = nullptr;
  dl.byte_offset = 0;
  holder->managed.manager_ctx = holder;
  holder->managed.deleter = [](DLManagedTensor* m) { delete static_cast<Holder*>(m->manager_ctx); };
  return py::capsule(&holder->managed, kFreshName, [](PyObject* object) {
    // A consumer renames the capsule and takes the tensor over.
    if (!PyCapsule_IsValid(object, kFreshName)) return;
    auto* m = static_cast<DLManagedTensor*>(PyCapsule_GetPointer(object, kFreshName));
    m->deleter(m);
  });
}

}  // namespace simplear

// What the GPU side of the build offers Python.

#include <pybind11/pybind11.h>

#include "bindings/bindings.h"

#ifdef SIMPLEAR_CUDA
#include "cuda/device.h"
#endif

namespace py = pybind11;

namespace simplear {

void bind_cuda(py::module_& m) {
#ifdef SIMPLEAR_CUDA
  m.def("cuda_built", [] { return true; });
  m.def(
      "cuda_devices",
      [] {
        const CudaDevices found = cuda_devices();
        py::list devices;
        for (const CudaDevice& device : found.devices) {
          py::dict entry;
          entry["index"] = device.index;
          entry["name"] = device.name;
          entry["capability"] = py::make_tuple(device.major, device.minor);
          entry["total_memory"] = device.total_memory;
          devices.append(entry);
        }
        return py::make_tuple(devices, found.problem);
      },
      "([{index, name, capability, total_memory}], why the list is empty).");
#else
  m.def("cuda_built", [] { return false; });
  m.def(
      "cuda_devices", [] { return py::make_tuple(py::list(), "built without CUDA"); },
      "([{index, name, capability, total_memory}], why the list is empty).");
#endif
}

}  // namespace simplear

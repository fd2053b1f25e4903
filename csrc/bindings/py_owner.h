// A Python object as the owner of memory that C++ uses, released under the GIL wherever the last user lets go.
#pragma once

#include <pybind11/pybind11.h>

#include <memory>

namespace simplear {

inline std::shared_ptr<void> own(pybind11::object object) {
  return std::shared_ptr<void>(object.release().ptr(), [](void* p) {
    if (!Py_IsInitialized()) return;
    pybind11::gil_scoped_acquire gil;
    Py_DECREF(static_cast<PyObject*>(p));
  });
}

}  // namespace simplear

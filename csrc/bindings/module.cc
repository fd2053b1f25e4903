// simplear_engine._C: the only place, with its neighbours in this folder, that knows Python.

#include <pybind11/pybind11.h>

#include "bindings/bindings.h"
#include "core/check.h"

namespace py = pybind11;

namespace simplear {

// C++ errors become the class of simplear_engine.errors with the same kind.
void bind_errors(py::module_&) {
  py::register_local_exception_translator([](std::exception_ptr pending) {
    try {
      if (pending) std::rethrow_exception(pending);
    } catch (const Error& error) {
      const py::dict by_kind = py::module_::import("simplear_engine.errors").attr("BY_KIND");
      const py::object type = by_kind[error_kind_name(error.kind())];
      PyErr_SetString(type.ptr(), error.what());
    }
  });
}

}  // namespace simplear

PYBIND11_MODULE(_C, m) {
  m.doc() = "The C++ core of simplear_engine.";
  m.attr("version") = SIMPLEAR_VERSION;
  simplear::bind_errors(m);
  simplear::bind_tensor(m);
  simplear::bind_ops(m);
  simplear::bind_engine(m);
  simplear::bind_cuda(m);
}

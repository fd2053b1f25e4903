// The parts of the Python module; each lives in the file of its name.
#pragma once

#include <pybind11/pybind11.h>
#include <unistd.h>

#include <string>

#include "core/dtype.h"

namespace simplear {

DType dtype_from_name(const std::string& name);

// Threads do not survive fork(): whoever owns some leaves them alone in a child, where joining them would never end.
class ThisProcess {
 public:
  bool is_here() const { return getpid() == pid_; }

 private:
  pid_t pid_ = getpid();
};

void bind_errors(pybind11::module_& m);
void bind_tensor(pybind11::module_& m);
void bind_ops(pybind11::module_& m);
void bind_engine(pybind11::module_& m);
void bind_cuda(pybind11::module_& m);

}  // namespace simplear

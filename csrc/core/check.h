// Typed errors, thrown from here and nowhere else in C++.
//
// A kind names a class of simplear_engine/errors.py; the binding raises that class, so a caller catches the same type
// whether Python or C++ noticed the fault.
#pragma once

#include <sstream>
#include <stdexcept>
#include <string>

namespace simplear {

enum class ErrorKind { kInvalidRequest, kCapacity, kQueueFull, kCancelled, kNumerical, kUnsupported, kInternal };

// The `kind` attribute of the Python class.
inline const char* error_kind_name(ErrorKind kind) {
  switch (kind) {
    case ErrorKind::kInvalidRequest: return "invalid_request";
    case ErrorKind::kCapacity: return "capacity";
    case ErrorKind::kQueueFull: return "queue_full";
    case ErrorKind::kCancelled: return "cancelled";
    case ErrorKind::kNumerical: return "numerical";
    case ErrorKind::kUnsupported: return "unsupported";
    case ErrorKind::kInternal: return "internal";
  }
  return "internal";
}

class Error : public std::runtime_error {
 public:
  Error(ErrorKind kind, const std::string& message) : std::runtime_error(message), kind_(kind) {}
  ErrorKind kind() const { return kind_; }

 private:
  ErrorKind kind_;
};

// fail(kind, "x: expected ", 3, ", got ", n)
template <class... Parts>
[[noreturn]] void fail(ErrorKind kind, const Parts&... parts) {
  std::ostringstream message;
  (message << ... << parts);
  throw Error(kind, message.str());
}

template <class... Parts>
void check(bool holds, ErrorKind kind, const Parts&... parts) {
  if (!holds) fail(kind, parts...);
}

}  // namespace simplear

// Letting go of the GIL while C++ works or waits.
#pragma once

#include <pybind11/pybind11.h>

#include <exception>
#include <optional>
#include <type_traits>
#include <utility>

namespace simplear {

// f() without the GIL, which is taken again before the result or the exception of f goes on.
// Why not pybind11's guard: a daemon thread may come back when the interpreter is being torn down. Taking the GIL then
// ends the thread by unwinding its stack, which must not begin in a destructor or in a handler.
template <class F>
auto without_gil(F&& f) -> std::invoke_result_t<F> {
  using Result = std::invoke_result_t<F>;
  constexpr bool kReturns = !std::is_void_v<Result>;
  std::optional<std::conditional_t<kReturns, Result, bool>> result;
  std::exception_ptr error;
  PyThreadState* state = PyEval_SaveThread();
  try {
    if constexpr (kReturns) result.emplace(f());
    else f();
  } catch (...) {
    error = std::current_exception();
  }
  PyEval_RestoreThread(state);
  if (error) std::rethrow_exception(error);
  if constexpr (kReturns) return *std::move(result);
}

// The same for a function as a whole, to be bound in its place.
template <class Result, class... Args>
auto gil_free(Result (*function)(Args...)) {
  return [function](Args... args) -> Result {
    return without_gil([&]() -> Result { return function(std::forward<Args>(args)...); });
  };
}

template <class Result, class Self, class... Args>
auto gil_free(Result (Self::*method)(Args...)) {
  return [method](Self& self, Args... args) -> Result {
    return without_gil([&]() -> Result { return (self.*method)(std::forward<Args>(args)...); });
  };
}

template <class Result, class Self, class... Args>
auto gil_free(Result (Self::*method)(Args...) const) {
  return [method](const Self& self, Args... args) -> Result {
    return without_gil([&]() -> Result { return (self.*method)(std::forward<Args>(args)...); });
  };
}

}  // namespace simplear

#include "core/op.h"

// The linker names the ends of the section.
extern "C" const simplear::OpImpl* const __start_simplear_ops[];
extern "C" const simplear::OpImpl* const __stop_simplear_ops[];

namespace simplear {

std::span<const OpImpl* const> all_ops() { return {__start_simplear_ops, __stop_simplear_ops}; }

const OpImpl* find_op(std::string_view op, std::string_view impl) {
  for (const OpImpl* entry : all_ops())
    if (op == entry->op && impl == entry->impl) return entry;
  return nullptr;
}

}  // namespace simplear

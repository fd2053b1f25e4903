// Which instruction sets were compiled in, which of them this processor has, and which one is used.
#pragma once

#include <string>
#include <vector>

namespace simplear {

// Every instruction set that kernels are compiled for, weakest first.
const std::vector<std::string>& compiled_isas();

// Those that this processor can run, weakest first; "baseline" is always there.
const std::vector<std::string>& available_isas();

// The strongest available one, or the one that SIMPLEAR_CPU_ISA names. Throws kUnsupported for a name that is unknown
// or that this processor lacks.
std::string choose_isa();

}  // namespace simplear

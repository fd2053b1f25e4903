// How many threads this process should compute with: what the machine has, less what this process may not use.
#pragma once

#include <string>
#include <vector>

namespace simplear {

// Physical cores among the processors that this process may run on, but no more than the processor time that its
// control groups grant it (rounded up: half a core is worth a thread), and at least 1. Two hardware threads of one core
// share its vector units and its path to memory, so they count once.
//
// Files are looked for under `root` instead of /, and `processors` stands for the affinity mask where it is not empty;
// both for the tests.
int default_num_threads(const std::string& root = "", std::vector<int> processors = {});

}  // namespace simplear

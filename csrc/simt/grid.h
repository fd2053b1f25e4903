// Runs the grid of a CUDA kernel on the host: one block after the other, the threads of a block as fibers.
//
// A fiber runs until it meets a barrier or a warp operation, so the order of threads between two of these is free, and
// is drawn from a seed: what works in one order only shows. Shared memory starts as NaN. A barrier that some thread
// never reaches, threads that meet at different barriers, and writes past the shared memory end in an Error that names
// the kernel. Nothing here is fast, and nothing here says anything about the speed or the memory model of a GPU.
#pragma once

#include <cstddef>
#include <cstdint>

#include "simt/cuda_language.h"

namespace simplear::simt {

// Calls thread(body) once for every thread of the grid. One grid at a time runs in a process.
void run_grid(const char* kernel, dim3 grid, dim3 block, size_t shared_bytes, void (*thread)(const void*),
              const void* body);

// The order of threads and blocks in all grids from now on; the same seed gives the same order.
void set_schedule_seed(uint64_t seed);

}  // namespace simplear::simt

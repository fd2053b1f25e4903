// Kernels that are wrong, for test_simt.py: each is a mistake that the simulation has to find. Compiled by the test
// with the address sanitizer, which finds the last one.

#include <cstdio>
#include <cstring>
#include <vector>

#include "cuda/ptx.h"

using namespace simplear;
using namespace simplear::simt;

namespace {

// Thread 0 never comes.
void barrier_that_not_all_reach(float*) {
  wait_for_previous_kernel();
  if (threadIdx.x != 0) __syncthreads();
}

void different_barriers(float*) {
  wait_for_previous_kernel();
  if (threadIdx.x < 32) __syncthreads();
  else __syncthreads();
}

void shuffle_that_not_all_reach(float* out) {
  wait_for_previous_kernel();
  if (threadIdx.x % 32 < 31) out[threadIdx.x] = __shfl_xor_sync(0xffffffffu, out[threadIdx.x], 1);
}

void write_behind_shared_memory(float*) {
  wait_for_previous_kernel();
  if (threadIdx.x == 0) dynamic_shared()[64 * sizeof(float)] = 0;
}

// Right in one order of threads only.
void missing_barrier(float* out) {
  wait_for_previous_kernel();
  float* shared = reinterpret_cast<float*>(dynamic_shared());
  shared[threadIdx.x] = static_cast<float>(threadIdx.x);
  out[threadIdx.x] = shared[63 - threadIdx.x];
}

void copy_without_wait(float* out) {
  wait_for_previous_kernel();
  float* shared = reinterpret_cast<float*>(dynamic_shared());
  if (threadIdx.x == 0) copy_async_16(shared, out + 60);
  commit_async_copies();
  __syncthreads();
  out[threadIdx.x] = threadIdx.x < 4 ? shared[threadIdx.x] : static_cast<float>(63 - threadIdx.x);
}

void write_behind_an_array(float* out) {
  wait_for_previous_kernel();
  out[threadIdx.x + 1] = 1;
}

void one_thread_does_not_wait_for_the_previous_kernel(float*) {
  if (threadIdx.x != 40) wait_for_previous_kernel();
}

// A kernel without a fault: out[i] = 63 - i.
void reverse(float* out) {
  wait_for_previous_kernel();
  float* shared = reinterpret_cast<float*>(dynamic_shared());
  shared[threadIdx.x] = static_cast<float>(threadIdx.x);
  __syncthreads();
  out[threadIdx.x] = shared[63 - threadIdx.x];
}

const struct {
  const char* name;
  void (*kernel)(float*);
} kKernels[] = {
    {"barrier_that_not_all_reach", barrier_that_not_all_reach},
    {"different_barriers", different_barriers},
    {"shuffle_that_not_all_reach", shuffle_that_not_all_reach},
    {"write_behind_shared_memory", write_behind_shared_memory},
    {"missing_barrier", missing_barrier},
    {"copy_without_wait", copy_without_wait},
    {"write_behind_an_array", write_behind_an_array},
    {"one_thread_does_not_wait_for_the_previous_kernel", one_thread_does_not_wait_for_the_previous_kernel},
    {"reverse", reverse},
};

}  // namespace

int main(int, char** arguments) {
  std::vector<float> out(64);
  for (int i = 0; i < 64; ++i) out[i] = static_cast<float>(63 - i);
  for (const auto& [name, kernel] : kKernels) {
    if (std::strcmp(name, arguments[1]) != 0) continue;
    Launcher launcher;
    try {
      launch(launcher, name, kernel, {dim3(1), dim3(64), 64 * sizeof(float)}, out.data());
    } catch (const Error& error) {
      std::puts(error.what());
      return 0;
    }
    for (int i = 0; i < 64; ++i)
      if (!(out[i] == static_cast<float>(63 - i))) return std::puts("wrong numbers"), 0;
    std::puts("right");
  }
}

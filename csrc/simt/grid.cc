#include "simt/grid.h"

#include <array>
#include <deque>
#include <memory>
#include <mutex>
#include <new>
#include <numeric>
#include <span>
#include <string>
#include <vector>

#include "core/check.h"
#include "simt/fiber.h"

namespace simplear::simt {

uint3 threadIdx, blockIdx;
dim3 blockDim, gridDim;

namespace {

constexpr int kMaxThreads = 1024;
constexpr size_t kGuardBytes = 64;
constexpr char kGuard = 0x5a;

struct Thread {
  Fiber fiber;
  uint3 index;
  enum { kReady, kAtBarrier, kInWarp, kReturned } state;
  Place place;
  bool has_waited;  // for the previous kernel
  // Asynchronous copies that nobody has waited for.
  struct Copy {
    void* to;
    const void* from;
    size_t bytes;
    int group;
  };
  std::deque<Copy> copies;
  int num_groups = 0;
};

// Two exchanges by turns: nobody comes to the next but one before all have left this one.
struct Warp {
  int num_waiting = 0, turn = 0;
  alignas(16) char in[2][kWarpSize][kExchangeBytes];
  alignas(16) char out[2][kWarpSize][kExchangeBytes];
};

struct Random {
  uint64_t state;
  uint32_t below(uint32_t n) {
    state = state * 6364136223846793005u + 1442695040888963407u;
    return static_cast<uint32_t>((state >> 33) % n);
  }
  void shuffle(std::vector<uint32_t>& order) {
    for (uint32_t i = static_cast<uint32_t>(order.size()); i > 1; --i) std::swap(order[i - 1], order[below(i)]);
  }
};

std::string text_of(const Place& place) {
  std::string file = place.file_name();
  return file.substr(file.rfind('/') + 1) + ":" + std::to_string(place.line());
}

bool is_same(const Place& a, const Place& b) {
  return a.line() == b.line() && a.column() == b.column() && std::string_view(a.file_name()) == b.file_name();
}

constexpr std::align_val_t kSharedAlignment{128};
struct FreeAligned {
  void operator()(char* memory) const { operator delete[](memory, kSharedAlignment); }
};

// The grid that runs now.
struct Grid {
  const char* kernel = nullptr;
  void (*thread)(const void*) = nullptr;
  const void* body = nullptr;
  std::array<Thread, kMaxThreads> thread_memory;
  std::span<Thread> threads;
  std::array<Warp, kMaxThreads / kWarpSize> warps;
  std::unique_ptr<char[], FreeAligned> shared;
  size_t shared_bytes = 0;
  Fiber scheduler;
  Thread* current = nullptr;
  int num_at_barrier = 0, num_returned = 0;
  std::string failure;

  Warp& warp_of(const Thread& t) { return warps[(&t - threads.data()) / kWarpSize]; }
  int lane_of(const Thread& t) { return static_cast<int>((&t - threads.data()) % kWarpSize); }

  // Leaves the current thread for the scheduler, and comes back when it may go on.
  void pause() { current->fiber.switch_to(scheduler); }

  std::string who(const Thread& t) {
    return "kernel " + std::string(kernel) + ", block (" + std::to_string(blockIdx.x) + ", " +
           std::to_string(blockIdx.y) + ", " + std::to_string(blockIdx.z) + "), thread " +
           std::to_string(&t - threads.data());
  }

  void fail_here(const std::string& what) {
    failure = who(*current) + ": " + what;
    for (;;) pause();
  }
};

Grid grid;
std::mutex one_at_a_time;
uint64_t schedule_seed = 0;

void run_thread() {
  grid.thread(grid.body);
  if (!grid.current->has_waited) grid.fail_here("returned without having waited for the previous kernel");
  grid.current->state = Thread::kReturned;
  ++grid.num_returned;
  for (;;) grid.pause();
}

void release_barrier_if_all_came() {
  const int num_threads = static_cast<int>(grid.threads.size());
  if (grid.num_at_barrier == 0 || grid.num_at_barrier + grid.num_returned < num_threads) return;
  if (grid.num_returned > 0) return;  // reported as a deadlock
  const Place& first = grid.threads[0].place;
  for (Thread& t : grid.threads) {
    if (!is_same(t.place, first)) {
      grid.failure = grid.who(t) + ": waits at the barrier in " + text_of(t.place) +
                     " while thread 0 waits at the one in " + text_of(first);
      return;
    }
    t.state = Thread::kReady;
  }
  grid.num_at_barrier = 0;
}

void report_deadlock() {
  for (Thread& t : grid.threads) {
    if (t.state != Thread::kAtBarrier && t.state != Thread::kInWarp) continue;
    const bool in_warp = t.state == Thread::kInWarp;
    grid.failure = grid.who(t) + ": waits at the " + (in_warp ? "warp operation" : "barrier") + " in " +
                   text_of(t.place) + " for threads that never come (" +
                   std::to_string(in_warp ? grid.warp_of(t).num_waiting : grid.num_at_barrier) + " of " +
                   std::to_string(in_warp ? kWarpSize : static_cast<int>(grid.threads.size())) + " wait, " +
                   std::to_string(grid.num_returned) + " have returned)";
    return;
  }
}

void run_block(Random& random, std::vector<uint32_t>& order) {
  for (Thread& t : grid.threads) {
    t.state = Thread::kReady;
    t.has_waited = false;
    t.copies.clear();
    t.num_groups = 0;
    t.fiber.start(&run_thread);
  }
  for (Warp& warp : grid.warps) warp.num_waiting = 0;
  grid.num_at_barrier = grid.num_returned = 0;
  std::memset(grid.shared.get(), 0xff, grid.shared_bytes);
  std::memset(grid.shared.get() + grid.shared_bytes, kGuard, kGuardBytes);
  const int num_threads = static_cast<int>(grid.threads.size());
  while (grid.num_returned < num_threads && grid.failure.empty()) {
    bool has_progress = false;
    random.shuffle(order);
    for (uint32_t i : order) {
      Thread& t = grid.threads[i];
      if (t.state != Thread::kReady) continue;
      has_progress = true;
      grid.current = &t;
      threadIdx = t.index;
      grid.scheduler.switch_to(t.fiber);
      if (!grid.failure.empty()) return;
    }
    release_barrier_if_all_came();
    if (!has_progress && grid.failure.empty() &&
        std::none_of(grid.threads.begin(), grid.threads.end(),
                     [](const Thread& t) { return t.state == Thread::kReady; }) &&
        grid.num_returned < num_threads)
      report_deadlock();
  }
  for (size_t i = 0; i < kGuardBytes; ++i)
    if (grid.shared[grid.shared_bytes + i] != kGuard && grid.failure.empty())
      grid.failure = grid.who(grid.threads[0]) + ": wrote behind its " + std::to_string(grid.shared_bytes) +
                     " bytes of shared memory";
}

}  // namespace

void meet_in_warp(const void* in, size_t in_bytes, void* out, size_t out_bytes, Together together, const void* context,
                  const Place& place) {
  Thread& self = *grid.current;
  Warp& warp = grid.warp_of(self);
  const int lane = grid.lane_of(self), turn = warp.turn;
  if (in_bytes > 0) std::memcpy(warp.in[turn][lane], in, in_bytes);
  self.place = place;
  Thread* const first = &self - lane;
  if (++warp.num_waiting < kWarpSize) {
    self.state = Thread::kInWarp;
    grid.pause();
  } else {
    for (int i = 0; i < kWarpSize; ++i)
      if (!is_same(first[i].place, place))
        grid.fail_here("meets its warp in " + text_of(place) + " while lane " + std::to_string(i) + " is in " +
                       text_of(first[i].place));
    together(warp.in[turn], warp.out[turn], context);
    for (int i = 0; i < kWarpSize; ++i) first[i].state = Thread::kReady;
    warp.num_waiting = 0;
    warp.turn = 1 - turn;
  }
  if (out_bytes > 0) std::memcpy(out, warp.out[turn][lane], out_bytes);
}

void meet_in_block(const Place& place) {
  Thread& self = *grid.current;
  self.state = Thread::kAtBarrier;
  self.place = place;
  ++grid.num_at_barrier;
  grid.pause();
}

void fail_in_kernel(const char* what, const Place& place) {
  grid.fail_here(std::string(what) + " in " + text_of(place));
  __builtin_unreachable();
}

void copy_async(void* to, const void* from, size_t bytes) {
  grid.current->copies.push_back({to, from, bytes, grid.current->num_groups});
}

void commit_copies() { ++grid.current->num_groups; }

void wait_for_copies(int num_groups_left) {
  Thread& self = *grid.current;
  while (!self.copies.empty() && self.copies.front().group < self.num_groups - num_groups_left) {
    const Thread::Copy& copy = self.copies.front();
    std::memcpy(copy.to, copy.from, copy.bytes);
    self.copies.pop_front();
  }
}

void note_wait_for_previous_kernel() { grid.current->has_waited = true; }

char* shared_memory_of_block() { return grid.shared.get(); }

void set_schedule_seed(uint64_t seed) {
  std::lock_guard turn(one_at_a_time);
  schedule_seed = seed;
}

void run_grid(const char* kernel, dim3 grid_size, dim3 block_size, size_t shared_bytes, void (*thread)(const void*),
              const void* body) {
  std::lock_guard turn(one_at_a_time);
  const uint32_t num_threads = block_size.x * block_size.y * block_size.z;
  check(num_threads > 0 && num_threads <= 1024 && num_threads % kWarpSize == 0, ErrorKind::kInternal, "kernel ", kernel,
        ": expected blocks of whole warps, 1024 threads at most, got ", num_threads);
  const uint64_t num_blocks = uint64_t{grid_size.x} * grid_size.y * grid_size.z;
  check(num_blocks > 0 && grid_size.x < (1u << 31) && grid_size.y < 65536 && grid_size.z < 65536, ErrorKind::kInternal,
        "kernel ", kernel, ": a grid of ", grid_size.x, " x ", grid_size.y, " x ", grid_size.z,
        " blocks cannot be launched");
  grid.kernel = kernel;
  grid.thread = thread;
  grid.body = body;
  grid.failure.clear();
  grid.threads = std::span(grid.thread_memory).first(num_threads);
  grid.shared.reset(new (kSharedAlignment) char[shared_bytes + kGuardBytes]);
  grid.shared_bytes = shared_bytes;
  for (uint32_t i = 0; i < num_threads; ++i)
    grid.threads[i].index = {i % block_size.x, i / block_size.x % block_size.y, i / block_size.x / block_size.y};
  blockDim = block_size;
  gridDim = grid_size;

  Random random{schedule_seed * 0x9E3779B97F4A7C15u + num_blocks};
  std::vector<uint32_t> blocks(num_blocks), order(num_threads);
  std::iota(blocks.begin(), blocks.end(), 0u);
  std::iota(order.begin(), order.end(), 0u);
  random.shuffle(blocks);
  for (uint32_t block : blocks) {
    blockIdx = {block % grid_size.x, block / grid_size.x % grid_size.y, block / grid_size.x / grid_size.y};
    run_block(random, order);
    check(grid.failure.empty(), ErrorKind::kInternal, grid.failure);
  }
}

}  // namespace simplear::simt

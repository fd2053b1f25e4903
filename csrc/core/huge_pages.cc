#include "core/huge_pages.h"

#include <sys/mman.h>

#include <cstdint>
#include <mutex>

#include "core/check.h"

namespace simplear {
namespace {

constexpr size_t kHugePage = size_t{2} << 20, kPage = 4096;
constexpr size_t kMinRegion = 4 * kHugePage;

constexpr size_t round_up(size_t bytes, size_t unit) { return (bytes + unit - 1) / unit * unit; }

struct Region {
  char* base;  // as mapped
  size_t length;
  char* free;  // the first byte that nobody has had yet, so it is zero
  char* end;

  // Whole huge pages of at least `bytes`, and one more, so that the first can be aligned.
  explicit Region(size_t bytes) : length(round_up(bytes, kHugePage) + kHugePage) {
    void* mapped = mmap(nullptr, length, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (mapped == MAP_FAILED) fail(ErrorKind::kCapacity, "out of memory: the system refused ", bytes, " bytes");
    base = static_cast<char*>(mapped);
    free = reinterpret_cast<char*>(round_up(reinterpret_cast<uintptr_t>(base), kHugePage));
    end = free + (length - kHugePage);
    madvise(free, end - free, MADV_HUGEPAGE);
  }
  Region(const Region&) = delete;
  Region& operator=(const Region&) = delete;
  ~Region() { munmap(base, length); }

  size_t left() const { return end - free; }
};

std::mutex mutex;
std::weak_ptr<Region> open_region;  // with the most room

}  // namespace

std::shared_ptr<void> allocate_on_huge_pages(size_t bytes) {
  const size_t taken = round_up(bytes, kPage);
  std::lock_guard lock(mutex);
  std::shared_ptr<Region> region = open_region.lock();
  if (!region || region->left() < taken) {
    auto fresh = std::make_shared<Region>(taken < kMinRegion ? kMinRegion : taken);
    if (!region || fresh->left() - taken > region->left()) open_region = fresh;
    region = std::move(fresh);
  }
  char* memory = region->free;
  region->free += taken;
  return {memory, [region, taken](void* p) { madvise(p, taken, MADV_DONTNEED); }};
}

}  // namespace simplear

// Zeroed memory on huge pages, also for tensors that are smaller than one.
//
// A step of a decoder reads every weight once, so each page of 4 KB costs a walk through the page table and starts the
// prefetchers anew. Matrices of 1 MB, one beside the other, were read at 24 GB/s from small pages and at 36 from huge
// ones. So large tensors are carved from regions of whole huge pages, and what the end of one leaves over goes to the
// next smaller one.
#pragma once

#include <cstddef>
#include <memory>

namespace simplear {

// Smaller tensors come from the heap.
constexpr size_t kMinHugePageBytes = size_t{64} << 10;

// Page-aligned. Pages that are never touched cost nothing; all go back to the system when the last owner lets go of the
// memory, whatever lives beside it. Fails with kCapacity.
std::shared_ptr<void> allocate_on_huge_pages(size_t bytes);

}  // namespace simplear

#include "cuda/staging.h"

#include <algorithm>
#include <cstring>

#include "core/check.h"

namespace simplear {
namespace {

constexpr size_t kPieceBytes = size_t{16} << 20;

}  // namespace

Staging::~Staging() {
  // A transfer that failed half-way may have left a copy under way.
  for (Piece& piece : pieces_) try {
      if (piece.count > 0) driver_->synchronize(piece.done.get());
    } catch (const Error&) {
      // A device that is out of order copies nothing.
    }
}

void Staging::finish(Piece& piece) {
  if (piece.count == 0) return;
  driver_->synchronize(piece.done.get());
  if (piece.to != nullptr) std::memcpy(piece.to, piece.memory.data, piece.count);
  piece.count = 0;
}

void Staging::transfer(const Tensor& from, const Tensor& to, Driver::Stream* stream) {
  check(from.bytes() == to.bytes() && from.device.is_host() != to.device.is_host(), ErrorKind::kInternal,
        "transfer: expected as many bytes on the host and on the device, got ", from.bytes(), " on ",
        name_of(from.device), " and ", to.bytes(), " on ", name_of(to.device));
  const size_t bytes = from.bytes();
  if (bytes == 0) return;
  std::lock_guard turn(mutex_);
  const size_t staged = std::min(bytes, kPieceBytes);
  for (Piece& piece : pieces_) {
    if (piece.count > 0) {  // of a transfer that failed: its tensors may be gone
      driver_->synchronize(piece.done.get());
      piece.count = 0;
    }
    if (!piece.done) piece.done = make_event(driver_);
    if (piece.memory.data == nullptr || piece.memory.bytes() < staged)
      piece.memory = pinned_zeros(driver_, {static_cast<int64_t>(staged)}, DType::kUInt8);
  }
  const bool is_upload = from.device.is_host();
  const char* source = static_cast<const char*>(from.data);
  char* target = static_cast<char*>(to.data);
  // Two pieces in turn: one is read from a file or written to memory while the other is on its way.
  int next = 0;
  for (size_t begin = 0; begin < bytes; begin += staged, next ^= 1) {
    Piece& piece = pieces_[next];
    finish(piece);
    const size_t count = std::min(bytes - begin, staged);
    if (is_upload) {
      std::memcpy(piece.memory.data, source + begin, count);
      driver_->copy(target + begin, piece.memory.data, count, stream);
    } else {
      driver_->copy(piece.memory.data, source + begin, count, stream);
    }
    piece.to = is_upload ? nullptr : target + begin;
    piece.count = count;
    driver_->record(piece.done.get(), stream);
  }
  finish(pieces_[next]);
  finish(pieces_[next ^ 1]);
}

}  // namespace simplear

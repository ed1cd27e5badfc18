#include "hetlora/tensor/arena.hpp"

#include <sys/mman.h>

#include <algorithm>
#include <cstdint>

namespace hetlora {
namespace {

constexpr std::int64_t line_bytes = 64;
/// Pages that nobody touches cost nothing, small blocks cost their unused ends.
constexpr std::int64_t least_block_bytes = std::int64_t{32} << 20;

}  // namespace

void prefer_huge_pages(const at::Tensor& fresh) noexcept {
#ifdef MADV_HUGEPAGE
    constexpr std::uintptr_t huge = std::uintptr_t{2} << 20;
    if (!fresh.is_cpu() || fresh.nbytes() < 2 * huge) return;
    const auto address = reinterpret_cast<std::uintptr_t>(fresh.const_data_ptr());
    const std::uintptr_t begin = (address + huge - 1) / huge * huge;
    const std::uintptr_t end = (address + fresh.nbytes()) / huge * huge;
    if (begin < end) ::madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);
#endif
}

const Arena::Block& Arena::room_for(std::int64_t bytes) {
    for (const Block& block : blocks_) {
        if (position_ >= block.begin + block.size) continue;
        if (position_ + bytes <= block.begin + block.size) return block;
        position_ = block.begin + block.size;  // the end of a block stays unused
    }
    const std::int64_t size = std::max({bytes, least_block_bytes, capacity_ / 4 / line_bytes * line_bytes});
    blocks_.push_back({.bytes = at::empty({size}, at::TensorOptions().dtype(at::kByte).device(device_)),
                       .begin = capacity_,
                       .size = size});
    prefer_huge_pages(blocks_.back().bytes);
    capacity_ += size;
    return blocks_.back();
}

at::Tensor Arena::take(at::IntArrayRef shape, at::ScalarType dtype) {
    std::int64_t bytes = static_cast<std::int64_t>(c10::elementSize(dtype));
    for (const auto extent : shape) bytes *= extent;
    bytes = (bytes + line_bytes - 1) / line_bytes * line_bytes;
    const Block& block = room_for(bytes);
    auto* start = static_cast<std::byte*>(block.bytes.mutable_data_ptr()) + (position_ - block.begin);
    position_ += bytes;
    peak_ = std::max(peak_, position_);
    // One call instead of narrow, view, view: small models take hundreds of tensors a millisecond. The device is named,
    // so that nobody asks the driver which one the pointer belongs to.
    return at::for_blob(start, shape)
        .options(at::TensorOptions().dtype(dtype).device(device_))
        .target_device(block.bytes.device())
        .make_tensor();
}

}  // namespace hetlora

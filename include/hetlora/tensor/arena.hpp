// A bump allocator for the activations of a training step: its blocks are reused step after step, so that a step does
// not go back to the system for memory (page faults of fresh blocks cost more than many of the kernels).
#pragma once

#include <vector>

#include "hetlora/tensor/torch.hpp"

namespace hetlora {

/// Asks the system for huge pages behind a large tensor on the CPU that nobody has written to yet: most distributions
/// give them to those who ask only, and passes over gigabytes of weights and activations spend less time in page
/// tables. Does nothing where that is not possible.
void prefer_huge_pages(const at::Tensor& fresh) noexcept;

/// Hands out uninitialised tensors from a list of blocks that only grows. `reset()` makes all of it free again: tensors
/// taken before must no longer be used.
class Arena {
public:
    /// @param dtype of the tensors that are taken without naming one
    Arena(at::ScalarType dtype, at::Device device) : dtype_(dtype), device_(device) {}

    /// An uninitialised tensor of this shape, starting on 64 bytes.
    [[nodiscard]] at::Tensor take(at::IntArrayRef shape) { return take(shape, dtype_); }
    [[nodiscard]] at::Tensor take(at::IntArrayRef shape, at::ScalarType dtype);
    [[nodiscard]] at::Tensor zeros(at::IntArrayRef shape) { return take(shape).zero_(); }

    /// Position to come back to with `release`, for temporaries of a phase (stack discipline).
    [[nodiscard]] std::int64_t mark() const { return position_; }
    void release(std::int64_t mark) { position_ = mark; }

    void reset() { position_ = 0; }

    [[nodiscard]] at::ScalarType dtype() const { return dtype_; }
    [[nodiscard]] at::Device device() const { return device_; }
    /// Bytes of the blocks.
    [[nodiscard]] std::int64_t capacity_bytes() const { return capacity_; }
    /// Bytes in use at the largest moment so far.
    [[nodiscard]] std::int64_t peak_bytes() const { return peak_; }

private:
    struct Block {
        at::Tensor bytes;
        std::int64_t begin = 0;  ///< position of its first byte: the capacity of the blocks before it
        std::int64_t size = 0;
    };
    /// The block that holds position_ and has room for so many bytes after it; position_ moves to where they start.
    [[nodiscard]] const Block& room_for(std::int64_t bytes);

    at::ScalarType dtype_;
    at::Device device_;
    std::vector<Block> blocks_;
    std::int64_t position_ = 0;
    std::int64_t capacity_ = 0;
    std::int64_t peak_ = 0;
};

}  // namespace hetlora

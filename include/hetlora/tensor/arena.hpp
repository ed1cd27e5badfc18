// A bump allocator for the activations of a training step: one block, reused step after step, so that a step does not
// go back to the system for memory (page faults of fresh blocks cost more than many of the kernels).
#pragma once

#include <vector>

#include "hetlora/tensor/torch.hpp"

namespace hetlora {

/// Hands out uninitialised tensors from one block. `reset()` makes the whole block free again: tensors taken before
/// must no longer be used. The block grows between steps to the largest step seen.
class Arena {
public:
    /// @param dtype of the tensors that are taken without naming one
    Arena(at::ScalarType dtype, at::Device device) : dtype_(dtype), device_(device) {}

    /// An uninitialised tensor of this shape, starting on 64 bytes.
    [[nodiscard]] at::Tensor take(at::IntArrayRef shape) { return take(shape, dtype_); }
    [[nodiscard]] at::Tensor take(at::IntArrayRef shape, at::ScalarType dtype);
    [[nodiscard]] at::Tensor zeros(at::IntArrayRef shape) { return take(shape).zero_(); }

    /// Position to come back to with `release`, for temporaries of a phase (stack discipline).
    [[nodiscard]] std::int64_t mark() const { return used_; }
    void release(std::int64_t mark) { used_ = mark; }

    void reset();

    [[nodiscard]] at::ScalarType dtype() const { return dtype_; }
    [[nodiscard]] at::Device device() const { return device_; }
    /// Bytes of the block.
    [[nodiscard]] std::int64_t capacity_bytes() const { return block_.defined() ? block_.numel() : 0; }

private:
    at::ScalarType dtype_;
    at::Device device_;
    at::Tensor block_;                  // bytes
    std::vector<at::Tensor> overflow_;  // what did not fit this time; merged into the block by reset()
    std::int64_t used_ = 0;             // bytes
    std::int64_t wanted_ = 0;
};

}  // namespace hetlora

// One optimiser step of dense tensors that a client trains (a classification head, or all weights of the base), as its
// adapter's: clipping by the common norm, weight decay of everything, SGD or AdamW.
#pragma once

#include <cstdint>
#include <span>

#include "hetlora/train/local_training.hpp"

namespace hetlora {

/// A trained tensor with its gradient and, with AdamW, its two moments (undefined with SGD): contiguous, on the CPU,
/// all of one size and dtype (float32 or float64).
struct DenseTensor {
    at::Tensor theta;
    at::Tensor gradient;
    at::Tensor moment1{};
    at::Tensor moment2{};
};

/// gradients *= min(1, options.clip_norm / (norm of all of them + 1e-6)); then one step of options.optimizer on each.
/// @param step 1-based, of this participation
void update_dense(std::span<const DenseTensor> tensors, const LocalOptions& options, double learning_rate,
                  std::int64_t step);

}  // namespace hetlora

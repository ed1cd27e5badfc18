// What the engine will hold, counted from the model's geometry before anything is allocated.
#pragma once

#include <cstdint>

#include "hetlora/base/adapter_layout.hpp"
#include "hetlora/model/config.hpp"

namespace hetlora {

struct EngineGeometry {
    std::int64_t activation_bytes = 4;  ///< of one element of activations and frozen matrices
    std::int64_t residual_bytes = 4;    ///< of one element of residual stream and adapters
    double frozen_copies = 1.0;         ///< copies of each frozen matrix, in elements of activation_bytes
    bool recompute = false;
    std::int64_t lora_width = 8;  ///< slots of a client, at most
};

struct EngineMemory {
    std::int64_t frozen_bytes = 0;   ///< matrices as they are held, and the rotary table
    std::int64_t bytes_per_row = 0;  ///< activations and temporaries of a training step, for each token row of a pack
    std::int64_t temporary_bytes_per_row = 0;  ///< of them: the temporaries of one layer's backward
    std::int64_t fixed_bytes = 0;              ///< a chunk of logits and its gradient, allocator and library overhead

    /// Bytes of a training step over a pack of this many rows.
    [[nodiscard]] std::int64_t step_bytes(std::int64_t rows) const { return fixed_bytes + rows * bytes_per_row; }
};

[[nodiscard]] EngineMemory engine_memory(const ModelConfig& config, const AdapterLayout& layout,
                                         const EngineGeometry& geometry);

/// Training of all weights by autograd (train/full_training.hpp), one client at a time.
struct FullTrainingGeometry {
    std::int64_t value_bytes = 4;      ///< of a weight and of an activation
    std::int64_t moments = 2;          ///< that the optimiser keeps of every weight
    std::int64_t sum_bytes = 16;       ///< of a weight's place in the sum over clients
    std::int64_t sequence_length = 0;  ///< attention keeps its probabilities
};

/// The same of a run that trains the base: fixed_bytes has a client's copy, its gradients and moments, the sum, and the
/// copy of the last complete round that root keeps.
[[nodiscard]] EngineMemory full_training_memory(const ModelConfig& config, const FullTrainingGeometry& geometry);

}  // namespace hetlora

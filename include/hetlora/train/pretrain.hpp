// Training a base model from scratch: all weights, AdamW, warm-up and cosine, gradient accumulation, checkpoints.
//
// The gradients come from autograd over model/reference.hpp. A run is a pure function of its config and data: batches
// and initial weights are hashed from the seed, so a resumed run equals an uninterrupted one.
#pragma once

#include <filesystem>
#include <functional>

#include "hetlora/config/settings.hpp"
#include "hetlora/model/weights.hpp"

namespace hetlora {

/// What is reported after an optimiser step.
struct PretrainStep {
    std::int64_t step = 0;  ///< 1-based
    double train_loss = 0.0;
    double learning_rate = 0.0;
    double valid_loss = 0.0;  ///< NaN where it was not measured
    std::int64_t tokens_seen = 0;
    double time_s = 0.0;
};

/// Trains a Llama-type model on all training tokens of a prepared text file and writes it to settings.output as a
/// Hugging Face folder; DIR/checkpoint/ holds the state to resume from, DIR/pretrain.jsonl the curve.
/// @param identity hash of config and data; a checkpoint of another identity is refused
/// @throws Error (input) for unusable data or a foreign checkpoint, Error (training) for a loss that is not finite
void pretrain(const PretrainSettings& settings, std::uint64_t seed, const std::string& identity, bool resume,
              const std::function<void(const PretrainStep&)>& report);

/// Learning rate of a step (1-based): linear warm-up, then cosine to final_fraction of the peak at the last step.
[[nodiscard]] double pretrain_rate(const PretrainSettings& settings, std::int64_t step);

/// Hashed initial weights: N(0, 0.02), output projections of the residual branches divided by sqrt(2 layers), norms 1.
[[nodiscard]] LlamaWeights initial_weights(const ModelConfig& config, std::uint64_t seed);

}  // namespace hetlora

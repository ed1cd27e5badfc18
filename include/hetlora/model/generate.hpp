// Text generation with a key-value cache: several prompts at once, greedy or by temperature.
#pragma once

#include <cstdint>
#include <vector>

#include "hetlora/model/engine.hpp"

namespace hetlora {

struct GenerationOptions {
    std::int64_t max_new_tokens = 64;
    double temperature = 0.0;  ///< 0: greedy
    std::uint64_t seed = 0;    ///< of the draws at temperature > 0: hashed with the prompt's index and the step
    std::vector<std::int64_t> stop_ids;
};

/// Continues every prompt until a stop token (which is not part of the result) or max_new_tokens.
/// @param adapter a group with one client whose adapter is used for all prompts, times `scale`; null: the base alone
/// @throws Error (input) for an empty prompt or one that leaves no position for a new token
[[nodiscard]] std::vector<std::vector<std::int32_t>> generate(Engine& engine, AdapterGroup* adapter, double scale,
                                                              const std::vector<std::vector<std::int32_t>>& prompts,
                                                              const GenerationOptions& options);

}  // namespace hetlora

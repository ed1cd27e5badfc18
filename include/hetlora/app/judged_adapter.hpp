// The adapter that `evaluate` and `generate` are given: a PEFT folder, a run's folder, or one of its checkpoints.
#pragma once

#include <filesystem>
#include <optional>
#include <vector>

#include "hetlora/app/experiment.hpp"

namespace hetlora {

struct JudgedAdapter {
    std::vector<double> values;  ///< canonical form at lora.rank_max
    std::vector<double> head;    ///< classification: the head's values; else empty
};

/// @param folder of a PEFT adapter; of a run (its newest whole checkpoint, which is the final one of a run that has
///        ended); or RUN/checkpoint/round_NNNNNN. Empty: the zero adapter, and the head that a run starts from
/// @throws Error (input) for what cannot be read, does not fit the model, or has no head where labels are judged;
///         Error (usage) for a checkpoint of a method whose result is no one adapter (a changed base, own factors)
[[nodiscard]] JudgedAdapter judged_adapter(const std::optional<std::filesystem::path>& folder,
                                           const Experiment& experiment);

}  // namespace hetlora

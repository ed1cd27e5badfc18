// The names that strategy.preset accepts, aliases included, so that a wrong one is reported with all other mistakes of
// a config. What they mean: the table in fed/strategy_presets.cpp (a test compares the two).
#pragma once

#include <string>
#include <vector>

namespace hetlora {

[[nodiscard]] const std::vector<std::string>& strategy_names();

/// Methods whose lora_ranks follow a schedule over all rounds, so that the number of rounds belongs to a run's
/// identity.
[[nodiscard]] bool has_rank_schedule(const std::string& strategy_name);

}  // namespace hetlora

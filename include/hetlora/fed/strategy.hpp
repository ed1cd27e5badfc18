// A federated method as a choice on independent policies, and the table of named methods.
//
// A preset is one row of policies; every policy key of the section [strategy] overrides the row. Nothing else in the
// program asks for a method's name: it asks for its policies.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "hetlora/config/settings.hpp"

namespace hetlora {

/// What a client receives of the global adapter: its leading lora_rank slots.
enum class SlotSelect { prefix };
/// What is averaged: the factors A and B, each on its own.
enum class Merge { factors };
/// What a client trains.
enum class Trainable { both };

/// A method, fully resolved. All of it comes from the preset's row, then from the keys of [strategy].
struct Strategy {
    std::string preset;  ///< canonical name of the row it started from
    SlotSelect slot_select = SlotSelect::prefix;
    Trainable trainable = Trainable::both;
    LocalExtra local_extra = LocalExtra::tail_prune;
    ClientWeight client_weight = ClientWeight::sparsity;
    Merge merge = Merge::factors;
    SlotNorm slot_norm = SlotNorm::all;
    Aggregate aggregate = Aggregate::parameters;
    /// The rule is only defined (or only called by this name) when all clients have one lora_rank.
    bool requires_equal_lora_ranks = false;

    double prune_gamma = 0.99;
    double prune_lambda = 0.01;
    PruneReference prune_reference = PruneReference::received;
    PruneRounding prune_rounding = PruneRounding::floor;
    double tail_norm_epsilon = 0.0;
    WeightScope weight_scope = WeightScope::client;
    WeightNorm weight_norm = WeightNorm::root_sum_squares;
    bool weight_includes_scale = false;
    KeepUncovered keep_uncovered = KeepUncovered::no;
    std::int64_t rank_min = 2;  ///< pruning never goes below it

    [[nodiscard]] bool prunes() const { return local_extra == LocalExtra::tail_prune; }
};

/// One row of the preset table.
struct StrategyPreset {
    std::string_view name;
    std::vector<std::string_view> aliases;
    SlotNorm slot_norm;
    ClientWeight client_weight;
    LocalExtra local_extra;
    Aggregate aggregate;
    bool requires_equal_lora_ranks;
    std::string_view paper;
    std::string_view description;  ///< one line
};

[[nodiscard]] const std::vector<StrategyPreset>& strategy_presets();

/// The row of this name or alias. @throws Error (usage) with the nearest known name
[[nodiscard]] const StrategyPreset& find_strategy_preset(std::string_view name);

/// Preset plus overrides.
/// @throws Error (usage) for an unknown preset, a value out of range, or a combination that makes no sense, with the
///         reason
[[nodiscard]] Strategy resolve_strategy(const Settings& settings);

/// Checks what a strategy asks of the drawn ranks.
/// @throws Error (usage) if it needs equal lora_ranks and these differ
void check_lora_ranks(const Strategy& strategy, std::span<const std::int64_t> lora_ranks);

/// The table of all presets, one line each, for `hetlora strategies`.
[[nodiscard]] std::string strategy_table();

/// One preset in full for `hetlora strategies NAME`: equations, policies, defaults with their reasons, deviations.
/// @throws Error (usage) with the nearest known name
[[nodiscard]] std::string strategy_description(std::string_view name);

}  // namespace hetlora

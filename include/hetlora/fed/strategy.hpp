// A federated method as a choice on independent policies, and the table of named methods.
//
// A preset is one row of policies; every policy key of the section [strategy] overrides the row. Nothing else in the
// program asks for a method's name: it asks for its policies.
#pragma once

#include <cstdint>
#include <map>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "hetlora/config/settings.hpp"

namespace hetlora {

/// The choices that make a method; each is a key of [strategy] of the same name. The defaults are those of `zeropad`.
struct Policies {
    /// Which lora_rank slots of the global adapter a client trains: the leading ones, a hashed choice of the round,
    /// those of most energy, or the (matrix, slot) pairs that a first pass over its data scores highest.
    SlotSelect slot_select = SlotSelect::prefix;
    Receive receive = Receive::selected;     ///< only these slots, or all of them with the others frozen
    SlotScale slot_scale = SlotScale::none;  ///< sketch: scale times rank_max / lora_rank
    /// Factors that train; alternate: B in odd rounds, A in even ones; base: no adapter, all weights of the base.
    Trainable trainable = Trainable::both;
    LocalExtra local_extra = LocalExtra::none;
    SharedFactors shared_factors = SharedFactors::both;  ///< a: B is never sent, every client keeps its own
    ClientWeight client_weight = ClientWeight::samples;
    Merge merge = Merge::factors;
    SlotNorm slot_norm = SlotNorm::all;
    Aggregate aggregate = Aggregate::parameters;
    FactorSplit factor_split = FactorSplit::left;  ///< merge = product: B = U S, both sqrt(S), or A = S V^T
    BaseUpdate base_update = BaseUpdate::none;
    ServerOptimizer server_optimizer = ServerOptimizer::none;
    RankSchedule rank_schedule = RankSchedule::none;
    KeepUncovered keep_uncovered = KeepUncovered::no;
    bool operator==(const Policies&) const = default;
};

/// One row of the preset table.
struct StrategyPreset {
    std::string_view name;
    std::vector<std::string_view> aliases;
    Policies policies;
    /// The rule is only defined (or only called by this name) when all clients have one lora_rank.
    bool requires_equal_lora_ranks = false;
    std::string_view paper;
    std::string_view description;         ///< one line
    std::vector<std::string_view> notes;  ///< defaults with their reasons, deviations, what other public code does
};

/// The parts of a method that a plugin (strategy.plugin) takes over from the policies.
struct OwnParts {
    bool select = false;
    bool weight = false;
    bool merge = false;
    bool penalty = false;
    bool operator==(const OwnParts&) const = default;
};

/// A method, fully resolved: the preset's row, then the keys of [strategy].
struct Strategy : Policies {
    std::string preset;  ///< canonical name of the row it started from
    bool requires_equal_lora_ranks = false;
    OwnParts own;  ///< adopt_own_parts()

    double prune_gamma = 0.99;
    double prune_lambda = 0.01;
    PruneReference prune_reference = PruneReference::received;
    PruneRounding prune_rounding = PruneRounding::floor;
    double tail_norm_epsilon = 0.0;
    WeightScope weight_scope = WeightScope::client;
    WeightNorm weight_norm = WeightNorm::root_sum_squares;
    bool weight_includes_scale = false;
    std::int64_t rank_min = 2;  ///< pruning never goes below it
    std::int64_t rank_max = 32;
    double keep_energy = 0.95;
    double prox_mu = 0.01;
    double server_learning_rate = 1.0;
    double server_beta1 = 0.9;
    double server_beta2 = 0.99;
    double server_epsilon = 1e-3;
    std::vector<std::int64_t> rank_levels;  ///< ascending; filled from the clients' lora_ranks where not given
    double anneal_start = 0.2;

    [[nodiscard]] bool prunes() const { return local_extra == LocalExtra::tail_prune; }
    /// Rounds end with a low-rank change of the frozen base on every mpi_rank.
    [[nodiscard]] bool updates_base() const { return base_update != BaseUpdate::none; }
    /// Clients train all weights of the base and send their changes; there is no adapter (it is 0, and nobody sends
    /// it).
    [[nodiscard]] bool trains_base() const { return trainable == Trainable::base; }
    /// The adapter starts afresh in every round, since the round's result is in the base.
    [[nodiscard]] bool restarts() const { return merge == Merge::stack; }
    /// Root needs every client's factors, not only their sum.
    [[nodiscard]] bool gathers_uploads() const {
        return own.merge || merge != Merge::factors || base_update == BaseUpdate::residual;
    }
    /// Every mpi_rank adds its clients' factors up, and root gets the sums.
    [[nodiscard]] bool sums_uploads() const { return merge == Merge::factors && !own.merge && !trains_base(); }
    /// Every client keeps a factor of its own, and is evaluated with it.
    [[nodiscard]] bool is_personal() const { return shared_factors != SharedFactors::both; }
    /// Slots are chosen per client, so that they are not the leading ones.
    [[nodiscard]] bool selects() const {
        return slot_select == SlotSelect::random || slot_select == SlotSelect::importance;
    }
};

/// Which of the two factors, A [r, d_in] and B [d_out, r].
struct Factors {
    bool a = true;
    bool b = true;
    bool operator==(const Factors&) const = default;
};
/// The factors that clients train in a round (1-based).
[[nodiscard]] Factors trained_factors(const Strategy& strategy, std::int64_t round);
/// The factors that clients send and the server averages in a round; the other one stays as it is on the server.
[[nodiscard]] Factors sent_factors(const Strategy& strategy, std::int64_t round);

/// The largest lora_rank of a round under rank_schedule: rank_max in the first anneal_start of the rounds, then falling
/// geometrically to rank_min in the last round. Without a schedule: rank_max.
[[nodiscard]] std::int64_t lora_rank_cap(const Strategy& strategy, std::int64_t round, std::int64_t rounds);

[[nodiscard]] const std::vector<StrategyPreset>& strategy_presets();

/// The row of this name or alias. @throws Error (usage) with the nearest known name
[[nodiscard]] const StrategyPreset& find_strategy_preset(std::string_view name);

/// Preset plus overrides.
/// @throws Error (usage) for an unknown preset, a value out of range, or a combination that makes no sense, with the
///         reason
[[nodiscard]] Strategy resolve_strategy(const Settings& settings);

/// Gives parts of a method to a plugin. What it does not take stays the policies'.
/// @throws Error (usage) if a key of [strategy] says the same as such a part, or if the rest cannot go with it
void adopt_own_parts(Strategy& strategy, const OwnParts& own, const Settings& settings);

/// Checks what a strategy asks of the drawn ranks, and fills rank_levels where they come from these.
/// @throws Error (usage) if it needs equal lora_ranks and these differ, or if one of them is no rank level
void fit_to_lora_ranks(Strategy& strategy, std::span<const std::int64_t> lora_ranks);

/// A policy's key and value as in a config.
struct PolicyValue {
    std::string_view key;
    std::string_view value;
};
/// Every policy, in the order in which a round uses them.
[[nodiscard]] std::vector<PolicyValue> policy_values(const Policies& policies);

/// The policies as "slot_select=prefix receive=selected ...", every one named: for people and for the log.
[[nodiscard]] std::string policies_text(const Policies& policies);

/// What a run's log says of its method, by name: every policy as it is used, the preset's own name, and rank_levels.
[[nodiscard]] std::map<std::string, std::string> logged_strategy(const Strategy& strategy);

/// The table of all presets, one line each, for `hetlora strategies`.
[[nodiscard]] std::string strategy_table();

/// One preset in full for `hetlora strategies NAME`: equations, policies, defaults with their reasons, deviations.
/// @throws Error (usage) with the nearest known name
[[nodiscard]] std::string strategy_description(std::string_view name);

}  // namespace hetlora

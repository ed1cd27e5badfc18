// Who trains in a round, in which packs, and where: a pure function of (seed, round, population, options).
//
// The cohort is the clients_per_round eligible clients with the smallest
//     hash_seed(seed_sampling, Purpose::sampling, round, client)          (ties by client index).
// Packs (clients that train in one batched pass) are made from the cohort list alone. How many mpi_ranks there are only
// decides who trains which pack (assign_packs), so it cannot change any result.
#pragma once

#include <cstdint>
#include <limits>
#include <vector>

#include "hetlora/fed/population.hpp"

namespace hetlora {

struct Settings;

struct PlanOptions {
    std::uint64_t seed_sampling = 0;
    std::int64_t clients_per_round = 0;                                     ///< 0 = all eligible clients
    std::int64_t steps = 0;                                                 ///< local steps; 0 where epochs are set
    std::int64_t epochs = 0;                                                ///< local epochs; 0 where steps are set
    std::int64_t batch_size = 1;                                            ///< windows of a local step
    std::int64_t pack_tokens = 1;                                           ///< aimed-at rows of a pack's step, > 0
    std::int64_t lora_rank_cap = std::numeric_limits<std::int64_t>::max();  ///< of this round (lora_rank_cap())
};

/// @param pack_tokens the resolved value (never 0 = auto), the same on every mpi_rank
[[nodiscard]] PlanOptions plan_options(const Settings& settings, std::int64_t pack_tokens);

/// One client of the cohort.
struct PlannedClient {
    std::int64_t client = 0;
    std::int64_t lora_rank = 0;
    std::int64_t n_steps = 0;
    std::int64_t rows_per_step = 0;  ///< estimate: mean rows of its windows, rounded up, times the batch
    std::int64_t pack = 0;
    /// Its places in the global adapter, ascending, where a plugin chose them; empty: by strategy.slot_select.
    std::vector<std::int64_t> own_slots{};
};

/// Clients that train together.
struct Pack {
    std::vector<std::int64_t> members;  ///< positions in RoundPlan::cohort, by (LoRA width, descending rows, client)
    std::int64_t rows_per_step = 0;     ///< sum of the members' estimates
    std::int64_t max_steps = 0;
    std::int64_t cost = 0;  ///< estimated rows over all steps: sum of n_steps * rows_per_step
};

struct RoundPlan {
    std::int64_t round = 0;
    std::vector<PlannedClient> cohort;  ///< by client index; positions in it are "cohort indices"
    std::vector<Pack> packs;
};

/// @throws Error (usage) if there are fewer eligible clients than clients_per_round, Error (input) if there is none
[[nodiscard]] RoundPlan make_round_plan(std::int64_t round, const Population& population, const PlanOptions& options);

/// mpi_rank of every pack: the most expensive pack first, always to the mpi_rank with the least work so far
/// (ties: lower pack, lower mpi_rank).
[[nodiscard]] std::vector<int> assign_packs(const RoundPlan& plan, int mpi_size);

/// The packs of one mpi_rank, ascending.
[[nodiscard]] std::vector<std::int64_t> packs_of(const std::vector<int>& assignment, int mpi_rank);

}  // namespace hetlora

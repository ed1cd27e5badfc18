// HetLoRA's rank self-pruning: where the tail starts, how large it is, and whether a client gives it up.
#pragma once

#include <cstdint>
#include <span>

#include "hetlora/base/adapter_layout.hpp"
#include "hetlora/fed/strategy.hpp"

namespace hetlora {

/// g, the first slot of the tail of a client of this lora_rank:
///     g = max(rank_min, round(gamma * lora_rank)),  rounded by strategy.prune_rounding.
/// A tolerance of 1e-9 keeps products such as 0.7 * 90, which double puts just below 63, on their integer.
/// g >= lora_rank means that there is no tail (always so without tail_prune).
[[nodiscard]] std::int64_t tail_start(std::int64_t lora_rank, const Strategy& strategy);

/// sum over matrices of ||Bt[first_slot:]||_F * ||A[first_slot:]||_F, in fp64; 0 for an empty tail.
/// @param factors canonical form at lora_rank
[[nodiscard]] double tail_norm_product(const AdapterLayout& layout, std::span<const double> factors,
                                       std::int64_t lora_rank, std::int64_t first_slot);

struct PruneDecision {
    bool pruned = false;
    std::int64_t lora_rank_after = 0;
    double before = 0.0;  ///< tail of the reference factors
    double after = 0.0;   ///< tail of the trained factors
};

/// Decides once, after local training: pruned iff after < before (strictly) and the tail is not empty.
/// before is the tail of the factors as received this round, or with prune_reference = initial that of the adapter at
/// the start of the run, where B = 0 makes it 0 (such a client never prunes).
/// @param received, trained canonical form at lora_rank; `received` as it was before the first step
[[nodiscard]] PruneDecision decide_prune(const AdapterLayout& layout, std::span<const double> received,
                                         std::span<const double> trained, std::int64_t lora_rank,
                                         const Strategy& strategy);

}  // namespace hetlora

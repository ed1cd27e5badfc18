// The server's step on root: from the weighted sums of a round to the next global adapter.
//
//   slot i of matrix m, A and Bt alike:   new = base + sum_k s_k,m slot_i(k, m) / Z_m,i
//
//   Z_m,i   slot_norm = all: sum of s_k,m over all clients that were not dropped (a missing slot counts as zeros)
//           contributors:   over those that have slot i
//           replicate:      all, and a missing slot counts as the weighted mean over the clients of the largest
//                           lora_rank (second half of the sums)
//           if that sum is 0: every such client counts 1 (the sums come unweighted then, see aggregate.hpp)
//   base    0 for aggregate = parameters, the old global adapter for deltas
//   a slot that no client has (uncovered), parameters form:
//           keep_uncovered = no: 0 | last: the old values | refill: fresh A row as at the start, B = 0
//   deltas: uncovered slots keep their values, since nothing is added
//
// Z is summed in fp64 in cohort order, the division is fp64, and a run in fp32 rounds the result once.
// All clients dropped: the global adapter stays as it is.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "hetlora/base/adapter_layout.hpp"
#include "hetlora/fed/client_report.hpp"
#include "hetlora/fed/initial_adapter.hpp"
#include "hetlora/fed/strategy.hpp"

namespace hetlora {

/// Everything the merge of one round needs.
struct MergeInput {
    const AdapterLayout& layout;
    const Strategy& strategy;
    std::int64_t round = 0;
    std::span<const ClientReport> reports;  ///< in cohort order, dropped ones included
    Factors sent{};                         ///< the factor that was not sent keeps its previous values
    std::int64_t largest_lora_rank = 0;     ///< as in RoundScope
    std::span<const double> sums;           ///< from reduce_uploads(): P(rank_max), or twice that (replicate)
    std::span<const double> previous;       ///< P(rank_max), the global adapter that was sent out
    AdapterInitLaw init;                    ///< rank_max, rounding, and the law of refilled rows
};

/// State of the slots of a global adapter.
struct SlotStatistics {
    /// Slots that can still learn: some matrix has a non-zero row of A or column of B in them.
    std::int64_t slots_alive = 0;
    /// energy[i] = sum_m ||A_m[i]||^2 ||B_m[i]||^2 over the same summed over all slots: each slot's own rank-one
    /// product, without the cross terms between slots, so that it is never negative. All 0 while B = 0.
    std::vector<double> energy;
    /// Clients of the cohort whose upload had the slot.
    std::vector<std::int64_t> n_contributors;
};

struct MergeResult {
    std::vector<double> global;  ///< P(rank_max)
    /// Weight of every client, normalised over the cohort (0 for dropped ones; mean over matrices where the weights
    /// differ by matrix). With slot_norm = contributors the weight within a slot is larger where clients lack it.
    std::vector<double> client_weight;
    SlotStatistics slots;
    bool changed = false;  ///< false if all clients were dropped
};

/// @throws Error (bug) if sizes do not fit or a weight is negative or not finite
[[nodiscard]] MergeResult merge_uploads(const MergeInput& input);

/// Statistics of an adapter at rank_max; n_contributors is counted from the reports (may be empty: round 0).
[[nodiscard]] SlotStatistics slot_statistics(const AdapterLayout& layout, std::span<const double> global,
                                             std::int64_t rank_max, std::span<const ClientReport> reports);

/// Weights normalised over the clients that were not dropped, in cohort order (see MergeResult::client_weight).
[[nodiscard]] std::vector<double> normalised_weights(std::span<const ClientReport> reports, std::size_t n_matrices);

}  // namespace hetlora

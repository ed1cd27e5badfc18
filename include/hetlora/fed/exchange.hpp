// The collectives of one round, all in this file. Their number is fixed (it does not depend on what happened), and
// every mpi_rank calls every one of them, in this order:
//
//   1. broadcast_adapter       root's global adapter to all
//                              (and root's classification head, model.task = classification)
//      broadcast_own_slots     the slots that a plugin chose on root (strategy.plugin with select)
//   2. (agree() over the training of this round, comm/agree.hpp)
//   3. gather_reports          one record per client to root (then a plugin's weights to all: weigh_by_plugin)
//   4. reduce_uploads          flags of used weights to all, then the weighted sums to root (merge = factors)
//      gather_uploads          every client's factors to root (methods that need them)
//      broadcast_base_change   what root made of them for the frozen base to all (base_update)
//      exchange_base           trainable = base: the weighted sums of the weights' changes to root, the new weights to
//                              all, a piece at a time
//      reduce_heads            the weighted sums of the classification heads to root
//   5. reduce_drift            in the rounds that log.spectra looks at: sums of unit updates to root
//   6. broadcast_lora_ranks    the ranks after pruning, from root's reports to every population
#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <vector>

#include "hetlora/comm/transport.hpp"
#include "hetlora/config/settings.hpp"
#include "hetlora/fed/aggregate.hpp"
#include "hetlora/fed/client_report.hpp"
#include "hetlora/fed/dense_sum.hpp"
#include "hetlora/fed/drift.hpp"
#include "hetlora/fed/low_rank.hpp"
#include "hetlora/fed/plan.hpp"
#include "hetlora/fed/population.hpp"

namespace hetlora {

/// Copies root's global adapter (canonical form) to all mpi_ranks.
/// With Precision::fp32 the values travel as fp32, and root's own copy is rounded too, so that all have the same bits.
void broadcast_adapter(Transport& transport, std::span<double> global, Precision wire);

/// Collects every mpi_rank's reports.
/// @return on root all reports in cohort order, elsewhere nothing
/// @throws Error (bug) on root if a client of the plan is missing or reported twice
[[nodiscard]] std::vector<ClientReport> gather_reports(Transport& transport, const RoundPlan& plan,
                                                       std::span<const ClientReport> mine);

/// Sums the accumulators of all mpi_ranks.
/// @return on root P(rank_max) sums in canonical form, elsewhere nothing. With the exact reduction these are the fp64
///         values nearest to the exact sums, whatever the number of mpi_ranks
[[nodiscard]] std::vector<double> reduce_uploads(Transport& transport, UploadAccumulator& accumulator);

/// The sums of all mpi_ranks' classification heads: on root, elsewhere nothing.
[[nodiscard]] std::vector<double> reduce_heads(Transport& transport, const DenseSum& heads);

/// What is done with a piece of an exchange: the values from place `first` on.
using DensePiece = std::function<void(std::size_t first, std::span<double> values)>;
/// Adds up the mpi_ranks' sums, a piece at a time: root's `merge` replaces the sums of a piece by new values, and
/// `take` gets these on every mpi_rank, rounded as broadcast_adapter() does.
void exchange_base(Transport& transport, const DenseSum& changes, Precision wire, const DensePiece& merge,
                   const DensePiece& take);

/// What one client sent, where root needs every client's factors.
struct GatheredUpload {
    std::int64_t cohort_index = 0;
    std::vector<double> factors;  ///< canonical form at the lora_rank after pruning; empty: dropped
};
/// @return on root one for every client of the plan, in cohort order (dropped clients have no factors); elsewhere
///         nothing
[[nodiscard]] std::vector<GatheredUpload> gather_uploads(Transport& transport, const RoundPlan& plan,
                                                         std::span<const GatheredUpload> mine);

/// Copies root's change of the base to all mpi_ranks. An empty one becomes one with no slots in any matrix.
void broadcast_base_change(Transport& transport, LowRankDelta& change, const AdapterLayout& layout);

/// The clients' mean pairwise cosines, one per matrix: on root, elsewhere nothing.
[[nodiscard]] std::vector<double> reduce_drift(Transport& transport, const UpdateDrift& drift);

/// Copies root's own_slots of the cohort (lora_rank of each client) to all mpi_ranks.
void broadcast_own_slots(Transport& transport, RoundPlan& plan);

/// Writes the cohort's lora_ranks after pruning into every mpi_rank's population (dropped clients keep theirs).
/// @param reports root's reports in cohort order; ignored elsewhere
void broadcast_lora_ranks(Transport& transport, const RoundPlan& plan, std::span<const ClientReport> reports,
                          Population& population);

}  // namespace hetlora

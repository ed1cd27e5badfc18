// One federated round, from the global adapter to the next one. Read this file and round.cpp to know what a round is:
//
//   all    plan    = make_round_plan(seed, round, population)        pure function: cohort, lora_ranks, packs
//   all    broadcast the global adapter (and the classification head) collective
//   root   a plugin's select, told to all                             collective, where there is one
//   each   train the packs of this mpi_rank (client_work.hpp)         no communication
//   all    agree that everybody succeeded                             collective
//   all    gather reports; take over a plugin's weights, where there
//          are any; reduce the weighted sums to root, or
//          gather the factors where the method needs them             collective
//   root   merge: the next global adapter, and what goes into the base
//   all    apply the change of the base, where there is one, or the
//          mean of the clients' trained weights (trainable = base)    collective
//   all    take over the lora_ranks after pruning                     collective
#pragma once

#include <vector>

#include "hetlora/comm/transport.hpp"
#include "hetlora/config/settings.hpp"
#include "hetlora/fed/aggregate.hpp"
#include "hetlora/fed/drift.hpp"
#include "hetlora/fed/initial_adapter.hpp"
#include "hetlora/fed/merge.hpp"
#include "hetlora/fed/plan.hpp"
#include "hetlora/fed/private_factors.hpp"
#include "hetlora/fed/server_state.hpp"
#include "hetlora/fed/strategy.hpp"
#include "hetlora/plugin/method.hpp"
#include "hetlora/train/local_training.hpp"

namespace hetlora {

/// What all rounds of an experiment share. References must outlive the rounds.
struct RoundContext {
    Transport& transport;
    Engine& engine;
    const Corpus& corpus;
    Population& population;
    UploadAccumulator& accumulator;
    const Settings& settings;
    const Strategy& strategy;
    AdapterInitLaw init;
    PlanOptions plan;
    PrivateFactors* private_factors = nullptr;  ///< where strategy.is_personal()
    UpdateDrift* drift = nullptr;               ///< on every mpi_rank where the round's drift is wanted, else on none
    const ClassHeadShape* head = nullptr;       ///< of ServerState::head; null: next tokens
    plugin::Method* own = nullptr;              ///< strategy.plugin, for the parts in strategy.own
};

/// A participation as a replay needs it; gathered only where a trace is wanted.
struct TracedClient {
    std::int64_t cohort_index = 0;
    std::vector<double> received;  ///< canonical form at the lora_rank before training (rank_max for receive = all)
    std::vector<double>
        sent;  ///< canonical form at the lora_rank after pruning; as trained where the client was dropped
    std::vector<std::int64_t> slots;  ///< chosen for the client, ascending; empty: its leading ones
    std::vector<StepRecord> steps;
    std::vector<double> head;  ///< classification: as trained
};

/// What root knows after a round; elsewhere only `plan` is filled.
struct RoundOutcome {
    RoundPlan plan;
    std::vector<ClientReport> reports;  ///< in cohort order
    std::vector<TracedClient> traced;   ///< in cohort order; empty without output.trace
    MergeResult merge;
    std::vector<double> client_cosines;  ///< per matrix (drift.hpp); empty without RoundContext::drift
    double learning_rate = 0.0;
    std::int64_t base_delta_bytes = 0;  ///< what a real client would have to receive of this round's change of the base
    double t_train_s = 0.0;             ///< of the slowest mpi_rank
    double t_comm_s = 0.0;              ///< root's time in collectives, waiting for slower mpi_ranks included
    double t_aggregate_s = 0.0;         ///< root's time in the merge
};

/// s in W0 + s B A of a client of this lora_rank (lora.scale_rule). Only `constant` is the same for all.
[[nodiscard]] double lora_scale(const LoraSettings& settings, std::int64_t lora_rank);

/// Runs round `round` (1-based) from `state` (root's values count; everybody's global is overwritten with them).
/// @throws AgreedError on every mpi_rank if one of them failed; Error (training) on every mpi_rank if clients were
/// dropped
///         and the policy says stop, or more than half of the cohort was
[[nodiscard]] RoundOutcome run_round(const RoundContext& context, std::int64_t round, ServerState& state);

}  // namespace hetlora

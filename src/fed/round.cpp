#include "hetlora/fed/round.hpp"

#include <algorithm>
#include <cmath>

#include "hetlora/base/error.hpp"
#include "hetlora/base/stop_request.hpp"
#include "hetlora/base/timer.hpp"
#include "hetlora/comm/agree.hpp"
#include "hetlora/fed/base_average.hpp"
#include "hetlora/fed/base_work.hpp"
#include "hetlora/fed/client_work.hpp"
#include "hetlora/fed/exchange.hpp"
#include "hetlora/fed/gathered_merge.hpp"
#include "hetlora/fed/head_average.hpp"
#include "hetlora/fed/own_method.hpp"
#include "hetlora/fed/trace_exchange.hpp"
#include "hetlora/model/flat_weights.hpp"

namespace hetlora {
namespace {

std::int64_t largest_lora_rank(const RoundPlan& plan) {
    return std::ranges::max_element(plan.cohort, {}, &PlannedClient::lora_rank)->lora_rank;
}

/// Trains the packs of this mpi_rank; every mpi_rank learns whether all succeeded.
ClientWork train_packs(const RoundContext& context, const RoundPlan& plan, const ServerState& server) {
    ClientWork work;
    if (context.head != nullptr) work.heads.emplace(context.settings.comm.reduction, server.head.size());
    if (context.strategy.trains_base()) {
        work.base.emplace(context.settings.comm.reduction, FlatWeights(context.engine.weights()).size());
    }
    context.accumulator.begin(
        {.sent = sent_factors(context.strategy, plan.round), .largest_lora_rank = largest_lora_rank(plan)});
    if (context.drift != nullptr) context.drift->clear();
    skip_wait_for_look();
    agree(context.transport, fmt::format("training round {}", plan.round), [&] {
        throw_if_stop_requested();  // an MPI rank without packs, too
        const auto assignment = assign_packs(plan, context.transport.mpi_size());
        const std::vector<std::int64_t> packs = packs_of(assignment, context.transport.mpi_rank());
        if (context.strategy.trains_base()) return train_base_packs(context, plan, packs, work);
        for (const std::int64_t pack : packs) {
            train_one_pack(context, plan, plan.packs[static_cast<std::size_t>(pack)], server, work);
        }
    });
    return work;
}

/// Non-finite clients: too many of them, or any where the policy says so, end the run on every mpi_rank.
void check_dropped(const RoundContext& context, std::int64_t round, std::span<const ClientReport> reports) {
    agree(context.transport, "checking the clients' losses", [&] {
        std::vector<std::int64_t> dropped;
        for (const auto& report : reports) {
            if (report.dropped) dropped.push_back(report.client);
        }
        if (dropped.empty()) return;
        const bool too_many = 2 * dropped.size() > reports.size();
        if (!too_many && context.settings.local.on_nonfinite == OnNonfinite::drop) return;
        throw training_error(
            "round {}: {} of {} clients ended with a loss or an adapter that is not finite or too large to be summed "
            "(client {}{}): lower "
            "local.learning_rate or set local.clip_norm{}",
            round, dropped.size(), reports.size(), dropped.front(), dropped.size() > 1 ? " and others" : "",
            too_many ? "" : ", or let local.on_nonfinite = drop leave such clients out");
    });
}

/// Root's plugin chooses the slots of the cohort.
void choose_slots_by_plugin(const RoundContext& context, std::span<const double> global, RoundPlan& plan) {
    agree(context.transport, fmt::format("choosing slots for round {}", plan.round), [&] {
        if (context.transport.is_root()) {
            choose_own_slots(*context.own, context.engine.layout(), context.init, global, plan);
        }
    });
    broadcast_own_slots(context.transport, plan);
}

/// Root's plugin weighs the cohort; every mpi_rank then adds up what its clients sent.
void weigh_by_plugin(const RoundContext& context, const ClientWork& work, RoundOutcome& outcome) {
    std::vector<double> weights(outcome.plan.cohort.size());
    agree(context.transport, fmt::format("weighing the clients of round {}", outcome.plan.round), [&] {
        if (!context.transport.is_root()) return;
        weights = own_weights(*context.own, outcome.plan.round, outcome.reports);
        for (std::size_t i = 0; i < weights.size(); ++i) {
            if (outcome.reports[i].dropped) continue;
            outcome.reports[i].weights.assign(context.engine.layout().matrices.size(), weights[i]);
        }
    });
    context.transport.broadcast_values(weights);
    agree(context.transport, "adding up the uploads", [&] { add_held_uploads(context, weights, work.held); });
}

/// What root has of the cohort's uploads: their sums, or each on its own, or both.
struct Inbox {
    std::vector<double> sums;
    std::vector<GatheredUpload> uploads;
};

Inbox collect(const RoundContext& context, const RoundPlan& plan, std::span<const GatheredUpload> mine) {
    Inbox inbox;
    if (context.strategy.sums_uploads()) inbox.sums = reduce_uploads(context.transport, context.accumulator);
    if (context.strategy.gathers_uploads()) inbox.uploads = gather_uploads(context.transport, plan, mine);
    return inbox;
}

/// Root's step of the round: fills outcome.merge and state.global. @return what goes into the base
LowRankDelta merge_on_root(const RoundContext& context, const Inbox& inbox, ServerState& state, RoundOutcome& outcome) {
    const Strategy& strategy = context.strategy;
    const GatheredMerge gathered{.layout = context.engine.layout(),
                                 .strategy = strategy,
                                 .reports = outcome.reports,
                                 .uploads = inbox.uploads,
                                 .previous = state.global,
                                 .init = context.init,
                                 .lora = context.settings.lora};
    if (strategy.trains_base()) {  // average_base() merges
        outcome.merge = keep_adapter(gathered);
        outcome.merge.slots = slot_statistics(context.engine.layout(), state.global, context.init.rank_max, {});
        return {};
    }
    if (strategy.own.merge) {
        outcome.merge = own_merge(*context.own, gathered, outcome.plan.round);
        state.global = outcome.merge.global;
        return {};
    }
    LowRankDelta base_change;
    switch (strategy.merge) {
        case Merge::factors:
            outcome.merge = merge_uploads({.layout = context.engine.layout(),
                                           .strategy = strategy,
                                           .round = outcome.plan.round,
                                           .reports = outcome.reports,
                                           .sent = sent_factors(strategy, outcome.plan.round),
                                           .largest_lora_rank = largest_lora_rank(outcome.plan),
                                           .sums = inbox.sums,
                                           .previous = state.global,
                                           .init = context.init});
            if (strategy.base_update == BaseUpdate::residual) {
                base_change = residual_of(gathered, outcome.merge.global);
            }
            break;
        case Merge::product:
            outcome.merge = merge_products(gathered);
            break;
        case Merge::stack:
            outcome.merge = keep_adapter(gathered);
            base_change = stack_of(gathered);
            break;
    }
    if (outcome.merge.changed) {
        apply_server_optimizer(strategy,
                               {.layout = context.engine.layout(),
                                .rank_max = context.init.rank_max,
                                .sent = sent_factors(strategy, outcome.plan.round),
                                .round_to_fp32 = context.init.round_to_fp32},
                               state, outcome.merge.global);
    }
    outcome.merge.slots =
        slot_statistics(context.engine.layout(), outcome.merge.global, context.init.rank_max, outcome.reports);
    state.global = outcome.merge.global;
    return base_change;
}

/// Every mpi_rank's frozen matrices take over root's change.
void change_base(const RoundContext& context, LowRankDelta& change, RoundOutcome& outcome) {
    broadcast_base_change(context.transport, change, context.engine.layout());
    agree(context.transport, "changing the base", [&] {
        for (std::size_t m = 0; m < change.matrices.size(); ++m) {
            const LowRankMatrix& matrix = change.matrices[m];
            if (matrix.lora_rank > 0) context.engine.add_to_base(m, matrix.a, matrix.bt);
        }
    });
    outcome.base_delta_bytes = change.bytes(context.settings.model.precision == Precision::fp64 ? 8 : 4);
}

/// Every mpi_rank's weights take over the mean of the clients' changes.
void average_base(const RoundContext& context, const DenseSum& changes, std::span<const ClientReport> reports) {
    const FlatWeights weights(context.engine.weights());
    const double total = total_weight(reports);
    std::vector<double> previous;
    exchange_base(
        context.transport, changes, context.settings.model.precision,
        [&](std::size_t first, std::span<double> values) {
            previous.resize(values.size());
            weights.read(first, previous);
            add_mean_change(values, total, context.init.round_to_fp32, previous);
            std::ranges::copy(previous, values.begin());
        },
        [&](std::size_t first, std::span<const double> values) { context.engine.set_weights(first, values); });
}

/// Clients that keep a factor of their own have stored it in this round.
void note_private_factors(const RoundContext& context, const RoundPlan& plan, std::span<const ClientReport> reports) {
    std::vector<std::int64_t> stored(plan.cohort.size());
    for (std::size_t i = 0; i < reports.size(); ++i) stored[i] = reports[i].dropped ? 0 : 1;
    context.transport.broadcast_values(stored);
    for (std::size_t i = 0; i < stored.size(); ++i) {
        if (stored[i] != 0) context.population.set_private_round(plan.cohort[i].client, plan.round);
    }
}

/// The time that the slowest mpi_rank spent on its clients.
double slowest_training_s(std::span<const ClientReport> reports, int mpi_size) {
    std::vector<double> train_s(static_cast<std::size_t>(mpi_size), 0.0);
    for (const auto& report : reports) train_s[static_cast<std::size_t>(report.mpi_rank)] += report.t_train_s;
    return std::ranges::max(train_s);
}

}  // namespace

double lora_scale(const LoraSettings& settings, std::int64_t lora_rank) {
    switch (settings.scale_rule) {
        case ScaleRule::alpha_over_rank:
            return settings.lora_alpha / static_cast<double>(lora_rank);
        case ScaleRule::rslora:
            return settings.lora_alpha / std::sqrt(static_cast<double>(lora_rank));
        case ScaleRule::constant:
            break;
    }
    return settings.scale;
}

RoundOutcome run_round(const RoundContext& context, std::int64_t round, ServerState& state) {
    Transport& transport = context.transport;
    const Strategy& strategy = context.strategy;
    RoundOutcome outcome;
    PlanOptions plan_options = context.plan;
    plan_options.lora_rank_cap = lora_rank_cap(strategy, round, context.settings.experiment.rounds);
    // Planning looks at the data of the cohort, which may be damaged or out of reach.
    agree(transport, fmt::format("planning round {}", round),
          [&] { outcome.plan = make_round_plan(round, context.population, plan_options); });
    outcome.learning_rate = local_options(context, round).learning_rate;
    Stopwatch watch;
    broadcast_adapter(transport, state.global, context.settings.model.precision);
    if (context.head != nullptr) broadcast_adapter(transport, state.head, context.settings.model.precision);
    outcome.t_comm_s += watch.lap();

    if (strategy.own.select) choose_slots_by_plugin(context, state.global, outcome.plan);
    ClientWork work = train_packs(context, outcome.plan, state);
    watch.lap();

    outcome.reports = gather_reports(transport, outcome.plan, work.reports);
    check_dropped(context, round, outcome.reports);
    if (strategy.own.weight) weigh_by_plugin(context, work, outcome);
    const Inbox inbox = collect(context, outcome.plan, work.uploads);
    const std::vector<double> head_sums =
        context.head != nullptr ? reduce_heads(transport, *work.heads) : std::vector<double>();
    if (context.drift != nullptr) outcome.client_cosines = reduce_drift(transport, *context.drift);
    if (context.settings.output.trace) outcome.traced = gather_trace(transport, work.traced);
    outcome.t_comm_s += watch.lap();

    LowRankDelta base_change;
    agree(transport, fmt::format("merging round {}", round), [&] {
        if (!transport.is_root()) return;
        base_change = merge_on_root(context, inbox, state, outcome);
        if (context.head != nullptr) {
            state.head = average_head(head_sums, outcome.reports, state.head, context.init.round_to_fp32);
        }
        outcome.t_train_s = slowest_training_s(outcome.reports, transport.mpi_size());
    });
    if (strategy.updates_base()) change_base(context, base_change, outcome);
    if (strategy.trains_base()) average_base(context, *work.base, outcome.reports);
    outcome.t_aggregate_s = watch.lap();
    broadcast_lora_ranks(transport, outcome.plan, outcome.reports, context.population);
    if (strategy.is_personal()) note_private_factors(context, outcome.plan, outcome.reports);
    outcome.t_comm_s += watch.lap();
    return outcome;
}

}  // namespace hetlora

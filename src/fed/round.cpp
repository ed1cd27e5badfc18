#include "hetlora/fed/round.hpp"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "hetlora/base/error.hpp"
#include "hetlora/base/stop_request.hpp"
#include "hetlora/base/timer.hpp"
#include "hetlora/comm/agree.hpp"
#include "hetlora/fed/exchange.hpp"
#include "hetlora/fed/prune.hpp"
#include "hetlora/fed/trace_exchange.hpp"
#include "hetlora/fed/weights.hpp"

namespace hetlora {
namespace {

LocalOptions local_options(const RoundContext& context, std::int64_t round) {
    const LocalSettings& local = context.settings.local;
    return {.optimizer = local.optimizer,
            .learning_rate =
                scheduled_rate(local.lr_schedule, local.learning_rate, round, context.settings.experiment.rounds,
                               local.lr_warmup_rounds, local.lr_final_fraction),
            .weight_decay = local.weight_decay,
            .clip_norm = local.clip_norm,
            .beta1 = local.adam_beta1,
            .beta2 = local.adam_beta2,
            .epsilon = local.adam_epsilon,
            .tail_lambda = context.strategy.prunes() ? context.strategy.prune_lambda : 0.0,
            .tail_norm_epsilon = context.strategy.tail_norm_epsilon,
            .dropout = context.settings.lora.dropout,
            .batch_size = local.batch_size,
            .seed_data = context.settings.experiment.seed_data,
            .round = round};
}

ClientReport make_report(const ClientOutcome& outcome, const PlannedClient& planned, std::int64_t cohort_index,
                         int mpi_rank) {
    ClientReport report;
    report.cohort_index = cohort_index;
    report.client = outcome.client;
    report.lora_rank_before = planned.lora_rank;
    report.lora_rank_after = planned.lora_rank;
    report.n_steps = std::ssize(outcome.steps);
    report.n_rows = outcome.n_tokens;
    for (const StepRecord& step : outcome.steps) {
        report.n_tokens += step.n_loss_tokens;
        report.loss_sum += step.loss * static_cast<double>(step.n_loss_tokens);
    }
    report.loss_first = outcome.steps.front().loss;
    report.loss_last = outcome.steps.back().loss;
    report.t_train_s = outcome.time_s;
    report.pack = planned.pack;
    report.mpi_rank = mpi_rank;
    report.dropped = !outcome.finite;
    return report;
}

/// Prunes a client and adds what it sends to this mpi_rank's sums. A client whose adapter cannot be summed is left out
/// as one that is not finite: its training diverged just as well, and it must not end the others' run.
/// @param sent in: the trained factors at report.lora_rank_before, out: what is sent at report.lora_rank_after
void upload_client(const RoundContext& context, std::span<const double> received, std::vector<double>& sent,
                   ClientReport& report) {
    const AdapterLayout& layout = context.engine.layout();
    const std::int64_t lora_rank = report.lora_rank_before;
    std::int64_t lora_rank_after = lora_rank;
    std::vector<double> kept;
    if (context.strategy.prunes()) {
        const PruneDecision decision = decide_prune(layout, received, sent, lora_rank, context.strategy);
        report.tail_before = decision.before;
        report.tail_after = decision.after;
        if (decision.pruned) {
            lora_rank_after = decision.lora_rank_after;
            kept.resize(static_cast<std::size_t>(layout.parameters(lora_rank_after)));
            resize_adapter<double>(layout, sent, lora_rank, kept, lora_rank_after);
        }
    }
    const std::vector<double>& upload = kept.empty() ? sent : kept;
    std::vector<double> weights = client_weights(context.strategy, layout,
                                                 {.factors = upload,
                                                  .lora_rank = lora_rank_after,
                                                  .n_samples = report.n_samples,
                                                  .lora_scale = lora_scale(context.settings.lora, lora_rank_after)});
    try {
        context.accumulator.add({.client = report.client,
                                 .factors = upload,
                                 .lora_rank = lora_rank_after,
                                 .received = received,
                                 .received_lora_rank = lora_rank,
                                 .weights = weights});
    } catch (const Error& error) {
        if (error.code() != ExitCode::training) throw;
        report.dropped = true;
        return;
    }
    if (context.drift != nullptr) context.drift->add(upload, lora_rank_after, received, lora_rank);
    report.weights = std::move(weights);
    report.lora_rank_after = lora_rank_after;
    if (!kept.empty()) sent = std::move(kept);
}

/// Trains one pack, prunes each client and adds what it sends to this mpi_rank's sums.
void train_one_pack(const RoundContext& context, const RoundPlan& plan, const Pack& pack, const LocalOptions& options,
                    std::span<const double> global, std::vector<ClientReport>& reports,
                    std::vector<TracedClient>& traced) {
    const AdapterLayout& layout = context.engine.layout();
    const std::int64_t rank_max = context.init.rank_max;
    std::vector<std::vector<double>> received;
    std::vector<ClientTask> tasks;
    for (const std::int64_t member : pack.members) {
        const PlannedClient& planned = plan.cohort[static_cast<std::size_t>(member)];
        auto& factors = received.emplace_back(static_cast<std::size_t>(layout.parameters(planned.lora_rank)));
        resize_adapter<double>(layout, global, rank_max, factors, planned.lora_rank);
        tasks.push_back({.client = planned.client,
                         .lora_rank = planned.lora_rank,
                         .tail_start = context.strategy.prunes() ? tail_start(planned.lora_rank, context.strategy)
                                                                 : planned.lora_rank,
                         .n_steps = planned.n_steps,
                         .scale = lora_scale(context.settings.lora, planned.lora_rank),
                         .received = factors});
    }
    std::vector<ClientOutcome> outcomes = train_pack(context.engine, context.corpus, tasks, options);
    for (std::size_t i = 0; i < outcomes.size(); ++i) {
        const std::int64_t member = pack.members[i];
        const PlannedClient& planned = plan.cohort[static_cast<std::size_t>(member)];
        ClientReport report = make_report(outcomes[i], planned, member, context.transport.mpi_rank());
        report.learning_rate = options.learning_rate;
        report.n_samples = static_cast<double>(context.population.at(planned.client).n_windows);
        std::vector<double> sent = std::move(outcomes[i].trained);
        if (!report.dropped) upload_client(context, received[i], sent, report);
        if (context.settings.output.trace) {
            traced.push_back({.cohort_index = member, .sent = std::move(sent), .steps = std::move(outcomes[i].steps)});
        }
        reports.push_back(std::move(report));
    }
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

RoundOutcome run_round(const RoundContext& context, std::int64_t round, std::vector<double>& global) {
    Transport& transport = context.transport;
    RoundOutcome outcome;
    outcome.plan = make_round_plan(round, context.population, context.plan);
    Stopwatch watch;
    broadcast_adapter(transport, global, context.settings.model.precision);
    outcome.t_comm_s += watch.lap();

    const LocalOptions options = local_options(context, round);
    outcome.learning_rate = options.learning_rate;
    std::vector<ClientReport> mine;
    std::vector<TracedClient> traced;
    context.accumulator.clear();
    if (context.drift != nullptr) context.drift->clear();
    skip_wait_for_look();
    agree(transport, fmt::format("training round {}", round), [&] {
        throw_if_stop_requested();  // an MPI rank without packs, too
        const auto assignment = assign_packs(outcome.plan, transport.mpi_size());
        for (const std::int64_t pack : packs_of(assignment, transport.mpi_rank())) {
            train_one_pack(context, outcome.plan, outcome.plan.packs[static_cast<std::size_t>(pack)], options, global,
                           mine, traced);
        }
        outcome.t_train_s = watch.lap();
    });

    outcome.reports = gather_reports(transport, outcome.plan, mine);
    check_dropped(context, round, outcome.reports);
    const std::vector<double> sums = reduce_uploads(transport, context.accumulator);
    if (context.drift != nullptr) outcome.client_cosines = reduce_drift(transport, *context.drift);
    if (context.settings.output.trace) outcome.traced = gather_trace(transport, traced);
    outcome.t_comm_s += watch.lap();

    agree(transport, fmt::format("merging round {}", round), [&] {
        if (!transport.is_root()) return;
        outcome.merge = merge_uploads({.layout = context.engine.layout(),
                                       .strategy = context.strategy,
                                       .round = round,
                                       .reports = outcome.reports,
                                       .sums = sums,
                                       .previous = global,
                                       .init = context.init});
        std::vector<double> train_s(static_cast<std::size_t>(transport.mpi_size()), 0.0);
        for (const auto& report : outcome.reports)
            train_s[static_cast<std::size_t>(report.mpi_rank)] += report.t_train_s;
        outcome.t_train_s = 0.0;
        for (const double seconds : train_s) outcome.t_train_s = std::max(outcome.t_train_s, seconds);
        global = outcome.merge.global;
    });
    outcome.t_aggregate_s = watch.lap();
    broadcast_lora_ranks(transport, outcome.plan, outcome.reports, context.population);
    outcome.t_comm_s += watch.lap();
    return outcome;
}

}  // namespace hetlora

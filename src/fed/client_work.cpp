#include "hetlora/fed/client_work.hpp"

#include <algorithm>
#include <cmath>

#include "hetlora/base/error.hpp"
#include "hetlora/fed/own_method.hpp"
#include "hetlora/fed/prune.hpp"
#include "hetlora/fed/slot_choice.hpp"
#include "hetlora/fed/true_bytes.hpp"
#include "hetlora/fed/weights.hpp"

namespace hetlora {
namespace {

TrainedFactors factors_to_train(const Strategy& strategy, std::int64_t round) {
    const Factors factors = trained_factors(strategy, round);
    if (factors.a && factors.b) return TrainedFactors::both;
    return factors.a ? TrainedFactors::a_only : TrainedFactors::b_only;
}

/// Calls visit(where B^T of a matrix begins in an adapter, where in the B of all matrices put together, values).
template <typename Visit>
void for_each_b(const AdapterLayout& layout, std::int64_t lora_rank, Visit visit) {
    std::size_t at = 0;
    for (std::size_t m = 0; m < layout.matrices.size(); ++m) {
        const auto n = static_cast<std::size_t>(lora_rank * layout.matrices[m].d_out);
        visit(static_cast<std::size_t>(layout.offset_b(m, lora_rank)), at, n);
        at += n;
    }
}

std::size_t b_values(const AdapterLayout& layout, std::int64_t lora_rank) {
    return static_cast<std::size_t>(lora_rank * values_per_slot(layout, {.a = false, .b = true}));
}

/// The places of the slots that a client trained, where they are not its leading ones: chosen for it, or (scored) those
/// that some matrix trained.
std::vector<std::int32_t> places(const Distribution& distribution, std::size_t n_matrices) {
    if (!distribution.slots.empty()) return {distribution.slots.begin(), distribution.slots.end()};
    std::vector<std::int32_t> slots;
    if (distribution.trained_slots.empty()) return slots;
    const auto width = static_cast<std::size_t>(distribution.received_lora_rank);
    for (std::size_t slot = 0; slot < width; ++slot) {
        for (std::size_t m = 0; m < n_matrices; ++m) {
            if (distribution.trained_slots[m * width + slot] == 0) continue;
            slots.push_back(static_cast<std::int32_t>(slot));
            break;
        }
    }
    return slots;
}

/// Trains one epoch with everything that can train in the round, and leaves each client the pairs that moved most.
void score_slots(const RoundContext& context, std::span<const ClientTask> tasks, const LocalOptions& options,
                 std::span<Distribution> distributions) {
    const AdapterLayout& layout = context.engine.layout();
    std::vector<ClientTask> epoch(tasks.begin(), tasks.end());
    for (ClientTask& task : epoch) {
        const std::int64_t windows = context.population.at(task.client).n_windows;
        task.n_steps = (windows + options.batch_size - 1) / options.batch_size;
    }
    const std::vector<ClientOutcome> outcomes =
        train_pack(context.engine, context.corpus, epoch, options, context.head);
    for (std::size_t i = 0; i < epoch.size(); ++i) {
        const auto scores = slot_scores(layout, {.received = epoch[i].received,
                                                 .trained = outcomes[i].trained,
                                                 .lora_rank = epoch[i].lora_rank,
                                                 .factors = epoch[i].trained_factors});
        const std::int64_t budget = distributions[i].lora_rank * std::ssize(layout.matrices);
        distributions[i].trained_slots = choose_slots(scores, budget);
    }
}

/// A client's update for the drift of the round, at its places in the global adapter.
void add_to_drift(const RoundContext& context, std::span<const double> sent, std::span<const double> received,
                  std::span<const std::int32_t> places) {
    const AdapterLayout& layout = context.engine.layout();
    const auto slots_of = [&](std::span<const double> adapter) {
        return std::ssize(adapter) / layout.parameters_per_slot();
    };
    if (places.empty() || slots_of(sent) != std::ssize(places)) {
        context.drift->add(sent, slots_of(sent), received, slots_of(received));
        return;
    }
    const std::int64_t rank_max = context.init.rank_max;
    const std::vector<std::int64_t> slots(places.begin(), places.end());
    std::vector<double> sent_placed(static_cast<std::size_t>(layout.parameters(rank_max)));
    std::vector<double> received_placed(sent_placed.size());
    place_slots<double>(layout, sent, slots, sent_placed, rank_max);
    place_slots<double>(layout, received, slots, received_placed, rank_max);
    context.drift->add(sent_placed, rank_max, received_placed, rank_max);
}

/// What waits for a plugin's weight must not turn out to be too large for the sum later on: with any such weight it
/// fits.
/// @throws Error (training) if it is
void check_summable(std::int64_t client, std::span<const double> sent, std::span<const double> received) {
    constexpr double limit = ExactSum::largest_term / (8.0 * largest_own_weight);
    for (const auto values : {sent, received}) {
        for (const double value : values) {
            if (std::abs(value) < limit) continue;
            throw training_error("client {}: its adapter holds {}, too large to be summed: its training diverged",
                                 client, value);
        }
    }
}

/// Prunes a client, weighs what it sends and hands it to the server's side of this mpi_rank. A client whose adapter
/// cannot be summed is left out as one that is not finite: its training diverged just as well, and it must not end the
/// others' run.
/// @param sent in: the trained factors at the received lora_rank, out: what is sent at report.lora_rank_after
void upload_client(const RoundContext& context, std::int64_t round, const Distribution& distribution,
                   std::vector<double>& sent, ClientReport& report, ClientWork& work) {
    const AdapterLayout& layout = context.engine.layout();
    const Strategy& strategy = context.strategy;
    std::int64_t upload_lora_rank = distribution.received_lora_rank;
    std::span<const double> received = distribution.received;
    std::vector<double> received_slots;
    std::vector<std::int32_t> slots = places(distribution, layout.matrices.size());
    if (strategy.prunes()) {
        const PruneDecision decision = decide_prune(layout, received, sent, report.lora_rank_before, strategy);
        report.tail_before = decision.before;
        report.tail_after = decision.after;
        if (decision.pruned) {
            std::vector<double> kept(static_cast<std::size_t>(layout.parameters(decision.lora_rank_after)));
            resize_adapter<double>(layout, sent, report.lora_rank_before, kept, decision.lora_rank_after);
            sent = std::move(kept);
            report.lora_rank_after = upload_lora_rank = decision.lora_rank_after;
        }
    } else if (strategy.receive == Receive::all && !distribution.slots.empty()) {
        upload_lora_rank = std::ssize(distribution.slots);
        std::vector<double> own(static_cast<std::size_t>(layout.parameters(upload_lora_rank)));
        received_slots.resize(own.size());
        select_slots<double>(layout, sent, distribution.received_lora_rank, distribution.slots, own);
        select_slots<double>(layout, received, distribution.received_lora_rank, distribution.slots, received_slots);
        sent = std::move(own);
        received = received_slots;
    }
    const bool whole = strategy.slot_select == SlotSelect::scored;  // the masked pairs are those that did not change
    if (strategy.own.weight) report.product_norms_squared = product_norms_squared(layout, sent, upload_lora_rank);
    report.weights = client_weights(strategy, layout,
                                    {.factors = sent,
                                     .lora_rank = upload_lora_rank,
                                     .n_samples = report.n_samples,
                                     .lora_scale = lora_scale(context.settings.lora, upload_lora_rank)});
    report.bytes_up = true_bytes_up(strategy, layout,
                                    {.round = round,
                                     .lora_rank_before = report.lora_rank_before,
                                     .lora_rank_after = report.lora_rank_after,
                                     .value_bytes = context.settings.model.precision == Precision::fp64 ? 8 : 4});
    try {
        const std::int64_t received_lora_rank = strategy.prunes() ? report.lora_rank_before : upload_lora_rank;
        if (strategy.sums_uploads() && strategy.own.weight) {
            check_summable(report.client, sent, received);
            work.held.push_back({.cohort_index = report.cohort_index,
                                 .client = report.client,
                                 .factors = sent,
                                 .lora_rank = upload_lora_rank,
                                 .slots = slots,
                                 .received = {},
                                 .received_lora_rank = received_lora_rank});
            if (strategy.aggregate == Aggregate::deltas)
                work.held.back().received.assign(received.begin(), received.end());
        } else if (strategy.sums_uploads()) {
            context.accumulator.add({.client = report.client,
                                     .factors = sent,
                                     .lora_rank = upload_lora_rank,
                                     .slots = whole ? std::span<const std::int32_t>() : std::span(slots),
                                     .received = received,
                                     .received_lora_rank = received_lora_rank,
                                     .weights = report.weights});
        }
        if (strategy.gathers_uploads()) {
            work.uploads.push_back({.cohort_index = report.cohort_index, .factors = sent});
        }
    } catch (const Error& error) {
        if (error.code() != ExitCode::training) throw;
        report.dropped = true;
        report.weights.clear();
        report.lora_rank_after = report.lora_rank_before;
        return;
    }
    if (context.drift != nullptr) add_to_drift(context, sent, received, slots);
    report.slots = std::move(slots);
    if (strategy.is_personal()) {
        std::vector<double> own(b_values(layout, upload_lora_rank));
        for_each_b(layout, upload_lora_rank, [&](std::size_t in_adapter, std::size_t in_own, std::size_t n) {
            std::copy_n(sent.begin() + static_cast<std::ptrdiff_t>(in_adapter), n,
                        own.begin() + static_cast<std::ptrdiff_t>(in_own));
        });
        context.private_factors->store(report.client, round, own);
    }
}

}  // namespace

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

void add_held_uploads(const RoundContext& context, std::span<const double> weights, std::span<const HeldUpload> held) {
    for (const HeldUpload& upload : held) {
        const std::vector<double> of_matrices(context.engine.layout().matrices.size(),
                                              weights[static_cast<std::size_t>(upload.cohort_index)]);
        context.accumulator.add({.client = upload.client,
                                 .factors = upload.factors,
                                 .lora_rank = upload.lora_rank,
                                 .slots = upload.slots,
                                 .received = upload.received,
                                 .received_lora_rank = upload.received_lora_rank,
                                 .weights = of_matrices});
    }
}

LocalOptions local_options(const RoundContext& context, std::int64_t round) {
    const LocalSettings& local = context.settings.local;
    const Strategy& strategy = context.strategy;
    const std::int64_t rounds = context.settings.experiment.rounds;
    // Under a schedule the pull belongs to the first stage, before the lora_ranks fall.
    const bool pulls =
        strategy.local_extra == LocalExtra::proximal &&
        (strategy.rank_schedule == RankSchedule::none || lora_rank_cap(strategy, round, rounds) == strategy.rank_max);
    const auto scheduled = [&](double peak) {
        return scheduled_rate(local.lr_schedule, peak, round, rounds, local.lr_warmup_rounds, local.lr_final_fraction);
    };
    return {.optimizer = local.optimizer,
            .learning_rate = scheduled(local.learning_rate),
            .head_learning_rate =
                scheduled(local.head_learning_rate > 0.0 ? local.head_learning_rate : local.learning_rate),
            .weight_decay = local.weight_decay,
            .clip_norm = local.clip_norm,
            .beta1 = local.adam_beta1,
            .beta2 = local.adam_beta2,
            .epsilon = local.adam_epsilon,
            .tail_lambda = strategy.prunes() ? strategy.prune_lambda : 0.0,
            .tail_norm_epsilon = strategy.tail_norm_epsilon,
            .prox_mu = pulls ? strategy.prox_mu : 0.0,
            .dropout = context.settings.lora.dropout,
            .batch_size = local.batch_size,
            .seed_data = context.settings.experiment.seed_data,
            .round = round,
            .penalty = strategy.own.penalty ? context.own : nullptr,
            .penalty_name = context.settings.strategy.plugin.string()};
}

void put_private_factors(const AdapterLayout& layout, const Population& population, std::int64_t client,
                         PrivateFactors& private_factors, std::span<double> adapter) {
    const std::int64_t stored = population.private_round(client);
    if (stored == 0) return;
    const std::int64_t lora_rank = population.lora_rank(client);
    const std::vector<double> own = private_factors.load(client, stored);
    if (own.size() != b_values(layout, lora_rank)) {
        throw input_error(
            "what client {} keeps for itself has {} values of B, but its lora_rank {} has {} - "
            "private/client_{:06}/round_{:06}.safetensors in the run's folder - restore this file, or start anew in "
            "another folder",
            client, own.size(), lora_rank, b_values(layout, lora_rank), client, stored);
    }
    for_each_b(layout, lora_rank, [&](std::size_t in_adapter, std::size_t in_own, std::size_t n) {
        std::copy_n(own.begin() + static_cast<std::ptrdiff_t>(in_own), n,
                    adapter.begin() + static_cast<std::ptrdiff_t>(in_adapter));
    });
}

Distribution distribute(const RoundContext& context, std::int64_t round, const PlannedClient& client,
                        std::span<const double> global) {
    const AdapterLayout& layout = context.engine.layout();
    const Strategy& strategy = context.strategy;
    const std::int64_t rank_max = context.init.rank_max;
    Distribution d;
    d.lora_rank = client.lora_rank;
    if (strategy.own.select) {
        d.slots = client.own_slots;
    } else if (strategy.slot_select == SlotSelect::random) {
        d.slots =
            random_slots({.seed = context.settings.experiment.seed_sampling, .round = round, .client = client.client},
                         rank_max, client.lora_rank);
    } else if (strategy.slot_select == SlotSelect::importance) {
        d.slots = important_slots(layout, global, rank_max, client.lora_rank);
    }
    d.received_lora_rank = strategy.receive == Receive::all ? rank_max : client.lora_rank;
    d.received.resize(static_cast<std::size_t>(layout.parameters(d.received_lora_rank)));
    if (strategy.restarts()) {
        fresh_adapter(layout, context.init, {.round = round, .client = client.client}, d.received_lora_rank,
                      d.received);
    } else if (strategy.receive == Receive::selected && !d.slots.empty()) {
        select_slots<double>(layout, global, rank_max, d.slots, d.received);
    } else {
        resize_adapter<double>(layout, global, rank_max, d.received, d.received_lora_rank);
    }
    if (strategy.receive == Receive::all && !d.slots.empty()) {
        d.trained_slots = mask_of_slots(layout, rank_max, d.slots);
    }
    if (strategy.is_personal()) {
        put_private_factors(layout, context.population, client.client, *context.private_factors, d.received);
    }
    d.scale = lora_scale(context.settings.lora, d.received_lora_rank);
    if (strategy.slot_scale == SlotScale::sketch) {
        d.scale *= static_cast<double>(rank_max) / static_cast<double>(client.lora_rank);
    }
    return d;
}

void train_one_pack(const RoundContext& context, const RoundPlan& plan, const Pack& pack, const ServerState& server,
                    ClientWork& work) {
    const Strategy& strategy = context.strategy;
    const LocalOptions options = local_options(context, plan.round);
    const int value_bytes = context.settings.model.precision == Precision::fp64 ? 8 : 4;
    std::vector<Distribution> distributions;
    for (const std::int64_t member : pack.members) {
        distributions.push_back(
            distribute(context, plan.round, plan.cohort[static_cast<std::size_t>(member)], server.global));
    }
    std::vector<ClientTask> tasks;
    for (std::size_t i = 0; i < pack.members.size(); ++i) {
        const PlannedClient& planned = plan.cohort[static_cast<std::size_t>(pack.members[i])];
        const Distribution& d = distributions[i];
        tasks.push_back(
            {.client = planned.client,
             .lora_rank = d.received_lora_rank,
             .tail_start = strategy.prunes() ? tail_start(planned.lora_rank, strategy) : d.received_lora_rank,
             .n_steps = planned.n_steps,
             .scale = d.scale,
             .received = d.received,
             .trained_factors = factors_to_train(strategy, plan.round),
             .trained_slots = d.trained_slots,
             .received_head = server.head});
    }
    if (strategy.slot_select == SlotSelect::scored) {
        score_slots(context, tasks, options, distributions);
        for (std::size_t i = 0; i < tasks.size(); ++i) tasks[i].trained_slots = distributions[i].trained_slots;
    }
    std::vector<ClientOutcome> outcomes = train_pack(context.engine, context.corpus, tasks, options, context.head);
    for (std::size_t i = 0; i < outcomes.size(); ++i) {
        const std::int64_t member = pack.members[i];
        const PlannedClient& planned = plan.cohort[static_cast<std::size_t>(member)];
        ClientReport report = make_report(outcomes[i], planned, member, context.transport.mpi_rank());
        report.learning_rate = options.learning_rate;
        report.n_samples = static_cast<double>(context.population.at(planned.client).n_windows);
        report.bytes_down = true_bytes_down(strategy, context.engine.layout(),
                                            {.round = plan.round,
                                             .lora_rank_before = planned.lora_rank,
                                             .lora_rank_after = planned.lora_rank,
                                             .value_bytes = value_bytes});
        std::vector<double> sent = std::move(outcomes[i].trained);
        const std::vector<double>& head = outcomes[i].head;
        const std::int64_t head_bytes = std::ssize(head) * value_bytes;
        report.bytes_down += head_bytes;
        if (work.heads && !DenseSum::fits(head, report.n_samples)) report.dropped = true;
        if (!report.dropped) upload_client(context, plan.round, distributions[i], sent, report, work);
        if (work.heads && !report.dropped) {
            work.heads->add(head, report.n_samples);
            report.bytes_up += head_bytes;
        }
        if (context.settings.output.trace) {
            work.traced.push_back({.cohort_index = member,
                                   .received = std::move(distributions[i].received),
                                   .sent = std::move(sent),
                                   .slots = std::move(distributions[i].slots),
                                   .steps = std::move(outcomes[i].steps),
                                   .head = std::move(outcomes[i].head)});
        }
        work.reports.push_back(std::move(report));
    }
}

}  // namespace hetlora

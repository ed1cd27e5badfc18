#include "hetlora/app/evaluate.hpp"

#include <algorithm>
#include <limits>

#include "global_batches.hpp"
#include "hetlora/base/error.hpp"
#include "hetlora/base/stop_request.hpp"
#include "hetlora/comm/agree.hpp"
#include "hetlora/fed/client_work.hpp"
#include "hetlora/store/run_log_rows.hpp"
#include "ordered_gather.hpp"

namespace hetlora {
namespace {

Part part_of(EvaluationPart part) { return part == EvaluationPart::test ? Part::test : Part::valid; }

}  // namespace

EvaluationSums evaluate_global(Transport& transport, Experiment& experiment, std::span<const double> global,
                               std::span<const WindowRef> windows) {
    // Loss, tokens and correct of every batch; root adds them in the batches' order, whoever computed them.
    struct BatchSums {
        std::int64_t batch;
        EvaluationSums sums;
    };
    const auto batches = evaluation_batches(windows, experiment.settings.compute.pack_tokens);
    std::vector<BatchSums> mine;
    const GlobalPass pass{.doing = "evaluating", .global = global, .batches = batches.size()};
    for_own_batches(transport, experiment, pass, [&](AdapterGroup& adapter, std::size_t b) {
        mine.push_back({.batch = static_cast<std::int64_t>(b),
                        .sums = evaluate_batch(
                            *experiment.engine, *experiment.corpus, windows, batches[b],
                            {.adapter = &adapter, .scale = experiment.global_scale, .head = experiment.head.get()})});
    });
    const std::vector<BatchSums> all = gather_in_order(transport, mine, &BatchSums::batch);
    EvaluationSums total;
    for (const auto& entry : all) total += entry.sums;
    transport.broadcast_values(std::span(&total, 1));
    return total;
}

std::vector<PersonalSums> personal_sums(Transport& transport, Experiment& experiment, std::span<const double> global,
                                        const PersonalEvaluation& wanted) {
    const Settings& settings = experiment.settings;
    const auto& clients = experiment.population->eligible();
    const std::int64_t share = wanted.sequences == 0
                                   ? std::numeric_limits<std::int64_t>::max()
                                   : std::max<std::int64_t>(1, wanted.sequences / std::ssize(clients));
    std::vector<PersonalSums> mine;
    skip_wait_for_look();
    agree(transport, "evaluating the clients' own adapters", [&] {
        for (std::size_t i = static_cast<std::size_t>(transport.mpi_rank()); i < clients.size();
             i += static_cast<std::size_t>(transport.mpi_size())) {
            auto windows = experiment.corpus->client_evaluation_windows(clients[i], part_of(wanted.part));
            if (windows.empty()) continue;
            if (std::ssize(windows) > share) windows.resize(static_cast<std::size_t>(share));
            const std::int64_t lora_rank = experiment.population->lora_rank(clients[i]);
            std::vector<double> own(static_cast<std::size_t>(experiment.layout.parameters(lora_rank)));
            resize_adapter<double>(experiment.layout, global, settings.lora.rank_max, own, lora_rank);
            put_private_factors(experiment.layout, *experiment.population, clients[i], wanted.private_factors, own);
            AdapterGroup adapter(experiment.layout, 1, lora_width(lora_rank), /*with_gradient=*/false,
                                 experiment.engine->weights().options());
            adapter.set(0, own, lora_rank);
            PersonalSums entry{.client = clients[i], .sums = {}};
            for (const auto& batch : evaluation_batches(windows, settings.compute.pack_tokens)) {
                entry.sums += evaluate_batch(*experiment.engine, *experiment.corpus, windows, batch,
                                             {.adapter = &adapter,
                                              .scale = lora_scale(settings.lora, lora_rank),
                                              .head = experiment.head.get()});
            }
            mine.push_back(entry);
        }
    });
    return gather_in_order(transport, mine, &PersonalSums::client);
}

EvaluationSums evaluate_personal(Transport& transport, Experiment& experiment, std::span<const double> global,
                                 const PersonalEvaluation& wanted) {
    EvaluationSums total;
    for (const PersonalSums& entry : personal_sums(transport, experiment, global, wanted)) total += entry.sums;
    transport.broadcast_values(std::span(&total, 1));
    if (total.tokens == 0) {
        throw input_error(
            "{}: no client has held-out data of its own, and strategy.preset = {} is evaluated on that: data that were "
            "split by record keep valid and test apart from all clients; prepare them with --client-field and without "
            "--split-field and fractions",
            experiment.settings.data.path.string(), experiment.strategy.preset);
    }
    return total;
}

ClientScores client_scores(Transport& transport, Experiment& experiment, std::span<const double> global,
                           PrivateFactors& private_factors, bool with_own_rank) {
    const std::vector<double> unknown(static_cast<std::size_t>(experiment.corpus->n_clients()), not_measured);
    const auto put = [](std::int64_t client, const EvaluationSums& sums, auto& loss, auto& accuracy) {
        loss[static_cast<std::size_t>(client)] = sums.mean_loss();
        accuracy[static_cast<std::size_t>(client)] = sums.accuracy();
    };
    const PersonalEvaluation own_data{.private_factors = private_factors, .part = experiment.settings.evaluation.part};
    ClientScores scores{.loss = unknown, .accuracy = unknown};
    if (experiment.strategy.is_personal()) {
        for (const PersonalSums& own : personal_sums(transport, experiment, global, own_data))
            put(own.client, own.sums, scores.loss, scores.accuracy);
        return scores;
    }
    const Part part = part_of(experiment.settings.evaluation.part);
    for (const std::int64_t client : experiment.population->eligible()) {
        const auto windows = experiment.corpus->client_evaluation_windows(client, part);
        if (windows.empty()) continue;
        put(client, evaluate_global(transport, experiment, global, windows), scores.loss, scores.accuracy);
    }
    if (with_own_rank) {
        scores.own_rank_loss = scores.own_rank_accuracy = unknown;
        for (const PersonalSums& own : personal_sums(transport, experiment, global, own_data))
            put(own.client, own.sums, scores.own_rank_loss, scores.own_rank_accuracy);
    }
    return scores;
}

}  // namespace hetlora

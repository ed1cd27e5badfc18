#include "hetlora/train/local_training.hpp"

#include <algorithm>
#include <cmath>
#include <map>
#include <memory>
#include <numbers>
#include <numeric>
#include <optional>

#include "hetlora/base/random.hpp"
#include "hetlora/base/stop_request.hpp"
#include "hetlora/base/timer.hpp"
#include "hetlora/model/batch.hpp"
#include "hetlora/tensor/profile.hpp"
#include "hetlora/train/client_update.hpp"
#include "hetlora/train/head_training.hpp"
#include "hetlora/train/penalty.hpp"
#include "step_data.hpp"

namespace hetlora {
namespace {

/// Clients of a pack whose adapters have one width, with the pack's state for them.
struct TrainingGroup {
    std::vector<std::size_t> tasks;  // indices into the pack, most steps first: those still active are a prefix
    std::vector<std::int64_t> lora_ranks;
    std::unique_ptr<AdapterGroup> adapters;
    OptimizerState state;
};

std::vector<TrainingGroup> make_groups(const Engine& engine, std::span<const ClientTask> tasks,
                                       const LocalOptions& options) {
    std::map<std::int64_t, std::vector<std::size_t>> by_width;
    for (std::size_t t = 0; t < tasks.size(); ++t) by_width[lora_width(tasks[t].lora_rank)].push_back(t);
    std::vector<TrainingGroup> groups;
    for (auto& [width, members] : by_width) {
        std::ranges::stable_sort(members,
                                 [&](std::size_t a, std::size_t b) { return tasks[a].n_steps > tasks[b].n_steps; });
        TrainingGroup group;
        group.adapters = std::make_unique<AdapterGroup>(engine.layout(), std::ssize(members), width,
                                                        /*with_gradient=*/true, engine.weights().options());
        std::vector<ClientFactors> received;
        std::vector<TrainedElements> trained;
        for (const std::size_t t : members) {
            received.push_back({.canonical = tasks[t].received, .lora_rank = tasks[t].lora_rank});
            group.lora_ranks.push_back(tasks[t].lora_rank);
            trained.push_back(trained_elements(*group.adapters, engine.layout(),
                                               {.lora_rank = tasks[t].lora_rank,
                                                .factors = tasks[t].trained_factors,
                                                .slots = tasks[t].trained_slots}));
        }
        group.adapters->set_all(received);
        group.state = OptimizerState(*group.adapters, options.optimizer);
        group.state.trained = std::move(trained);
        if (options.prox_mu > 0.0 || options.penalty != nullptr)
            group.state.received_CP = group.adapters->theta_CP.clone();
        group.tasks = std::move(members);
        groups.push_back(std::move(group));
    }
    return groups;
}

}  // namespace

std::vector<ClientOutcome> train_pack(Engine& engine, const Corpus& corpus, std::span<const ClientTask> tasks,
                                      const LocalOptions& options, const ClassHeadShape* head) {
    const Stopwatch watch;
    std::vector<TrainingGroup> groups = make_groups(engine, tasks, options);
    std::optional<HeadTraining> heads;
    if (head != nullptr) heads.emplace(*head, tasks, options, engine.weights().options());
    std::vector<StepData> data;
    std::vector<ClientOutcome> outcomes(tasks.size());
    std::int64_t most_steps = 0;
    for (std::size_t t = 0; t < tasks.size(); ++t) {
        data.emplace_back(corpus, tasks[t].client, options);
        outcomes[t].client = tasks[t].client;
        most_steps = std::max(most_steps, tasks[t].n_steps);
    }

    for (std::int64_t step = 0; step < most_steps; ++step) {
        throw_if_stop_requested();
        std::optional<PartTimer> timer(std::in_place, StepPart::batch);
        std::vector<std::size_t> active;  // tasks in the order of the batch's rows
        std::vector<BatchClient> clients;
        std::vector<std::vector<WindowTokens>> tokens;  // keeps alive what the batch's spans point at
        for (auto& group : groups) {
            for (std::size_t c = 0; c < group.tasks.size(); ++c) {
                const std::size_t t = group.tasks[c];
                if (tasks[t].n_steps <= step) break;
                StepRecord record{.loss = 0.0, .n_loss_tokens = 0, .windows = data[t].windows_of(step)};
                BatchClient client{.group = group.adapters.get(),
                                   .client_in_group = static_cast<std::int64_t>(c),
                                   .scale = tasks[t].scale,
                                   .dropout_seed = hash_seed(options.seed_data, Purpose::dropout, tasks[t].client,
                                                             options.round, step),
                                   .head = heads ? &heads->group() : nullptr,
                                   .client_in_head = static_cast<std::int64_t>(t),
                                   .sequences = {}};
                auto& kept = tokens.emplace_back();
                for (const WindowRef& window : record.windows) kept.push_back(corpus.read(window));
                for (const WindowTokens& window : kept) {
                    client.sequences.push_back({.inputs = window.inputs, .targets = window.targets});
                    record.n_loss_tokens += window.n_loss;
                    outcomes[t].n_tokens += std::ssize(window.inputs);
                }
                outcomes[t].steps.push_back(std::move(record));
                clients.push_back(std::move(client));
                active.push_back(t);
            }
        }
        const TokenBatch batch = make_batch(engine.weights(), clients);
        timer.reset();
        const RowLosses losses = engine.train(batch, options.dropout);
        timer.emplace(StepPart::optimizer);

        std::size_t row = 0;
        for (const std::size_t t : active) {
            StepRecord& record = outcomes[t].steps.back();
            double sum = 0.0;
            for (std::int64_t i = 0; i < record.n_loss_tokens; ++i) sum += losses.loss_L[row++];
            record.loss = sum / static_cast<double>(record.n_loss_tokens);
            outcomes[t].finite = outcomes[t].finite && std::isfinite(record.loss);
        }
        for (const std::size_t t : active) {
            if (heads) heads->update(t, step + 1);
        }
        // gradient_CP of each group now holds the losses' gradients. A penalty's is added before the updates clear what
        // is frozen and clip.
        for (auto& group : groups) {
            std::vector<ClientStep> steps;
            std::vector<std::int64_t> active_clients;
            for (const std::size_t t : group.tasks) {
                const ClientTask& task = tasks[t];
                if (task.n_steps <= step) break;
                steps.push_back({.lora_rank = task.lora_rank, .tail_start = task.tail_start, .step = step + 1});
                active_clients.push_back(task.client);
            }
            if (options.penalty != nullptr && !steps.empty()) {
                add_penalty({.method = *options.penalty,
                             .name = options.penalty_name,
                             .round = options.round,
                             .clients = active_clients,
                             .steps = steps,
                             .received_CP = group.state.received_CP},
                            engine.layout(), *group.adapters);
            }
            update_clients(*group.adapters, group.state, engine.layout(), steps, options);
        }
    }

    const double elapsed_s = watch.seconds();
    const std::int64_t all_tokens =
        std::accumulate(outcomes.begin(), outcomes.end(), std::int64_t{0},
                        [](std::int64_t sum, const ClientOutcome& o) { return sum + o.n_tokens; });
    for (auto& group : groups) {
        std::vector<std::vector<double>> trained = group.adapters->get_all(group.lora_ranks);
        for (std::size_t c = 0; c < group.tasks.size(); ++c) {
            ClientOutcome& outcome = outcomes[group.tasks[c]];
            outcome.trained = std::move(trained[c]);
            if (heads) outcome.head = heads->trained(group.tasks[c]);
            for (const auto* values : {&outcome.trained, &outcome.head}) {
                outcome.finite =
                    outcome.finite && std::ranges::all_of(*values, [](double x) { return std::isfinite(x); });
            }
            outcome.time_s = elapsed_s * static_cast<double>(outcome.n_tokens) /
                             static_cast<double>(std::max<std::int64_t>(1, all_tokens));
        }
    }
    return outcomes;
}

double scheduled_rate(LearningRateSchedule schedule, double peak, std::int64_t round, std::int64_t rounds,
                      std::int64_t warmup, double final_fraction) {
    if (warmup > 0 && round <= warmup) return peak * static_cast<double>(round) / static_cast<double>(warmup);
    if (schedule == LearningRateSchedule::constant || rounds <= warmup) return peak;
    const double progress = static_cast<double>(round - warmup) / static_cast<double>(rounds - warmup);
    const double fall =
        schedule == LearningRateSchedule::linear ? 1.0 - progress : 0.5 * (1.0 + std::cos(std::numbers::pi * progress));
    return peak * (final_fraction + (1.0 - final_fraction) * fall);
}

}  // namespace hetlora

// What is about to happen, in a few lines for people: printed before training.
#include <map>
#include <string>

#include "hetlora/app/experiment.hpp"
#include "hetlora/app/machine.hpp"
#include "hetlora/base/hub_cache.hpp"
#include "hetlora/base/text.hpp"
#include "hetlora/fed/true_bytes.hpp"

namespace hetlora {
namespace {

/// The rule in words, e.g. "dirichlet by label, alpha 0.5, seed 3".
std::string describe_partition(const Settings& settings) {
    const DataSettings& data = settings.data;
    const std::string seed = fmt::format(", seed {}", settings.experiment.seed_partition);
    switch (data.partition) {
        case Partition::dirichlet:
            return fmt::format("dirichlet by {}, alpha {}{}", name_of(data.dirichlet_by), data.dirichlet_alpha, seed);
        case Partition::quantity:
            return fmt::format("quantity, log-normal with sigma {}{}", data.quantity_sigma, seed);
        case Partition::iid:
            return "iid" + seed;
        case Partition::natural:
            break;
    }
    return "natural";
}

/// Bytes of a round, all clients of the cohort together.
struct RoundTraffic {
    double up = 0.0;
    double down = 0.0;
};

/// What a cohort with the eligible clients' mean traffic sends and receives once the run is under way, by the
/// strategy's own formulas (`hetlora strategies`). Methods that alternate between the factors: the mean of two rounds.
/// @param histogram how many eligible clients have each lora_rank
RoundTraffic expected_traffic(const Experiment& experiment, std::int64_t cohort,
                              const std::map<std::int64_t, std::int64_t>& histogram) {
    const Strategy& strategy = experiment.strategy;
    const std::int64_t value_bytes = experiment.settings.model.precision == Precision::fp64 ? 8 : 4;
    const auto clients = static_cast<double>(cohort);
    if (strategy.trains_base()) {
        const ModelConfig& config = experiment.engine->weights().config;
        const double all = clients * static_cast<double>(value_bytes * config.parameters());
        return {.up = all, .down = all};
    }
    const double share = clients / static_cast<double>(experiment.population->eligible().size());
    RoundTraffic traffic;
    double slots = 0.0;  // of the cohort
    for (const auto& [lora_rank, count] : histogram) {
        const double of_cohort = share * static_cast<double>(count);
        slots += of_cohort * static_cast<double>(lora_rank);
        for (const std::int64_t round : {1, 2}) {
            const TrafficOf one{.round = round,
                                .lora_rank_before = lora_rank,
                                .lora_rank_after = lora_rank,
                                .value_bytes = value_bytes};
            traffic.up += 0.5 * of_cohort * static_cast<double>(true_bytes_up(strategy, experiment.layout, one));
            traffic.down += 0.5 * of_cohort * static_cast<double>(true_bytes_down(strategy, experiment.layout, one));
        }
    }
    if (strategy.merge == Merge::stack || strategy.base_update == BaseUpdate::residual) {
        // Everybody's factors of the round before, which go into everybody's base.
        traffic.down += clients * slots * static_cast<double>(experiment.layout.parameters_per_slot() * value_bytes);
    }
    return traffic;
}

}  // namespace

std::string describe_experiment(const Experiment& experiment, const Transport& transport) {
    const Settings& settings = experiment.settings;
    const Population& population = *experiment.population;
    std::map<std::int64_t, std::int64_t> histogram;
    double rank_sum = 0.0;
    for (const std::int64_t client : population.eligible()) {
        ++histogram[population.lora_rank(client)];
        rank_sum += static_cast<double>(population.lora_rank(client));
    }
    std::string ranks;
    for (const auto& [lora_rank, count] : histogram) {
        if (histogram.size() <= 8) ranks += fmt::format("{}{}x{}", ranks.empty() ? "" : " ", count, lora_rank);
    }
    if (ranks.empty()) ranks = fmt::format("{} different values", histogram.size());
    const auto eligible = std::ssize(population.eligible());
    const std::int64_t cohort =
        settings.experiment.clients_per_round == 0 ? eligible : settings.experiment.clients_per_round;
    const double mean_rank = rank_sum / static_cast<double>(eligible);
    const double slot = static_cast<double>(experiment.layout.parameters_per_slot());
    std::int64_t evaluation_tokens = 0;
    for (const auto& window : experiment.evaluation_windows) evaluation_tokens += window.n_loss;
    const ModelConfig& config = experiment.engine->weights().config;
    const bool full = experiment.strategy.trains_base();
    const RoundTraffic traffic = expected_traffic(experiment, cohort, histogram);
    const std::string trained =
        full ? fmt::format("  weights   all {} are trained; no adapters: the keys of [lora] have no effect\n",
                           human_count(static_cast<double>(config.parameters())))
             : fmt::format(
                   "  adapters  {} matrices; lora_rank {}..{} by {}, mean {:.1f} ({}); {} parameters at lora_rank {}\n",
                   experiment.layout.matrices.size(), histogram.begin()->first, histogram.rbegin()->first,
                   name_of(settings.lora.rank_distribution), mean_rank, ranks,
                   human_count(slot * static_cast<double>(settings.lora.rank_max)), settings.lora.rank_max);
    const std::string from_adapter =
        settings.model.adapter.empty() ? std::string() : " from the adapter in " + settings.model.adapter.string();
    const std::string places =
        transport.mpi_size() == 1 ? std::string() : "\n            " + join(experiment.placement, "\n            ");
    return fmt::format(
        "{} {}: {}, {} of {} a round, strategy {}\n"
        "  model     {} ({} parameters, {} layers, width {}), {}\n"
        "  data      {} ({}, {} may train), windows of {} tokens, evaluation on {} {} of held-out "
        "clients\n"
        "  partition {}, hash {}\n"
        "{}"
        "{}"
        "  a round   about {} up and {} down in true bytes\n"
        "  machine   {} MPI rank{}, {} thread{} each, {}, kernels {}, gemm {}; {} of {} tokens; about {} of memory "
        "each{}",
        settings.experiment.name, "on " + transport.hosts().front(), counted(settings.experiment.rounds, "round"),
        cohort, counted(eligible, "client"), experiment.strategy.preset,
        model_label(settings.model.path) + from_adapter, human_count(static_cast<double>(config.parameters())),
        config.layers, config.hidden_size, name_of(settings.model.precision), settings.data.path.filename().string(),
        counted(population.size(), "client"), eligible, settings.data.sequence_length,
        human_count(static_cast<double>(evaluation_tokens)), experiment.head ? "texts" : "loss tokens",
        describe_partition(settings), experiment.partition_sha256.substr(0, 12), trained,
        experiment.plugin ? fmt::format("  plugin    {}\n", experiment.plugin->describe()) : std::string(),
        human_bytes(traffic.up), human_bytes(traffic.down), transport.mpi_size(), transport.mpi_size() == 1 ? "" : "s",
        settings.compute.threads, settings.compute.threads == 1 ? "" : "s",
        describe_device(experiment.engine->weights().options().device()), name_of(settings.compute.vector),
        name_of(settings.compute.gemm), full ? "passes" : "packs", settings.compute.pack_tokens,
        human_bytes(static_cast<double>(experiment.choice.frozen_bytes + experiment.choice.step_bytes)), places);
}

}  // namespace hetlora

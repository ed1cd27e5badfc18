#include "hetlora/app/plan_run.hpp"

#include <unistd.h>

#include <algorithm>
#include <array>
#include <cstdlib>
#include <nlohmann/json.hpp>

#include "hetlora/app/experiment.hpp"
#include "hetlora/app/private_files.hpp"
#include "hetlora/app/resume.hpp"
#include "hetlora/base/error.hpp"
#include "hetlora/base/file_io.hpp"
#include "hetlora/base/text.hpp"
#include "hetlora/base/timer.hpp"
#include "hetlora/comm/agree.hpp"
#include "plan_evaluation.hpp"

namespace hetlora {
namespace {

/// Time for measuring training steps.
constexpr double train_budget_s = 8.0;
/// Rounds whose plans are looked at: cohorts differ.
constexpr std::int64_t most_planned_rounds = 50;
constexpr int most_repeats = 5;
/// Packs of later rounds have other shapes, and what they need comes on top (measured: 3 to 15 % within a few rounds).
constexpr double later_shapes = 1.07;

double median(std::vector<double> values) {
    std::ranges::sort(values);
    const std::size_t n = values.size();
    return n % 2 == 1 ? values[n / 2] : 0.5 * (values[n / 2 - 1] + values[n / 2]);
}

/// The planned rows of the MPI rank with the most of them.
double largest_load(const RoundPlan& plan, int mpi_size) {
    std::vector<double> load(static_cast<std::size_t>(mpi_size), 0.0);
    const auto assignment = assign_packs(plan, mpi_size);
    for (std::size_t p = 0; p < assignment.size(); ++p)
        load[static_cast<std::size_t>(assignment[p])] += static_cast<double>(plan.packs[p].cost);
    return std::ranges::max(load);
}

/// Rows of a step of the largest pack.
double largest_pack(const RoundPlan& plan) {
    std::int64_t rows = 0;
    for (const Pack& pack : plan.packs) rows = std::max(rows, pack.rows_per_step);
    return static_cast<double>(rows);
}

struct PlanFigures {
    double start_s = 0.0;
    double train_s = 0.0;       ///< of a round, the slowest MPI rank
    double overhead_s = 0.0;    ///< of a round: exchange, merge, checkpoint
    double evaluation_s = 0.0;  ///< of one evaluation, further metrics included
    double test_s = 0.0;        ///< of one evaluation on the test part
    std::int64_t peak_memory_bytes = 0;
};

class Planner {
public:
    Planner(Transport& transport, Experiment& experiment)
        : transport_(transport),
          experiment_(experiment),
          accumulator_(make_accumulator(experiment)),
          start_(experiment.start) {}

    PlanFigures measure(int mpi_ranks) {
        PlanFigures figures;
        // First, as in a run: then memory is taken in the same order.
        const EvaluationCost evaluation = measure_evaluation_cost(transport_, experiment_, start_);
        const double fewer = static_cast<double>(transport_.mpi_size()) / static_cast<double>(mpi_ranks);
        figures.evaluation_s = evaluation.seconds * fewer;
        figures.test_s = evaluation.test_seconds * fewer;
        measure_training(figures, mpi_ranks);
        figures.overhead_s += checkpoint_seconds();
        std::array<std::int64_t, 1> peak{peak_memory_bytes()};
        transport_.all_max(peak);
        figures.peak_memory_bytes = static_cast<std::int64_t>(later_shapes * static_cast<double>(peak[0]));
        return figures;
    }

private:
    struct Timed {
        double round_s = 0.0;
        double train_s = 0.0;  ///< of the slowest MPI rank, known to all
    };

    /// One round from the initial adapter, as `settings` say.
    Timed time_round(const Settings& settings) {
        Population population = *experiment_.population;  // pruning changes it
        PrivateMemory private_factors;
        const RoundContext context =
            round_context(transport_, experiment_, population, accumulator_, settings, &private_factors);
        ServerState state{.global = start_};
        if (experiment_.head) state.head = experiment_.head->get(0);
        transport_.barrier();
        const Stopwatch watch;
        const RoundOutcome outcome = run_round(context, 1, state);
        std::array<double, 2> seconds{watch.seconds(), outcome.t_train_s};
        transport_.broadcast_values(seconds);
        return {seconds[0], seconds[1]};
    }

    RoundPlan plan_of(const Settings& settings, std::int64_t round) const {
        return make_round_plan(round, *experiment_.population, experiment_plan(experiment_, settings));
    }

    /// The settings with fewer steps, and at most so many clients.
    Settings shortened(std::int64_t steps, std::int64_t clients) const {
        Settings settings = experiment_.settings;
        settings.local.epochs = 0;
        settings.local.steps = steps;
        settings.experiment.clients_per_round = clients;
        settings.output.trace = false;
        return settings;
    }

    void measure_training(PlanFigures& figures, int mpi_ranks) {
        const Settings& settings = experiment_.settings;
        const RoundPlan whole = plan_of(settings, 1);
        const auto cohort = std::ssize(whole.cohort);
        // As few clients as give every MPI rank a pack, one of them as large as they get: the warm-up must not take
        // long on a large model, but it has to need the memory that the run will.
        const auto is_enough = [&](std::int64_t some) {
            const RoundPlan plan = plan_of(shortened(1, some), 1);
            return std::ssize(plan.packs) >=
                       std::min<std::ptrdiff_t>(transport_.mpi_size() + 1, std::ssize(whole.packs)) &&
                   largest_pack(plan) >= 0.95 * largest_pack(whole);
        };
        std::int64_t clients = std::min<std::int64_t>(cohort, transport_.mpi_size());
        while (clients < cohort && !is_enough(clients)) ++clients;
        const Timed warm = time_round(shortened(1, clients));
        const double per_row = warm.train_s / largest_load(plan_of(shortened(1, clients), 1), transport_.mpi_size());
        const double whole_step_s = per_row * largest_load(plan_of(shortened(1, cohort), 1), transport_.mpi_size());
        if (whole_step_s < train_budget_s / 2.0) clients = cohort;
        const double step_s = per_row * largest_load(plan_of(shortened(1, clients), 1), transport_.mpi_size());
        std::int64_t most_steps = 1;
        for (const auto& client : whole.cohort) most_steps = std::max(most_steps, client.n_steps);
        const auto steps = std::clamp<std::int64_t>(
            static_cast<std::int64_t>(train_budget_s / 3.0 / std::max(1e-6, step_s)), 1, most_steps);
        const Settings measured = shortened(steps, clients);
        const double load = largest_load(plan_of(measured, 1), transport_.mpi_size());

        std::vector<double> rates;
        std::vector<double> overheads;
        double spent = 0.0;
        do {
            const Timed timed = time_round(measured);
            rates.push_back(timed.train_s / load);
            overheads.push_back(std::max(0.0, timed.round_s - timed.train_s));
            spent += timed.round_s;
        } while (std::ssize(rates) < most_repeats &&
                 spent + spent / static_cast<double>(rates.size()) < train_budget_s);
        const std::int64_t rounds = std::clamp<std::int64_t>(settings.experiment.rounds, 1, most_planned_rounds);
        double loads = 0.0;
        for (std::int64_t round = 1; round <= rounds; ++round) {
            loads += largest_load(plan_of(settings, round), mpi_ranks);
        }
        figures.train_s = median(rates) * loads / static_cast<double>(rounds);
        figures.overhead_s = median(overheads);
    }

    /// A checkpoint into the folder for temporary files.
    double checkpoint_seconds() {
        double seconds = 0.0;
        agree(transport_, "measuring a checkpoint", [&] {
            if (!transport_.is_root() || experiment_.settings.checkpoint.every == 0) return;
            const auto folder =
                std::filesystem::temp_directory_path() / fmt::format("hetlora-plan-{}", static_cast<long>(getpid()));
            const Stopwatch watch;
            write_checkpoint(folder,
                             make_checkpoint(experiment_, carried_state(experiment_, 0, {.global = start_}, {})), 1);
            seconds = watch.seconds() / static_cast<double>(experiment_.settings.checkpoint.every);
            std::filesystem::remove_all(folder);
        });
        std::array<double, 1> told{seconds};
        transport_.broadcast_values(told);
        return told[0];
    }

    Transport& transport_;
    Experiment& experiment_;
    UploadAccumulator accumulator_;
    std::vector<double> start_;
};

}  // namespace

void start_plan_under_mpirun(const CommandLine& command, const std::vector<std::string>& words) {
    const std::int64_t ranks = std::min(command.mpi_ranks.value_or(1), usable_cores());
    if (ranks < 2) return;
    const std::string count = std::to_string(ranks);
    // By variables, not by options of Open MPI's mpirun: those of other MPI libraries do not know them.
    for (const auto& [name, value] : {std::pair{"OMPI_MCA_rmaps_base_oversubscribe", "1"},
                                      {"OMPI_MCA_hwloc_base_binding_policy", "none"},
                                      {"PRTE_MCA_rmaps_default_mapping_policy", ":oversubscribe"},
                                      {"PRTE_MCA_hwloc_default_binding_policy", "none"}}) {
        setenv(name, value, 0);
    }
    std::vector<std::string> all{"mpirun", "-n", count, std::filesystem::read_symlink("/proc/self/exe")};
    all.insert(all.end(), words.begin(), words.end());
    std::vector<char*> arguments;
    for (auto& word : all) arguments.push_back(word.data());
    arguments.push_back(nullptr);
    if (geteuid() == 0) {  // in a container; the user started this program as root already
        setenv("OMPI_ALLOW_RUN_AS_ROOT", "1", 0);
        setenv("OMPI_ALLOW_RUN_AS_ROOT_CONFIRM", "1", 0);
    }
    execvp("mpirun", arguments.data());  // comes back only where there is none
}

int run_plan(Transport& transport, const Settings& settings, const CommandLine& command, Terminal& terminal) {
    const Stopwatch watch;
    Experiment experiment = build_experiment(transport, settings);
    const double start_s = watch.seconds();
    for (const auto& warning : experiment.choice.warnings) terminal.warn(warning);
    terminal.info(describe_experiment(experiment, transport));

    const int mpi_ranks = static_cast<int>(command.mpi_ranks.value_or(transport.mpi_size()));
    PlanFigures figures = Planner(transport, experiment).measure(mpi_ranks);
    figures.start_s = start_s;
    const std::int64_t rounds = settings.experiment.rounds;
    const std::int64_t every = settings.evaluation.every;
    const std::int64_t evaluations = 1 + rounds / every + (rounds % every != 0 ? 1 : 0);
    const double round_s = figures.train_s + figures.overhead_s;
    // Where test is measured at every best round, each may be one.
    const std::int64_t tests = settings.evaluation.test == TestEvaluation::best ? evaluations - 1 : 1;
    const double later_s =
        figures.evaluation_s * static_cast<double>(evaluations - 1) + figures.test_s * static_cast<double>(tests);
    const double evaluation_share = later_s / static_cast<double>(std::max<std::int64_t>(1, rounds));
    const double total_s = figures.start_s + static_cast<double>(rounds) * round_s + figures.evaluation_s + later_s;
    const double core_hours =
        total_s * static_cast<double>(mpi_ranks) * static_cast<double>(experiment.settings.compute.threads) / 3600.0;
    const bool on_gpu = experiment.settings.compute.device == DeviceChoice::cuda;

    terminal.info(fmt::format(
        "\nplan for {} MPI rank{} of {} thread{} (measured in {} with {} side by side; no network)\n"
        "  start         {}\n"
        "  a round       {}: training {}, exchange, merge and checkpoint {}, evaluation {}\n"
        "  {} rounds{}    {} in all, {:.3g} {}\n"
        "  memory        {} an MPI rank at its peak",
        mpi_ranks, mpi_ranks == 1 ? "" : "s", experiment.settings.compute.threads,
        experiment.settings.compute.threads == 1 ? "" : "s", human_seconds(watch.seconds()), transport.mpi_size(),
        human_seconds(figures.start_s), human_seconds(round_s + evaluation_share), human_seconds(figures.train_s),
        human_seconds(figures.overhead_s), human_seconds(evaluation_share), rounds, rounds < 10 ? " " : "",
        human_seconds(total_s), core_hours, on_gpu ? "GPU-hours (a rank a GPU)" : "core-hours",
        human_bytes(static_cast<double>(figures.peak_memory_bytes))));
    const double all_ranks = static_cast<double>(figures.peak_memory_bytes) *
                             static_cast<double>(std::max(mpi_ranks, transport.node_mpi_size()));
    const double free_bytes = static_cast<double>(free_memory_bytes()) +
                              static_cast<double>(figures.peak_memory_bytes * transport.node_mpi_size());
    if (all_ranks > free_bytes) {
        terminal.warn(fmt::format(
            "{} MPI ranks on one such node need {}, and it has {} free: the scheduler would kill the run; spread them "
            "over nodes, take fewer, or see compute.recompute",
            mpi_ranks, human_bytes(all_ranks), human_bytes(free_bytes)));
    }
    agree(transport, "writing the plan", [&] {
        if (!transport.is_root() || !command.json) return;
        nlohmann::ordered_json json;
        json["mpi_ranks"] = mpi_ranks;
        json["mpi_ranks_measured"] = transport.mpi_size();
        json["threads"] = experiment.settings.compute.threads;
        json["device"] = on_gpu ? "cuda" : "cpu";
        json["rounds"] = rounds;
        json["seconds_start"] = figures.start_s;
        json["seconds_train"] = figures.train_s;
        json["seconds_overhead"] = figures.overhead_s;
        json["seconds_per_round"] = round_s + evaluation_share;
        json["seconds_per_evaluation"] = figures.evaluation_s;
        json["seconds_per_test"] = figures.test_s;
        json["seconds_total"] = total_s;
        json["core_hours"] = core_hours;
        json["peak_memory_bytes"] = figures.peak_memory_bytes;
        write_file_atomically(*command.json, json.dump(2) + "\n");
    });
    return 0;
}

}  // namespace hetlora

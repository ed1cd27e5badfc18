// See hetlora/sweep/commands.hpp.
#include "hetlora/sweep/commands.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>

#include "hetlora/base/error.hpp"
#include "hetlora/base/file_io.hpp"
#include "hetlora/base/text.hpp"
#include "hetlora/sweep/costs.hpp"
#include "hetlora/sweep/local_pool.hpp"
#include "hetlora/sweep/planned_run.hpp"
#include "hetlora/sweep/report.hpp"
#include "hetlora/sweep/run_state.hpp"
#include "hetlora/sweep/site_profile.hpp"
#include "hetlora/sweep/submission.hpp"
#include "hetlora/sweep/sweep_file.hpp"

namespace hetlora::sweep {
namespace {

constexpr std::int64_t most_measurements = 8;  // of `sweep plan`: it shall take seconds, not an hour

/// Options that an action does not know are errors, as everywhere: silently ignored ones would look like obeyed ones.
void check_options(const CommandLine& command, const std::string& action) {
    const auto refuse = [&](bool given, const char* option, std::initializer_list<const char*> actions) {
        if (!given || std::ranges::find(actions, action) != actions.end()) return;
        std::vector<std::string> names(actions.begin(), actions.end());
        throw usage_error("hetlora sweep {}: {} is an option of sweep {} (`hetlora sweep --help` explains)", action,
                          option, join(names, ", "));
    };
    refuse(command.mpi_ranks.has_value(), "--mpi-ranks", {"plan", "run", "submit"});
    refuse(command.no_calibrate, "--no-calibrate", {"plan", "submit"});
    refuse(command.cores.has_value(), "--cores", {"plan", "run"});
    refuse(command.max_parallel.has_value(), "--max-parallel", {"run"});
    refuse(command.retry_failed, "--retry-failed", {"run", "submit"});
    refuse(command.profile.has_value(), "--profile", {"plan", "submit"});
    refuse(command.throttle.has_value(), "--throttle", {"submit"});
    refuse(command.task_minutes.has_value(), "--task-minutes", {"submit"});
    refuse(command.dry_run, "--dry-run", {"submit"});
    refuse(command.all, "--all", {"plan", "status"});
    refuse(command.json.has_value(), "--json", {"plan", "status"});
}

void check_alone() {
    for (const char* name : {"OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "MPI_LOCALNRANKS"}) {
        const char* size = std::getenv(name);
        if (size != nullptr && parse_integer(size).value_or(1) > 1) {
            throw usage_error(
                "hetlora sweep starts the MPI processes of its runs itself: start it without mpirun or srun, "
                "and give --mpi-ranks N");
        }
    }
}

void print(const std::string& text) { std::fputs(text.c_str(), stdout); }

void write_json(const CommandLine& command, const SweepPlan& plan, const std::vector<FolderState>& states,
                const Costs& costs) {
    if (command.json) write_file_atomically(*command.json, status_json(plan, states, costs));
}

void calibrate(Costs& costs, const SweepPlan& plan, const std::vector<FolderState>& states) {
    costs.calibrate(plan, states, most_measurements, [](const PlannedRun& run) {
        std::fputs(fmt::format("measuring one run: {} ...\n", run.text).c_str(), stderr);
    });
}

}  // namespace

int run_sweep(const CommandLine& command, const Here& here) {
    static const std::vector<std::string> actions = {"plan", "run", "submit", "status"};
    const auto& action = command.words.front();
    if (std::ranges::find(actions, action) == actions.end()) {
        throw usage_error("hetlora sweep {}: there is no such action{} (actions: {})", action,
                          did_you_mean(action, actions), join(actions, ", "));
    }
    check_options(command, action);
    check_alone();
    if (!command.config) {
        throw usage_error(
            "hetlora sweep {}: give --config FILE, a sweep file (configs/sweeps/) or a base config with the "
            "axes as words, e.g. lora.rank_max=8,32",
            action);
    }
    const auto profile = command.profile ? read_site_profile(*command.profile) : SiteProfile{};
    const SweepPlan plan =
        make_plan(read_sweep(*command.config, {command.words.begin() + 1, command.words.end()}, command.output),
                  profile.cpus_per_task);
    const auto states = scan(plan);
    const Machine machine{.cores = command.cores.value_or(here.usable_cores),
                          .free_memory_bytes = here.free_memory_bytes,
                          .mpi_ranks = command.mpi_ranks.value_or(1),
                          .max_parallel = command.max_parallel.value_or(0)};
    Costs costs(plan, states, machine.mpi_ranks);
    if (action == "status") {
        print(status_text(plan, states, costs, command.all));
        write_json(command, plan, states, costs);
        return 0;
    }
    if (action == "run") return run_here(plan, states, costs, machine, command.retry_failed);
    if (!command.no_calibrate) calibrate(costs, plan, states);
    if (action == "plan") {
        print(plan_text(plan, states, costs, machine, command.all));
        write_json(command, plan, states, costs);
        return 0;
    }
    return submit(plan, states, costs,
                  {.profile = profile,
                   .mpi_ranks = machine.mpi_ranks,
                   .throttle = command.throttle.value_or(0),
                   .task_minutes = command.task_minutes.value_or(30),
                   .dry_run = command.dry_run,
                   .retry_failed = command.retry_failed});
}

}  // namespace hetlora::sweep
